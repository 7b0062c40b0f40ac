"""Write output files that are either complete or absent."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryosam_dask.errors import StoreError

_PATIENCE = 300.0
"""Seconds to wait for another process that changes the same file."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` when the block ends well.

    When the block fails, the temporary file is removed and a `path` from before stays as it was. OSErrors (no such
    folder, no permission, disk full) become a one-line StoreError.
    """
    # Same folder: a rename is atomic only within a file system. Not `tempfile`, whose files only the owner reads.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as err:
        raise StoreError(f"{path}: can't be written: {err.strerror or err}") from err


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """As `replacing`, for a folder: the block makes the temporary one. A folder that was at `path` is removed at last.

    Between the two renames nothing is at `path`, for a moment: there is no call that swaps folders everywhere.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
    try:
        try:
            path.parent.stat()  # what makes the folder may make those above it, too
            yield temporary
            if path.exists():
                path.rename(aside)
            temporary.rename(path)
        finally:
            if aside.exists() and not path.exists():
                aside.rename(path)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as err:
        raise StoreError(f"{path}: can't be written: {err.strerror or err}") from err


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """A block that only one process at a time can be in for `path`, whose folder exists: use it to read a file, change
    it and write it. StoreError if the folder can't be written, or another process stays in its block for minutes."""
    from filelock import FileLock, Timeout

    try:
        lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=_PATIENCE)
        lock.acquire()
    except Timeout as err:
        raise StoreError(f"{path}: another process has been writing it for {_PATIENCE:g} s") from err
    except (OSError, NotImplementedError) as err:
        raise StoreError(f"{path}: can't be written: {getattr(err, 'strerror', None) or err}") from err
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all; StoreError where that fails."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all; StoreError where that fails."""
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
