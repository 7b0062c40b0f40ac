"""Decisions about the picks of a query: who accepted or rejected which, and when.

Decisions outlive what they are about. Picks are numbered anew whenever a query is segmented again, so a decision keeps
its position, and is matched with picks by that.

Every writer has a log of its own (`store.pages`), and a decision is one row of it. So several browsers and a command
may write at once, none needs the run's lease, and whatever is killed, no decision that was reported as made is lost. A
later decision about a place replaces an earlier one.
"""

from __future__ import annotations

import getpass
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.store import layout, picks
from cryosam_dask.store.pages import PAGE, PageReader, PageWriter, new_writer
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Point

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PAGE", "VERDICTS", "Decision", "ReviewLog", "Verdict", "current", "names", "read", "table", "verdicts"]

Verdict = Literal["accepted", "rejected", "undecided", "added"]

VERDICTS: tuple[Verdict, ...] = ("undecided", "accepted", "rejected", "added")
"""By their numbers in a log. "undecided" takes a decision back; "added" is a particle that no pick was at."""

FIELDS = ("instance", "z", "y", "x", "verdict", "when")
"""Of a row: the pick's label then, 0 for none; its position in voxels; the verdict's number; seconds since 1970."""

SAME_PLACE = 2.0
"""Voxels within which two decisions are about the same place, unless something else is said."""


REACH = 0.5
"""The same of particles, if that is more: share of the radius of a ball as large as they are."""


_Page = tuple[str, Array, dict[str, Any]]
"""Name, rows and attributes, as of `PageReader.pages`."""


@dataclass(frozen=True)
class Decision:
    """A person's verdict about a place.

    instance : the pick's label when it was decided, 0 for none; position : (z, y, x) voxels
    by : who; when : seconds since 1970, UTC
    """

    instance: int
    position: Point
    verdict: Verdict
    by: str = ""
    when: float = 0.0


class ReviewLog:
    """Writes decisions about the picks of a query, as one writer.

    by : the person's name; the user's unless given
    """

    def __init__(self, store: RunStore, name: str, by: str | None = None) -> None:
        self._by = _user() if by is None else by
        writer, described = new_writer(), {"fields": list(FIELDS), "verdicts": list(VERDICTS), "by": self._by}
        self._pages = PageWriter(
            store, lambda page: layout.review_log(name, writer, page), len(FIELDS), "float64", described
        )
        self._lock = threading.Lock()

    def write(self, decisions: Sequence[Decision]) -> list[Decision]:
        """Write decisions; they are on the disk when this returns. Return them with `by` and `when` as written.

        `StoreError` or `OSError` where one could not be written; those before it are.
        """
        written = []
        for decision in decisions:
            with self._lock:
                when = decision.when or time.time()
                self._pages.append(
                    np.array([decision.instance, *decision.position, VERDICTS.index(decision.verdict), when])
                )
            written.append(Decision(decision.instance, decision.position, decision.verdict, self._by, when))
        return written


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def read(store: RunStore, name: str) -> list[Decision]:
    """All decisions about a query's picks, in the order in which they were made; `StoreError` if some are damaged."""
    return _decisions(PageReader(store, layout.reviews(name)).pages())


class ReviewReader:
    """Reads what stands about a query's picks again and again, and only pages of which there is news. For several
    threads."""

    def __init__(self, store: RunStore, name: str) -> None:
        self._reader = PageReader(store, layout.reviews(name))
        self._known: tuple[list[_Page], float, list[Decision]] = ([], 0.0, [])
        self._lock = threading.Lock()

    def current(self, radius: float) -> list[Decision]:
        """As of `current`."""
        with self._lock:
            pages = self._reader.pages()
            before, within, told = self._known
            same = len(pages) == len(before) and all(a[1] is b[1] for a, b in zip(pages, before, strict=True))
            if not same or within != radius:
                told = current(_decisions(pages), radius)
                self._known = pages, radius, told
            return told


def _decisions(pages: Sequence[_Page]) -> list[Decision]:
    every: list[Decision] = []
    for _, rows, attributes in pages:
        by = str(attributes.get("by", ""))
        for instance, z, y, x, verdict, when in rows[rows[:, -1] > 0].tolist():
            if 0 <= verdict < len(VERDICTS):
                every.append(Decision(int(instance), (z, y, x), VERDICTS[int(verdict)], by, when))
    return sorted(every, key=lambda decision: decision.when)


def current(decisions: Sequence[Decision], radius: float = SAME_PLACE) -> list[Decision]:
    """The last decision about each place, oldest first; those that were taken back are left out.

    radius : voxels within which two decisions are about the same place
    """
    from scipy.spatial import cKDTree

    last: list[Decision] = []
    if not decisions:
        return last
    newest = decisions[::-1]
    places = np.array([decision.position for decision in newest])
    tree, taken = cKDTree(places), np.zeros(len(newest), bool)
    for i, decision in enumerate(newest):
        if not taken[i]:
            taken[tree.query_ball_point(places[i], radius)] = True
            last.append(decision)
    return [decision for decision in reversed(last) if decision.verdict != "undecided"]


def verdicts(decisions: Sequence[Decision], places: NDArray[np.float64], radius: float) -> list[Verdict]:
    """The verdict about each of (n, 3) places: that of the nearest current decision within `radius`, each used once."""
    from scipy.spatial import cKDTree

    out: list[Verdict] = ["undecided"] * len(places)
    if not len(places) or not decisions:
        return out
    tree, free = cKDTree(places), np.ones(len(places), bool)
    for decision in decisions:
        near = [i for i in tree.query_ball_point(decision.position, radius) if free[i]]
        if near:
            nearest = min(near, key=lambda i: float(np.linalg.norm(places[i] - decision.position)))
            out[nearest], free[nearest] = decision.verdict, False
    return out


def same_place(size: float) -> float:
    """Voxels within which two decisions are about the same particle of `size` voxels."""
    return max(SAME_PLACE, REACH * geometry.equivalent_radius(size))


def radius(store: RunStore, name: str) -> float:
    """Voxels within which two decisions are about the same particle of a query's kind."""
    path = layout.query_array(name, "sizes")
    return same_place(float(np.median(store.read(path)))) if path in store else SAME_PLACE


def standing(store: RunStore, name: str) -> list[Decision]:
    """The last decision about each particle of a query's kind, oldest first; see `current`."""
    return current(read(store, name), radius(store, name))


def of_picks(store: RunStore, name: str, positions: NDArray[np.float64] | None = None) -> list[Verdict]:
    """The verdict about each pick of a query, in their order; a particle that was added and is a pick now is accepted.

    positions : (n, 3) voxels of the picks, if they have been read
    """
    if positions is None:
        positions = picks.read(store, name)[["z", "y", "x"]].to_numpy(float)
    told = verdicts(standing(store, name), positions, radius(store, name))
    return ["accepted" if verdict == "added" else verdict for verdict in told]


def without_pick(store: RunStore, name: str) -> list[Decision]:
    """Particles that were accepted or added, and are no pick: not yet, or not any more."""
    from scipy.spatial import cKDTree

    wanted = [decision for decision in standing(store, name) if decision.verdict != "rejected"]
    positions = picks.read(store, name)[["z", "y", "x"]].to_numpy(float)
    if not wanted or not len(positions):
        return wanted
    far, _ = cKDTree(positions).query(np.array([decision.position for decision in wanted]))
    return [decision for decision, distance in zip(wanted, far, strict=True) if distance > radius(store, name)]


def table(decisions: Sequence[Decision]) -> pd.DataFrame:
    """Decisions as a table: instance, z, y, x, verdict, by, when (UTC)."""
    import pandas as pd

    rows = [(d.instance, *d.position, d.verdict, d.by, d.when) for d in decisions]
    out = pd.DataFrame(rows, columns=["instance", "z", "y", "x", "verdict", "by", "when"])
    return out.assign(when=pd.to_datetime(out["when"], unit="s", utc=True))


def names(store: RunStore) -> list[str]:
    """Names of the queries about whose picks something was decided."""
    return store.groups(layout.REVIEWS)
