"""An estimate of the planes that prompts visit, wave by wave, with every instance taken for a ball of one size.

The driver embeds the planes that groups of prompts wait for, runs the groups as far as those planes reach, and so on
(`pipeline`). Here this is simulated with prompts that are spread evenly over the tomogram. Each walker goes
`walk_length` planes, and sees on the last one that the instance has ended.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.settings import PropagationSettings
from cryosam_dask.stages.embed import Plane
from cryosam_dask.types import AXES, Shape3


@dataclass(frozen=True)
class Turn:
    """What one group does in one wave: predictions from a point and from the plane before, and planes it reads."""

    group: int
    first: int
    further: int
    planes: tuple[Plane, ...]


@dataclass(frozen=True)
class Wave:
    """Planes that are embedded, then groups that go on."""

    planes: tuple[Plane, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Reach:
    """Planes that have to be embedded, of all three axes.

    least : if all prompts lie on the same planes
    expected : if prompts are spread evenly
    most : if prompts share no plane and each goes as far as the rules allow
    all : planes of the tomogram; each : planes of one prompt on one axis
    """

    least: int
    expected: int
    most: int
    all: int
    each: int


def spread(shape: Shape3, count: int) -> NDArray[np.float64]:
    """Places (count, 3) spread evenly over a volume, the same each time."""
    return np.random.default_rng(0).uniform(0, np.array(shape) - 1, (count, 3))


def walk_length(diameter: float) -> int:
    """Planes that a walker goes from the middle of a ball of `diameter` voxels, the one where it ends included."""
    return int(diameter / 2) + 1


def plane_reach(shape: Shape3, waves: list[Wave], count: int, settings: PropagationSettings, diameter: float) -> Reach:
    """The range that the number of planes can lie in, with that of `waves` as what to expect of `count` prompts."""
    each = 2 * walk_length(diameter) + 1
    far = max(shape) if settings.rule == "plain" else 2 * round(settings.max_reach * diameter) + 1
    most = sum(min(n, count * far) for n in shape)
    expected = sum(len(wave.planes) for wave in waves)
    return Reach(min(expected, sum(min(n, each) for n in shape)), expected, max(most, expected), sum(shape), each)


def play(
    shape: Shape3,
    points: NDArray[np.float64],
    groups: list[list[int]],
    length: int,
    embedded: set[Plane] | None = None,
) -> list[Wave]:
    """The waves of a segmentation.

    points : (n, 3) prompts; groups : their indices by group; length : see `walk_length`
    embedded : planes that are there from before; those of the waves are added to it
    """
    group_of = np.zeros(len(points), np.int64)
    for index, members in enumerate(groups):
        group_of[members] = index
    there = [np.zeros(n, bool) for n in shape]
    for name, plane in embedded or ():
        there[AXES.index(name)][plane] = True
    # a walker each way for every prompt and axis; both stand on the start plane, which is decoded once
    starts = np.floor(points + 0.5).astype(np.int64)
    prompt, axis, way = (v.ravel() for v in np.meshgrid(np.arange(len(points)), range(3), (-1, 1), indexing="ij"))
    walkers = _Walkers(group_of[prompt], axis, way, starts[prompt, axis], np.array(shape)[axis], length)
    waves: list[Wave] = []
    while len(places := walkers.needed()):
        missing = [(a, int(p)) for a in range(3) for p in np.unique(places[places[:, 0] == a, 1]) if not there[a][p]]
        for a, p in missing:
            there[a][p] = True
        planes = tuple((AXES[a], p) for a, p in missing)
        if embedded is not None:
            embedded.update(planes)
        waves.append(Wave(planes, walkers.advance(there)))
    return waves


class _Walkers:
    """All walkers of a segmentation at once, as arrays."""

    def __init__(
        self,
        group: NDArray[np.int64],
        axis: NDArray[np.int64],
        way: NDArray[np.int64],
        plane: NDArray[np.int64],
        size: NDArray[np.int64],
        length: int,
    ) -> None:
        self.group, self.axis, self.way, self.plane, self.size = group, axis, way, plane.copy(), size
        self.left = np.full(len(group), length + 1)  # planes yet to decode, the start plane included
        self.length = length

    @property
    def _going(self) -> NDArray[np.bool_]:
        return (self.left > 0) & (self.plane >= 0) & (self.plane < self.size)

    def needed(self) -> NDArray[np.int64]:
        """(axis, plane) that each active walker stands before."""
        going = self._going
        return np.stack([self.axis[going], self.plane[going]], axis=1)

    def advance(self, there: list[NDArray[np.bool_]]) -> tuple[Turn, ...]:
        """Step every walker through the planes that are there; what each group did."""
        number = int(self.group.max()) + 1
        first, further = np.zeros(number, np.int64), np.zeros(number, np.int64)
        visits: list[NDArray[np.int64]] = []
        running = np.unique(self.group[self._going])
        while True:
            ready = np.flatnonzero(self._going)
            ready = ready[[bool(there[a][p]) for a, p in zip(self.axis[ready], self.plane[ready], strict=True)]]
            if not len(ready):
                break
            starting = self.left[ready] > self.length
            # the two walkers of a start plane are one prediction
            np.add.at(first, self.group[ready[starting & (self.way[ready] > 0)]], 1)
            np.add.at(further, self.group[ready[~starting]], 1)
            visits.append(np.stack([self.group[ready], self.axis[ready], self.plane[ready]], axis=1))
            self.plane[ready] += self.way[ready]
            self.left[ready] -= 1
        seen: dict[int, list[Plane]] = {}
        for g, a, p in np.unique(np.concatenate(visits), axis=0).tolist() if visits else []:
            seen.setdefault(g, []).append((AXES[a], p))
        return tuple(Turn(int(g), int(first[g]), int(further[g]), tuple(seen.get(int(g), ()))) for g in running)
