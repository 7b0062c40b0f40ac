"""What a simulation gives: a tomogram and its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.simulate.scene import Float64, StructureTruth
from cryosam_dask.simulate.settings import SimulationSettings
from cryosam_dask.simulate.structures import CLASSES
from cryosam_dask.types import Bool, Float32


class Particle(NamedTuple):
    """A particle of the truth: its mask's centre of mass in voxels, its label, its species."""

    z: float
    y: float
    x: float
    instance: int
    species: str


@dataclass(frozen=True)
class SimulatedTomogram:
    """A tomogram and its truth; volumes are (z, y, x) of the settings' shape.

    tomogram : float32, zero mean and unit deviation
    signal : float32, the tomogram without its noise, in the same units
    labels : int32, instance ids of the particles from 1, in the order of `particles`; 0 elsewhere
    semantic : uint8, 1 + the species' position in the settings, then one number for each of `structures.CLASSES`, from
        membrane to cytosol; 0 is solvent. `number_of` tells a name's number
    particles : one entry for each particle
    settings : what it was made with
    orientations : (M, 3, 3) rotation matrix of each particle, from its template to the tomogram, for vectors (z, y, x)
    structure_labels : int32, numbers of the structures from 1, in the order of `structures`; 0 elsewhere. Masks of
        vesicles and microtubules are their walls. A vesicle beyond the volume's faces may
        have no voxel
    structures : one entry for each structure, the settings' `membranes` first, as vesicles
    """

    tomogram: Float32
    signal: Float32
    labels: NDArray[np.int32]
    semantic: NDArray[np.uint8]
    particles: tuple[Particle, ...]
    settings: SimulationSettings
    orientations: Float64
    structure_labels: NDArray[np.int32]
    structures: tuple[StructureTruth, ...]

    def number_of(self, name: str) -> int:
        """The number of a species or class in `semantic`. Raises InputError when there is no such name."""
        names = [*(s.name for s in self.settings.species), *CLASSES]
        if name not in names:
            raise InputError(f"truth: no species or class {name!r}; there are {', '.join(names)}")
        return names.index(name) + 1

    def structure_mask(self, kind: str) -> Bool:
        """The voxels of all structures of a kind, as `Structure.kind` calls it."""
        keep = np.array([False, *(s.kind == kind for s in self.structures)])
        mask: Bool = keep[self.structure_labels]
        return mask

    def of(self, species: str) -> tuple[Particle, ...]:
        """The particles of one species. Raises InputError when there is no such species."""
        names = [s.name for s in self.settings.species]
        if species not in names:
            raise InputError(f"truth: no species {species!r}; there are {', '.join(names)}")
        return tuple(p for p in self.particles if p.species == species)

    def centres(self, species: str) -> Float64:
        """Centres (M, 3) of one species, in voxels (z, y, x)."""
        return np.array([p[:3] for p in self.of(species)], dtype=np.float64).reshape(-1, 3)

    def labels_of(self, species: str) -> NDArray[np.int32]:
        """`labels` with the other species' particles set to 0."""
        keep = np.zeros(len(self.particles) + 1, dtype=np.int32)
        ids = [p.instance for p in self.of(species)]
        keep[ids] = ids
        return keep[self.labels]
