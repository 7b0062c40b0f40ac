"""Folders on a local disk: listed, removed, and forced to the disk, without following links."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def walk(folder: Path, path: str) -> Iterator[tuple[str, int]]:
    """Files under a path in a folder, by their path in it, with their bytes; links are neither listed nor followed."""
    root = os.fspath(folder)
    # the entries of the folders that are open, the next one last: a run may have a hundred thousand files
    stack = [(path, entry) for entry in _entries(f"{root}/{path}")]
    while stack:
        parent, entry = stack.pop()
        here = f"{parent}/{entry.name}" if parent else entry.name
        if entry.is_dir(follow_symlinks=False):
            stack += [(here, child) for child in _entries(entry.path)]
        elif entry.is_file(follow_symlinks=False):
            yield here, entry.stat(follow_symlinks=False).st_size


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, the last name first; nothing where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name, reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_tree(path: Path) -> None:
    """Delete a file, a link, or a folder with all in it; links in it are not followed."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def flush(*paths: Path) -> None:
    """Force files and folders to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    for path in paths:
        with contextlib.suppress(OSError):
            number = os.open(path, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
