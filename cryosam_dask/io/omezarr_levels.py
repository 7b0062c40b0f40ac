"""Which of an OME-Zarr image's levels is the finest.

The specification asks for levels from the finest to the coarsest (https://ngff.openmicroscopy.org/0.5/, multiscales);
not all programs write them so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import zarr

from cryosam_dask.errors import InputError
from cryosam_dask.geometry import SAME_SIZE
from cryosam_dask.io.frame import shown
from cryosam_dask.io.ngff import axes_and_units, spatial_axes, transform
from cryosam_dask.io.omezarr_open import level_array
from cryosam_dask.types import AXES, Point, Shape3

_MOST_LEVELS = 32  # each is half as large as the one before
_UNEQUAL, _CUT = (
    1.5,
    2,
)  # the ratio of two levels' lengths, and voxels that halving drops or adds: beyond both is a fault


@dataclass(frozen=True)
class _Level:
    """A level with its voxels (z, y, x), None where its array can't be read, and its scale (z, y, x), if it has one."""

    dataset: dict[str, Any]
    shape: Shape3 | None
    scale: Point | None

    @property
    def name(self) -> str:
        return repr(shown(self.dataset["path"]))

    @property
    def voxels(self) -> int:
        return math.prod(self.shape or (0,))

    @property
    def size(self) -> float:
        """A voxel's volume; without a scale it is taken for the coarsest."""
        return math.prod(self.scale) if self.scale else math.inf

    def is_finer(self, other: _Level) -> bool:
        """By the scales alone."""
        return self.size < other.size * (1 - SAME_SIZE) if other.scale else False


def finest_level(
    group: zarr.Group, url: str, multiscale: dict[str, Any], sized: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The dataset of the finest level, the one with the most voxels, with notes; an array that can't be read is the
    finest where its scale says so, or where it is the first and nothing does. `sized`: the user gives the voxel size.

    Only metadata is read. Raises InputError where shapes and scales tell another level each, unless `sized`.
    """
    unique: dict[str, dict[str, Any]] = {}
    for dataset in multiscale["datasets"]:
        unique.setdefault(dataset["path"], dataset)
    datasets = list(unique.values())
    if len(datasets) > _MOST_LEVELS:
        raise InputError(
            f"{url}: damaged OME-Zarr metadata: {len(datasets)} levels, expected {_MOST_LEVELS} at most; name one, as "
            f"{url}/{shown(datasets[0]['path'])}"
        )
    first = datasets[0]
    if len(datasets) == 1:
        return first, ()
    levels = [_level(group, url, multiscale, dataset) for dataset in datasets]
    finest = max(levels, key=lambda level: (level.voxels, -level.size))
    for level in levels:
        unknown = level.dataset is first and (level.scale is None or finest.scale is None)
        if level.shape is None and (unknown or level.is_finer(finest)):
            return level.dataset, ()  # opening it says what is wrong
    notes = () if sized else _scale_notes(url, levels, finest)
    if finest.dataset is not first:
        shape = " x ".join(map(str, finest.shape or ()))
        notes = (f"its levels are not listed from fine to coarse; the finest, {finest.name} ({shape}), is read", *notes)
    return finest.dataset, notes


def _level(group: zarr.Group, url: str, multiscale: dict[str, Any], dataset: dict[str, Any]) -> _Level:
    where, shape = f"{url}/{dataset['path']}", None
    try:
        array = level_array(group, url, dataset["path"])
        names, _ = axes_and_units(where, multiscale, array.ndim)
        z, y, x = (int(array.shape[axis]) for axis in spatial_axes(where, names, array.shape))
        shape = (z, y, x)
    except InputError:  # opening it again says why, if it is the one that is read
        pass
    return _Level(dataset, shape, _scale(where, multiscale, dataset))


def _scale(where: str, multiscale: dict[str, Any], dataset: dict[str, Any]) -> Point | None:
    axes = multiscale.get("axes", list("tczyx"))
    ndim = len(axes) if isinstance(axes, list) else 0
    try:
        names, _ = axes_and_units(where, multiscale, ndim)
        scale, _ = transform(where, multiscale, dataset, ndim)
    except InputError:
        return None
    if scale is None or any(names.count(axis) != 1 for axis in AXES):
        return None
    z, y, x = (scale[names.index(axis)] for axis in AXES)
    return (z, y, x) if min(z, y, x) > 0 else None


def _scale_notes(url: str, levels: list[_Level], finest: _Level) -> tuple[str, ...]:
    """A note where a level's scale does not fit its shape, as where all have that of the finest."""
    odd = None
    for level in levels:
        if level.shape is None or level.scale is None or finest.scale is None:
            continue
        if level.is_finer(finest):
            scales = f"{_in_words(finest.scale)} and {_in_words(level.scale)} along z, y, x"
            raise InputError(
                f"{url}: its levels contradict each other: {finest.name} has more voxels than {level.name} and, by its "
                f"scale, larger ones ({scales}): name one with its voxel size, as "
                f"{url}/{shown(finest.dataset['path'])} --voxel-size ÅNGSTRÖM"
            )
        if odd is None and not _equally_long(level, finest):
            odd = level
    if odd is None or odd.scale is None or finest.scale is None:
        return ()
    return (
        f"its levels' scales don't fit their shapes ({_in_words(finest.scale)} of {finest.name}, "
        f"{_in_words(odd.scale)} of {odd.name}); that of {finest.name} is taken, if it is wrong, give the voxel size "
        "with --voxel-size ÅNGSTRÖM",
    )


def _equally_long(level: _Level, finest: _Level) -> bool:
    """Whether shape and scale of both give a box of about the same sides."""
    rows = zip(level.shape or (), level.scale or (), finest.shape or (), finest.scale or (), strict=True)
    for n, step, n_finest, step_finest in rows:
        a, b = n * step, n_finest * step_finest
        if abs(a - b) > _CUT * max(step, step_finest) and max(a, b) > _UNEQUAL * min(a, b):
            return False
    return True


def _in_words(scale: Point) -> str:
    return " x ".join(f"{step:g}" for step in scale)
