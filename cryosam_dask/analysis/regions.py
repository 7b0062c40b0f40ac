"""Number and volume of instances in parts of a tomogram."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.analysis.instances import compute
from cryosam_dask.analysis.volumes import BLOCK, RunVolume, Volume, checked_box, inside, labels_of, named_volume
from cryosam_dask.errors import InputError
from cryosam_dask.geometry import Box
from cryosam_dask.outputs.results import single_name
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Axis, Point

if TYPE_CHECKING:
    import xarray as xr

Counts = NDArray[np.int64]
_COUNTED = 1 << 20  # numbers of regions that are counted by place, which is quicker than by sorting
_LARGEST = 2.0**53  # numbers of regions in floating point


def slabs(run: str | Path, axis: Axis = "z", thickness: float = 20.0) -> dict[str, Box]:
    """Cut a tomogram into slabs, to be the `regions` of `density`.

    axis : "z", "y" or "x"; thickness : nm, rounded to whole voxels, one at least; the last slab may be thinner

    Returns boxes by name, as `z 0-20 nm`: ((start, stop) along z, y, x) in voxels.
    """
    store = RunStore.open(run)
    if axis not in AXES:
        raise InputError(f"axis {axis!r}: expected z, y or x")
    if not (math.isfinite(thickness) and thickness > 0):
        raise InputError(f"thickness: expected nanometres above 0, found {thickness!r}")
    at = geometry.axis_index(axis)
    size = store.voxel_size[at] / 10
    regions = {}
    for start, stop in geometry.slabs(store.shape[at], max(1, round(thickness / size))):
        sides = [(0, n) for n in store.shape]
        sides[at] = (start, stop)
        regions[f"{axis} {start * size:g}-{stop * size:g} nm"] = (sides[0], sides[1], sides[2])
    return regions


def density(run: str | Path, regions: Any = None, *, name: str | None = None, margin: float = 0.0) -> xr.Dataset:
    """Number of instances, number density and volume fraction in each region.

    Parameters
    ----------
    run : the run's store; name : the query; may be left out where there is one only
    regions : None: the whole tomogram. Boxes by name, {"top": ((z0, z1), (y0, y1), (x0, x1)), …} in voxels, the stops
        excluded, as `slabs` makes them. Or labels, of which each number but 0 is a region: those of another query of
        this run, a file or URL that `open_tomogram` reads, or an array (z, y, x) of NumPy, Dask, zarr or xarray
    margin : nm from each face of the tomogram that are left out, of regions and of instances alike

    Returns
    -------
    A Dataset with the dimension `region` (names of boxes, numbers of labels) and

    - `number`: instances of which the centre lies in the region
    - `region_volume` (µm³), `number_density` (1/µm³), `number_density_error`: √number over the volume, what counting
      alone leaves uncertain if instances lie independently
    - `occupied_volume` (µm³), `volume_fraction`: what the painted masks fill of the region

    Edges. An instance belongs to the region of its centre, so that regions that share a border count it once, and
    numbers of regions add up. Volume fractions need no correction: a voxel is filled or not, whatever lies outside
    (Delesse's principle). Numbers are too small near the tomogram's faces, where particles that are cut are missed or
    their centres moved inwards; a `margin` of one particle's diameter leaves that zone out (minus-sampling). Faces
    between regions are no edges in this sense.

    Voxels are read in blocks on the current Dask scheduler. Raises `InputError` for regions that don't fit.
    """
    import xarray as xr

    store = RunStore.open(run)
    chosen = single_name(store, name)
    places = np.rint(picks.read(store, chosen)[list(AXES)].to_numpy(float)).astype(np.int64)
    window = _window(store, margin)
    filled = labels_of(store, layout.semantic_name(chosen))
    regions = {"all": _whole(store)} if regions is None else regions
    keys: Any
    if isinstance(regions, Mapping):
        boxes = {str(key): checked_box(store, f"region {key}", box) for key, box in regions.items()}
        keys, counts = _in_boxes(boxes, window, places, filled)
    else:
        _, volume = named_volume(store, regions, "regions")
        keys, counts = _in_labels(volume, window, places, filled)
    return xr.Dataset(
        _figures(counts, store.voxel_size),
        {"region": keys},
        {"run": store.url, "query": chosen, "margin": float(margin)},
    )


def _figures(counts: Counts, voxel_size: Point) -> dict[str, Any]:
    """Variables from (regions, 3) counts: voxels, filled voxels, instances."""
    voxel = math.prod(v / 1e4 for v in voxel_size)
    voxels, filled, number = counts.T
    volume = voxels * voxel
    with np.errstate(invalid="ignore", divide="ignore"):
        values = {
            "number": (number, "", "instances with their centre in the region"),
            "region_volume": (volume, "um^3", "volume of the region"),
            "number_density": (np.where(voxels > 0, number / volume, np.nan), "um^-3", "instances per volume"),
            "number_density_error": (
                np.where(voxels > 0, np.sqrt(number) / volume, np.nan), "um^-3", "counting error",
            ),
            "occupied_volume": (filled * voxel, "um^3", "volume of the masks in the region"),
            "volume_fraction": (np.where(voxels > 0, filled / voxels, np.nan), "", "share that the masks fill"),
        }  # fmt: skip
    return {
        key: ("region", array, {"long_name": words} | ({"units": unit} if unit else {}))
        for key, (array, unit, words) in values.items()
    }


def _whole(store: RunStore) -> Box:
    z, y, x = ((0, n) for n in store.shape)
    return z, y, x


def _window(store: RunStore, margin: float) -> Box:
    """Voxels that are wholly at least `margin` nm from each face."""
    if not (math.isfinite(margin) and margin >= 0):
        raise InputError(f"margin: expected nanometres from 0 on, found {margin!r}")
    sides = []
    for length, size in zip(store.shape, store.voxel_size, strict=True):
        skip = math.ceil(margin / (size / 10) - 1e-9)
        if 2 * skip >= length:
            raise InputError(f"margin {margin:g} nm: nothing is left of a tomogram of {store.shape} voxels (z, y, x)")
        sides.append((skip, length - skip))
    return sides[0], sides[1], sides[2]


def _in_boxes(regions: dict[str, Box], window: Box, places: Counts, filled: RunVolume) -> tuple[list[str], Counts]:
    counts = np.zeros((len(regions), 3), np.int64)
    jobs, owners = [], []
    for at, box in enumerate(regions.values()):
        common = geometry.intersect(box, window)
        if common is None:
            continue
        low, high = np.array(common).T
        counts[at, 0] = math.prod(b - a for a, b in common)
        counts[at, 2] = ((places >= low) & (places < high)).all(1).sum()
        # blocks of whole chunks, cut to the box
        parts = [part for block in geometry.boxes(filled.shape, BLOCK) if (part := geometry.intersect(block, common))]
        jobs += [(part,) for part in parts]
        owners += [at] * len(parts)
    np.add.at(counts[:, 1], owners, np.array(compute(_filled, jobs, filled), np.int64))
    return list(regions), counts


def _filled(labels: RunVolume, box: Box) -> int:
    return int(np.count_nonzero(labels.read(box)))


def _in_labels(volume: Volume, window: Box, places: Counts, filled: RunVolume) -> tuple[Counts, Counts]:
    jobs = []
    for block in geometry.boxes(filled.shape, BLOCK):
        if (box := geometry.intersect(block, window)) is not None:
            low, high = np.array(box).T
            jobs.append((box, places[((places >= low) & (places < high)).all(1)]))
    parts = compute(_of_block, jobs, volume, filled)
    numbers = np.concatenate([np.zeros(0, np.int64), *(numbers for numbers, _ in parts)])
    keys, where = np.unique(numbers, return_inverse=True)
    counts = np.zeros((len(keys), 3), np.int64)
    np.add.at(counts, where, np.concatenate([np.zeros((0, 3), np.int64), *(part_counts for _, part_counts in parts)]))
    return keys, counts


def _of_block(volume: Volume, filled: RunVolume, box: Box, places: Counts) -> tuple[Counts, Counts]:
    """Numbers of the regions in a block, and for each its voxels, those that are filled, and the instances."""
    values = volume.read(box)
    held = inside(values)
    if values.dtype.kind == "f":
        given = values[held]
        if (odd := given[~((np.abs(given) < _LARGEST) & (given == np.rint(given)))]).size:
            raise InputError(f"regions: expected whole numbers, one for each region, found {odd[0]:g}")
    regions = np.where(held, values, 0).astype(np.int64)
    if not regions.any():
        return np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
    if regions.min() >= 0 and regions.max() < _COUNTED:
        numbers, where = np.arange(regions.max() + 1), regions
    else:
        numbers, where = np.unique(regions, return_inverse=True)
        where = where.reshape(regions.shape)
    at: Array = where[tuple((places - [a for a, _ in box]).T)]
    kinds = (where.ravel(), where[filled.read(box) != 0], at)
    counts = np.stack([np.bincount(kind, minlength=len(numbers)) for kind in kinds], axis=1).astype(np.int64)
    there = (numbers != 0) & (counts[:, 0] > 0)
    return numbers[there], counts[there]
