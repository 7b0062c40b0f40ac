"""The file of a lease on a local or mounted disk."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from cryosam_dask.store.lease_holder import same_lease

_LEFT = 90.0
"""Seconds after which another writer's file is taken to be one that a killed process left."""


class LocalFile:
    """A lease's file that only one process can create: by a link, which appears with its content, or else by O_EXCL."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def create(self, text: bytes, settle: float) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._temporary(text) as temporary:
            try:
                os.link(temporary, self._path)
            except FileExistsError:
                return False
            except OSError:
                return self._create_exclusively(text)
        self._tidy()
        return True

    def _tidy(self) -> None:
        """Remove temporary files that killed processes have left."""
        for path in self._path.parent.glob(f"{glob.escape(self._path.name)}.*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFT:
                    path.unlink()

    def _create_exclusively(self, text: bytes) -> bool:
        try:
            with self._path.open("xb") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def write(self, text: bytes) -> None:
        with self._temporary(text) as temporary:
            temporary.replace(self._path)

    def remove(self, text: bytes, token: str) -> None:
        # on one machine one at a time; of several machines one gets it by its name, and if another lease has come
        # meanwhile, it is put back
        aside = self._path.with_name(f"{self._path.name}.{token}")
        with self._alone():
            if not same_lease(self.read(), text):
                return
            try:
                self._path.rename(aside)
            except FileNotFoundError:
                return
            if not same_lease(aside.read_bytes(), text):
                with contextlib.suppress(OSError):
                    os.link(aside, self._path)
            aside.unlink()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Without others of this machine, where its file system lets a folder be locked."""
        try:
            import fcntl

            folder = os.open(self._path.parent, os.O_RDONLY)
        except (ImportError, OSError):
            yield
            return
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)  # which unlocks it

    @contextlib.contextmanager
    def _temporary(self, text: bytes) -> Iterator[Path]:
        path = self._path.with_name(f"{self._path.name}.{secrets.token_hex(8)}")
        try:
            path.write_bytes(text)
            yield path
        finally:
            path.unlink(missing_ok=True)
