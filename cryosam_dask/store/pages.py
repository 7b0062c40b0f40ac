"""Logs that only grow: rows in pages of a fixed size, one log for each writer.

A row is written with its page, which is one small chunk, whole or not at all, and is forced to the disk before the
writer goes on. No row is ever changed. So several processes may write at once, none needs the run's lease, and
whatever is killed, no row that was reported as written is lost.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cryosam_dask.errors import StoreError
from cryosam_dask.store.arrays import MissingChunkError
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array

PAGE = 128
"""Rows of a page."""

_NAME = re.compile(r".+_\d{4}")


def new_writer() -> str:
    """The name of a writer, in whose logs' names it says when it began."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


class PageWriter:
    """Appends rows to a log of its own.

    Parameters
    ----------
    path : (page's number) → where the page is
    width, dtype : of a row
    attributes : of each page
    """

    def __init__(
        self, store: RunStore, path: Callable[[int], str], width: int, dtype: str, attributes: Mapping[str, Any]
    ) -> None:
        self._store, self._path, self._attributes = store, path, attributes
        self._page, self._count = -1, PAGE
        self._rows = np.zeros((PAGE, width), dtype)

    def append(self, row: Array) -> None:
        """Write a row; it is on the disk when this returns.

        `StoreError` or `OSError` where it could not be written; it is then not in the log, and later rows may be.
        """
        fresh = self._count == PAGE
        page, count = (self._page + 1, 0) if fresh else (self._page, self._count)
        rows = np.zeros_like(self._rows) if fresh else self._rows.copy()
        rows[count] = row
        path = self._path(page)
        if fresh:
            dims = (f"row_of_{path.rpartition('/')[2]}", "field")
            self._store.put(path, rows, dims, self._attributes)
        else:
            self._store.array(path)[...] = rows  # one chunk, which is replaced as a whole
        self._store.keep(path)
        self._page, self._count, self._rows = page, count + 1, rows


@dataclass
class PageReader:
    """Reads all logs in a group, and reads again only pages that have changed since."""

    store: RunStore
    group: str
    _known: dict[str, tuple[object, Array, dict[str, Any]]] = field(default_factory=dict)

    def pages(self) -> list[tuple[str, Array, dict[str, Any]]]:
        """Name, rows and attributes of each page, by name: those of one writer in the order in which it wrote.

        `StoreError` where one is damaged.
        """
        out = []
        for name in self.store.names(self.group):
            path = f"{self.group}/{name}"
            if not _NAME.fullmatch(name):
                continue
            stamp = self.store.stamp(f"{path}/c/0/0")
            known = self._known.get(name)
            if known is None or stamp is None or known[0] != stamp:
                try:
                    self.store.close(path)
                    known = stamp, self.store.read(path), dict(self.store.array(path).attrs)
                except MissingChunkError:  # a page whose first row was not written to its end
                    continue
                self._known[name] = known
            out.append((name, known[1], known[2]))
        return out


def no_space(url: str, error: OSError) -> StoreError:
    """The error for a row that could not be written."""
    what = os.strerror(error.errno) if error.errno else str(error)
    return StoreError(f"{url}: {what}; what was just done is not kept: mend that and do it again")
