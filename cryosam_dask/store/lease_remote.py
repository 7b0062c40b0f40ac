"""The file of a lease on an object store."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from cryosam_dask.store.lease_holder import same_lease


class RemoteFile:
    """A lease's file that only one process can create: by a conditional write, if the storage has those, and by reading
    back."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self.name = path
        self._filesystem, self._path = filesystem, path

    def read(self) -> bytes | None:
        try:
            return bytes(self._filesystem.cat_file(self._path))
        except FileNotFoundError:
            return None

    def create(self, text: bytes, settle: float) -> bool:
        if self.read() is not None:
            return False
        try:
            self._filesystem.pipe_file(self._path, text, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError, ValueError):
            self._filesystem.pipe_file(self._path, text)
        except OSError:
            if self.read() is not None:  # refused, in whatever words
                return False
            self._filesystem.pipe_file(self._path, text)
        time.sleep(settle)
        return self.read() == text

    def write(self, text: bytes) -> None:
        self._filesystem.pipe_file(self._path, text)

    def remove(self, text: bytes, token: str) -> None:
        if same_lease(self.read(), text):
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.rm_file(self._path)
