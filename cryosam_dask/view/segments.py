"""The instances of a query as the viewer shows them: labels, boxes and masks."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.geometry import Box
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool
from cryosam_dask.view.status import NotThereError


class Segments:
    """The picks of a query and their masks, which are read when asked for; used by several threads.

    labels : (n,) of the instances, best first
    """

    def __init__(self, store: RunStore, name: str) -> None:
        table = picks.read(store, name)
        pieces = picks.pieces(store, name, table)
        self.labels: NDArray[np.int64] = table["instance"].to_numpy(np.int64)
        order = np.argsort(pieces[:, 0], kind="stable")
        labels, starts = np.unique(pieces[order, 0], return_index=True)
        parts = np.split(pieces[order, 1:], starts[1:])
        self._places = dict(zip(labels.tolist(), parts, strict=True)) if len(labels) else {}
        self._masks = stored.Masks(store, layout.instances(name))
        self._lock = threading.Lock()

    def mask(self, label: int) -> tuple[Bool, Box]:
        """The mask of an instance in its box; of an extended structure, of all its pieces."""
        if label not in self._places:
            raise NotThereError(f"no instance {label}")
        with self._lock:
            return self._masks.union(self._places[label])
