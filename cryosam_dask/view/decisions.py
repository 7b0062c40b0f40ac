"""Current decisions about picks, read again only when pages of their logs have changed."""

from __future__ import annotations

import threading

from cryosam_dask.store import layout, reviews
from cryosam_dask.store.reviews import Decision
from cryosam_dask.store.run_store import RunStore


class Decisions:
    """Decisions of all kinds of a run; may be used by several threads."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, float, list[Decision]]] = {}
        self._lock = threading.Lock()

    def current(self, store: RunStore, name: str, radius: float) -> list[Decision]:
        """The last decision about each place, as of `reviews.current`."""
        group = layout.reviews(name)
        with self._lock:
            stamp = [store.stamp(f"{group}/{page}/c/0/0") for page in store.names(group)]
            known = self._known.get(name)
            if known is None or known[0] != stamp or known[1] != radius:
                told = reviews.current(reviews.read(store, name), radius) if stamp else []
                known = self._known[name] = stamp, radius, told
            return known[2]
