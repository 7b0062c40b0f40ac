"""Review picks: whose instance numbers or points are given is accepted, rejected or added; and learn from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.io.points.plausible import check_points
from cryosam_dask.pipeline import checks
from cryosam_dask.store import picks, reviews
from cryosam_dask.store.reviews import VERDICTS, Decision, ReviewLog, Verdict
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Point

if TYPE_CHECKING:
    from cryosam_dask.pipeline.driver import Driver

Float64 = NDArray[np.float64]

_NUMBERED: tuple[Verdict, ...] = ("accepted", "rejected", "undecided")


@dataclass
class Reviewed:
    """What `review` wrote.

    decisions : in the order of writing; notes : sentences about points that are at no pick
    """

    decisions: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def review(
    run: str | Path,
    name: str,
    *,
    accept: ArrayLike = (),
    reject: ArrayLike = (),
    undecide: ArrayLike = (),
    add: ArrayLike = (),
    decide: Sequence[tuple[Verdict, ArrayLike]] = (),
    by: str | None = None,
) -> Reviewed:
    """Write decisions about the picks of a query into the run. A later decision about a particle replaces earlier ones.

    Parameters
    ----------
    accept, reject, undecide : (n,) instance numbers of picks, or (n, 3) voxels (z, y, x) at picks, each of which means
        the nearest pick within a particle's radius. `undecide` takes a decision back, also one about what is no pick
        any more
    add : (n, 3) voxels on particles that have no pick; one that has is accepted
    decide : verdicts, each with (n, 3) voxels; they are about the very places, whether a pick is there or not
    by : the person's name; None: the user's

    Raises InputError for an instance that there is not, for one with two verdicts, and where none of several points is
    at a pick; StoreError where there are no picks. Nothing is written then.
    """
    store = RunStore.open(run, "r+")
    checks.queried(store, name)
    among, out = _Picks.of(store, name), Reviewed()
    for verdict, given in zip(_NUMBERED, (accept, reject, undecide), strict=True):
        out.decisions += among.decided(np.asarray(given, float), verdict, out.notes)
    out.decisions += among.added(np.asarray(add, float))
    for verdict, given in decide:
        out.decisions += _about_places(store, verdict, given)
    _check_once(store, out.decisions)
    out.decisions = ReviewLog(store, name, by).write(out.decisions)
    return out


def refine(driver: Driver, name: str, *, find: bool = True) -> list[str]:
    """Learn from the decisions about a query's picks, and unless told not to, match and segment again.

    Returns the names that are, or are to be, segmented together: with the kinds that the picks competed with.
    """
    with driver.command(f"refine {name}"):
        names = driver.refine(name)
        if find:
            driver.match(name)
            driver.segment(names if len(names) > 1 else name)
    return names


@dataclass(frozen=True)
class _Picks:
    """The picks of a query, and what stands about them and other places.

    instances : (n,) labels; positions : (n, 3) voxels; stand : decisions; reach : a particle's radius in voxels
    """

    store: RunStore
    instances: NDArray[np.int64]
    positions: Float64
    stand: list[Decision]
    reach: float

    @classmethod
    def of(cls, store: RunStore, name: str) -> _Picks:
        table = picks.read(store, name)
        instances, positions = table["instance"].to_numpy(np.int64), table[list(AXES)].to_numpy(float)
        reach = reviews.radius(store, name) / reviews.REACH
        return cls(store, instances, positions, reviews.standing(store, name), reach)

    def decided(self, given: Float64, verdict: Verdict, notes: list[str]) -> list[Decision]:
        """The verdict about picks by their numbers (n,), or by points (n, 3); a note counts points that are at none."""
        if not given.size:
            return []
        if given.ndim == 1:
            return [self._numbered(number, verdict) for number in given.tolist()]
        instances, places = self.instances, self.positions
        if verdict == "undecided":
            others = [decision for decision in self.stand if not len(self._at(np.array([decision.position])))]
            instances = np.concatenate([instances, np.zeros(len(others), np.int64)])
            places = np.concatenate([places, np.array([d.position for d in others], float).reshape(-1, 3)])
        near = _nearest(_points(given), places, self.reach)
        if (lost := int((near < 0).sum())) == len(near):
            raise InputError(f"{self.store.url}: none of {len(near)} points that are {verdict} is at a pick")
        if lost:
            what = "; --add makes particles of those that have no pick" if verdict == "accepted" else ""
            notes.append(f"{lost} of {len(near)} points that are {verdict} are at no pick, and were left out{what}")
        chosen = np.unique(near[near >= 0])
        return [Decision(int(instances[i]), _point(places[i]), verdict) for i in chosen]

    def added(self, given: Float64) -> list[Decision]:
        """Particles at points (n, 3) that lie in the tomogram; of a pick's, that it is accepted."""
        if not given.size:
            return []
        out = []
        for point in check_points(_points(given), self.store.shape, "added points"):
            at = self._at(point[None])
            told = Decision(int(self.instances[at[0]]), _point(self.positions[at[0]]), "accepted") if len(at) else None
            out.append(told or Decision(0, _point(point), "added"))
        return out

    def _at(self, point: Float64) -> NDArray[np.intp]:
        """The pick (1,) that a point (1, 3) is at; (0,) where there is none."""
        near = _nearest(point, self.positions, self.reach * reviews.REACH)
        return near[near >= 0]

    def _numbered(self, number: float, verdict: Verdict) -> Decision:
        index = np.flatnonzero(self.instances == number)
        if not len(index):
            there = f"1 to {self.instances.max()}" if len(self.instances) else "none"
            raise InputError(f"{self.store.url}: no instance {number:g} among the picks; there are {there}")
        return Decision(int(number), _point(self.positions[index[0]]), verdict)


def _about_places(store: RunStore, verdict: Verdict, given: ArrayLike) -> list[Decision]:
    """The verdict about places, (n, 3) or one of them, that lie in the tomogram."""
    if verdict not in VERDICTS:
        raise InputError(f"verdict {str(verdict)[:20]!r}: expected one of {', '.join(VERDICTS)}")
    places = check_points(_points(np.atleast_2d(np.asarray(given, float))), store.shape, f"{verdict} places")
    return [Decision(0, _point(place), verdict) for place in places]


def _check_once(store: RunStore, decided: Sequence[Decision]) -> None:
    """InputError where a pick gets two verdicts at once."""
    told: dict[int, Verdict] = {}
    for decision in decided:
        if decision.instance and (other := told.setdefault(decision.instance, decision.verdict)) != decision.verdict:
            raise InputError(f"{store.url}: instance {decision.instance} is {other} and {decision.verdict} at once")


def _nearest(points: Float64, places: Float64, reach: float) -> NDArray[np.intp]:
    """Which of (n, 3) places is nearest to each of (m, 3) points, −1 where none is within `reach`."""
    from scipy.spatial import cKDTree

    if not len(places):
        return np.full(len(points), -1)
    _, near = cKDTree(places).query(points, distance_upper_bound=reach)
    return np.where(near < len(places), near, -1)


def _points(given: Float64) -> Float64:
    if given.ndim != 2 or given.shape[1] != 3 or not np.isfinite(given).all():
        raise InputError(f"points of shape {given.shape}: expected numbers Z,Y,X of each, or instances' numbers")
    return given


def _point(position: Float64) -> Point:
    z, y, x = (float(v) for v in position)
    return z, y, x
