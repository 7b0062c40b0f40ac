"""The volume that structures are drawn into, with a margin around it, and what has been drawn so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.simulate.imaging import padding
from cryosam_dask.simulate.settings import SimulationSettings
from cryosam_dask.types import Bool, Float32, Shape3

Float64 = NDArray[np.float64]
Slices = tuple[slice, slice, slice]

TRIES = 300  # random places that are tried for one structure


class StructureTruth(NamedTuple):
    """A structure of the truth: its number in `structure_labels`, and its kind, as `Structure.kind` calls it."""

    instance: int
    kind: str


@dataclass
class Scene:
    """Structures as they are drawn; everything is (z, y, x).

    settings : what is simulated
    density : float32, padded (see `padding`), of all structures but gold
    gold : float32, padded, of gold beads; None where there are none
    labels : int32, of the tomogram's shape, numbers of structures; 0 elsewhere
    lumens : bool, of the tomogram's shape, the inside of microtubules, which stays empty
    structures : one for each number, from 1
    """

    settings: SimulationSettings
    density: Float32
    labels: NDArray[np.int32]
    lumens: Bool
    gold: Float32 | None = None
    structures: list[StructureTruth] = field(default_factory=list)

    @classmethod
    def empty(cls, settings: SimulationSettings) -> Scene:
        """A scene without structures."""
        padded, _ = padding(settings)
        return cls(
            settings, np.zeros(padded, np.float32), np.zeros(settings.shape, np.int32), np.zeros(settings.shape, bool)
        )

    @property
    def voxel(self) -> float:
        """Nanometres of a voxel's side."""
        return self.settings.voxel_size / 10

    @property
    def offset(self) -> Shape3:
        """Where the tomogram begins in the padded volume, voxels."""
        return padding(self.settings)[1]

    @property
    def inside(self) -> Slices:
        """The tomogram's part of the padded volume."""
        (z, y, x), (d, h, w) = self.offset, self.settings.shape
        return slice(z, z + d), slice(y, y + h), slice(x, x + w)

    @property
    def extent(self) -> Float64:
        """(3,) nanometres of the tomogram's sides; positions of structures are nanometres from its first voxel."""
        return np.asarray(self.settings.shape) * self.voxel

    def number(self, kind: str, mask: Bool, box: Slices | None = None) -> None:
        """Give the next number to the voxels of a mask that have none, in a box of the tomogram or in all of it."""
        self.structures.append(StructureTruth(len(self.structures) + 1, kind))
        view = self.labels if box is None else self.labels[box]
        view[mask & (view == 0)] = len(self.structures)

    def hits(self, points: Float64) -> bool:
        """Whether any of the points (N, 3), nanometres, is on a structure that has been drawn."""
        index = np.rint(points / self.voxel).astype(int)
        index = index[((index >= 0) & (index < self.settings.shape)).all(axis=1)]
        place = tuple(index.T)
        return bool(self.labels[place].any() or self.lumens[place].any())

    def window(self, low: Float64, high: Float64) -> tuple[Slices, Slices, Slices]:
        """A box of nanometres in the padded volume; its part that is in the tomogram, in the box's own indices and in
        the tomogram's."""
        padded, inner, outer = [], [], []
        for a, b, offset, size, whole in zip(
            low / self.voxel, high / self.voxel, self.offset, self.settings.shape, self.density.shape, strict=True
        ):
            start = int(np.clip(np.floor(max(a, -1e6)) + offset, 0, whole))
            stop = int(np.clip(np.ceil(min(b, 1e6)) + 1 + offset, start, whole))
            first, last = np.clip([start, stop], offset, offset + size)
            padded.append(slice(start, stop))
            inner.append(slice(int(first) - start, int(last) - start))
            outer.append(slice(int(first) - offset, int(last) - offset))
        return (
            (padded[0], padded[1], padded[2]),
            (inner[0], inner[1], inner[2]),
            (outer[0], outer[1], outer[2]),
        )

    def grid(self, box: Slices) -> tuple[Float32, Float32, Float32]:
        """Open grids of the nanometres z, y, x of a box of the padded volume."""
        z, y, x = (
            ((np.arange(s.start, s.stop) - o) * self.voxel).astype(np.float32)
            for s, o in zip(box, self.offset, strict=True)
        )
        return z[:, None, None], y[:, None], x
