"""Crowds: particles packed by their own masks, which may touch but never overlap, and a cytosol around them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryosam_dask.errors import SettingsError
from cryosam_dask.simulate.scene import Float64, Slices
from cryosam_dask.simulate.settings import SimulationSettings
from cryosam_dask.simulate.shapes import Template, template
from cryosam_dask.simulate.species import Species
from cryosam_dask.types import Bool, Float32, Shape3

_TRIES = 3000  # random places that are tried for one particle
_STEP = 0.5  # voxels, of a particle that is moved until it touches another
CYTOSOL_NM = (4.0, 9.0)  # diameters of globules
_GLOBULES = 40  # different globules, in size, form and rotation
_BATCH = 4096  # places that are drawn at once
_MOST_BATCHES = 200


class Packed(NamedTuple):
    """Particles that were packed, for each species: centres (count, 3) in voxels, rotations; int32 labels of all,
    numbered species by species from 1."""

    centres: list[Float64]
    rotations: list[Rotation]
    labels: NDArray[np.int32]


class _Stamp(NamedTuple):
    """A mask cut to its bounding box; `low` is the box's first voxel from the voxel that the centre is in."""

    mask: Bool
    low: NDArray[np.intp]

    def box(self, voxel: NDArray[np.intp]) -> Slices:
        z, y, x = (slice(int(a), int(a + n)) for a, n in zip(voxel + self.low, self.mask.shape, strict=True))
        return z, y, x


def _stamp(occupancy: Float32, rotation: Rotation, shift: Float64) -> _Stamp:
    """The mask of a template that is turned about its middle and shifted by less than a voxel."""
    middle = (np.array(occupancy.shape) - 1) / 2
    inverse = rotation.inv().as_matrix()
    turned = ndimage.affine_transform(occupancy, inverse, middle - inverse @ (middle + shift), order=1)
    mask = turned >= min(0.5, turned.max())  # at least a voxel
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return _Stamp(mask[box], np.array([s.start for s in box]) - middle.astype(np.intp))


def _lies_inside(stamp: _Stamp, voxel: NDArray[np.intp], shape: Shape3) -> bool:
    low = voxel + stamp.low
    return bool((low >= 1).all() and (low + stamp.mask.shape <= np.array(shape) - 1).all())


class _Packer:
    """The volume as it fills up."""

    def __init__(self, blocked: Bool, rng: np.random.Generator) -> None:
        self.taken = blocked.copy()
        self.shape: Shape3 = (blocked.shape[0], blocked.shape[1], blocked.shape[2])
        self.labels = np.zeros(blocked.shape, dtype=np.int32)
        self.rng = rng
        self.placed: list[tuple[Float64, float]] = []  # centres and radii

    def place(self, model: Template, share: float, instance: int) -> tuple[Float64, Rotation] | None:
        """Find a place for a particle and take it: its centre in voxels and its rotation; None if there is none."""
        rotation = Rotation.random(None, self.rng)
        shift = self.rng.uniform(0, 1, 3)
        stamp = _stamp(model.occupancy, rotation, shift)
        against = bool(self.placed) and self.rng.uniform() < share
        voxel = self._against(stamp, model.radius) if against else None
        voxel = self._anywhere(stamp) if voxel is None else voxel
        if voxel is None:
            return None
        box = stamp.box(voxel)
        self.taken[box] |= stamp.mask
        self.labels[box][stamp.mask] = instance
        centre = voxel + shift
        self.placed.append((centre, model.radius))
        return centre, rotation

    def _is_free(self, stamp: _Stamp, voxel: NDArray[np.intp]) -> bool:
        return _lies_inside(stamp, voxel, self.shape) and not (self.taken[stamp.box(voxel)] & stamp.mask).any()

    def _anywhere(self, stamp: _Stamp) -> NDArray[np.intp] | None:
        low = 1 - stamp.low
        high = np.array(self.labels.shape) - 1 - stamp.low - stamp.mask.shape + 1
        if (high <= low).any():
            return None
        for voxel in self.rng.integers(low, high, (_TRIES, 3)):
            if not (self.taken[stamp.box(voxel)] & stamp.mask).any():
                return np.asarray(voxel)
        return None

    def _against(self, stamp: _Stamp, radius: float) -> NDArray[np.intp] | None:
        """Where the particle comes free of a neighbour that it is moved away from, in a random direction."""
        for _ in range(60):
            centre, other = self.placed[self.rng.integers(len(self.placed))]
            direction = self.rng.normal(size=3)
            direction /= np.linalg.norm(direction)
            before = None
            for distance in np.arange(0.3 * min(radius, other), radius + other + 3, _STEP):
                voxel = np.floor(centre + distance * direction).astype(np.intp)
                if not _lies_inside(stamp, voxel, self.shape):
                    break
                if before is not None and self._is_free(stamp, voxel):
                    if self.labels[stamp.box(before)][stamp.mask].any():  # it was a particle that was in the way
                        return voxel
                    break
                before = voxel
        return None


def pack_particles(
    settings: SimulationSettings, templates: list[Template], blocked: Bool, rng: np.random.Generator
) -> Packed:
    """Pack the species' particles where nothing is blocked, the largest first.

    `settings.touching` of them are moved against another particle, as far as there is room; the others stand
    anywhere. Masks lie inside the volume and don't overlap. Raises SettingsError when they don't fit.
    """
    packer = _Packer(blocked, rng)
    counts = [s.count for s in settings.species]
    centres: list[Float64] = [np.zeros((n, 3)) for n in counts]
    turns: list[list[Rotation]] = [[] for _ in counts]
    for k in sorted(range(len(counts)), key=lambda i: -templates[i].radius):
        for i in range(counts[k]):
            place = packer.place(templates[k], settings.touching or 0.0, sum(counts[:k]) + i + 1)
            if place is None:
                spec = settings.species[k]
                raise SettingsError(
                    f"simulation: only {i} of {spec.count} particles of {spec.name} ({spec.diameter:g} nm) fit in "
                    f"{settings.shape} voxels; ask for fewer particles or a larger shape"
                )
            centres[k][i] = place[0]
            turns[k].append(place[1])
    rotations = [Rotation.concatenate(t) if t else Rotation.identity(0) for t in turns]
    return Packed(centres, rotations, packer.labels)


def _globules(voxel_size: float, rng: np.random.Generator) -> list[tuple[_Stamp, Float32]]:
    """Masks and densities of globules; the densities lie on the boxes of the masks, with a voxel around them."""
    globules = []
    for diameter in rng.uniform(*CYTOSOL_NM, _GLOBULES):
        model = template(Species("globule", "globule", float(diameter), 1, float(rng.uniform(0.8, 1.2))), voxel_size)
        rotation, shift = Rotation.random(None, rng), rng.uniform(0, 1, 3)
        stamp = _stamp(np.pad(model.occupancy, 1), rotation, shift)
        middle = (np.array(model.density.shape) + 1) / 2
        inverse = rotation.inv().as_matrix()
        offset = middle - inverse @ (middle + shift)
        turned = ndimage.affine_transform(np.pad(model.density, 1), inverse, offset, order=1)
        low = stamp.low + middle.astype(np.intp) - 1
        z, y, x = (slice(int(a), int(a + n + 2)) for a, n in zip(low, stamp.mask.shape, strict=True))
        globules.append((stamp, turned[z, y, x].astype(np.float32)))
    return globules


def fill_cytosol(
    settings: SimulationSettings, taken: Bool, density: Float32, offset: Shape3, rng: np.random.Generator
) -> Bool:
    """Fill `settings.cytosol` of the volume with globules that overlap nothing that is taken; their mask.

    The volume's faces cut globules, as they cut a real cytosol. Densities are added in place to `density`, in which
    the volume begins at `offset`. Raises SettingsError when so many don't fit.
    """
    globules = _globules(settings.voxel_size, rng)
    margin = max(int(np.max([s.mask.shape for s, _ in globules])), 1) + 2
    full = np.pad(taken, margin, mode="edge")
    cytosol = np.zeros_like(full)
    inside = tuple(slice(margin, margin + n) for n in settings.shape)
    counted = np.zeros_like(full)
    counted[inside] = True
    shift = np.asarray(offset) - margin
    wanted, filled = int(settings.cytosol * taken.size), 0
    low = np.max([1 - s.low for s, _ in globules], axis=0)
    high = np.min([np.array(full.shape) - 1 - s.low - s.mask.shape for s, _ in globules], axis=0)
    for _ in range(_MOST_BATCHES):
        places = rng.integers(low, high, (_BATCH, 3))
        kinds = rng.integers(len(globules), size=_BATCH)
        for k in np.flatnonzero(~full[tuple(places.T)]):  # most places are refused by their middle alone
            if filled >= wanted:
                return cytosol[inside]
            stamp, image = globules[kinds[k]]
            box = stamp.box(places[k])
            if full[box][stamp.mask].any():
                continue
            full[box] |= stamp.mask
            cytosol[box] |= stamp.mask
            filled += int((counted[box] & stamp.mask).sum())
            z, y, x = (slice(int(s.start + o - 1), int(s.stop + o + 1)) for s, o in zip(box, shift, strict=True))
            density[z, y, x] += image
    raise SettingsError(
        f"simulation setting cytosol: expected a share that fits, found {settings.cytosol:g}; "
        f"{filled / taken.size:.2f} of the volume could be filled"
    )
