"""Output files that are whole or absent."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryosam_dask.errors import StoreError


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


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all; StoreError where that fails."""
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
