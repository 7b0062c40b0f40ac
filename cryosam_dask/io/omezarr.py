"""OME-Zarr tomograms, versions 0.4 (Zarr v2) and 0.5 (Zarr v3), local or behind any fsspec URL.

Specification: https://ngff.openmicroscopy.org/0.5/ (multiscales, axes, coordinate transformations).
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import (
    ASK_VOXEL_SIZE,
    Block,
    check_block,
    check_volume,
    native,
    owned,
    plausible_voxel,
)
from cryosam_dask.types import AXES, Array, Point, Shape3

_ANGSTROM = {
    "angstrom": 1.0,
    "ångström": 1.0,
    "å": 1.0,
    "picometer": 0.01,
    "pm": 0.01,
    "nanometer": 10.0,
    "nm": 10.0,
    "micrometer": 1e4,
    "µm": 1e4,
    "um": 1e4,
    "millimeter": 1e7,
    "meter": 1e10,
}
_LEVEL_DEPTH = 3  # groups between an image and its levels' arrays at most
_SAMPLE = 32  # voxels along a side of the three cubes that identify an image


@dataclass(frozen=True)
class ZarrSource:
    """A tomogram in one resolution level of an OME-Zarr image; see `TomogramSource`.

    Besides the contract's attributes: `url` of the group, `level` (the array's path in it) and `spatial`, the
    array's axes that are z, y, x. Any other axis has length 1.
    """

    url: str
    level: str
    shape: Shape3
    dtype: np.dtype[Any]
    voxel_size: Point
    origin: Point
    identity: dict[str, Any]
    notes: tuple[str, ...]
    spatial: tuple[int, int, int]

    def read(self, slices: Block) -> Array:
        """See `TomogramSource.read`."""
        node = _open(self.url)
        if not isinstance(node, zarr.Group):
            raise InputError(f"{self.url}: can't be read any more, it was a group when opened")
        return _read_block(_array(node, self.url, self.level), self, check_block(slices, self.shape))


def open_omezarr(url: str, *, voxel_size: Point | None = None) -> ZarrSource:
    """Read and check the metadata of the OME-Zarr image at `url`; only three small cubes of voxels are loaded.

    Parameters
    ----------
    url : a directory or fsspec URL of the image's group (level 0 is read), or of one of its level's arrays
    voxel_size : Å (z, y, x), instead of the file's own

    Raises InputError where there is no such image, or it is not one 3D volume of real numbers, or it does not tell
    its voxel size in a known unit when `voxel_size` is None.
    """
    url = url.rstrip("/")
    group, url, multiscale, dataset = _find_level(url)
    level = str(dataset["path"])
    array = _array(group, url, level)
    where = f"{url}/{level}"
    names, units = _axes(where, multiscale, array.ndim)
    spatial = _spatial_axes(where, names, array.shape)
    z, y, x = (int(array.shape[axis]) for axis in spatial)
    check_volume(where, (z, y, x))
    dtype = native(array.dtype)
    if dtype.kind not in "iuf":
        raise InputError(f"{where}: voxels of type {dtype}, expected integers or real numbers")
    scale, shift = _transform(where, multiscale, dataset, array.ndim)
    sizes, origin = _to_angstrom(where, spatial, scale, shift, units, voxel_size)
    source = ZarrSource(
        url=url,
        level=level,
        shape=(z, y, x),
        dtype=dtype,
        voxel_size=sizes,
        origin=origin,
        identity={},
        notes=(),
        spatial=spatial,
    )
    source.identity.update(_identity(source, array, multiscale))
    return source


def _open(url: str) -> zarr.Group | zarr.Array[Any]:
    """The Zarr node at `url`; whatever a store or a network raises becomes one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return zarr.open(store=url, mode="r")
    except FileNotFoundError as err:
        raise InputError(f"{url}: no Zarr group or array there") from err
    except ImportError as err:
        raise InputError(f"{url}: this kind of address needs another package: {err}") from err
    except Exception as err:
        raise InputError(f"{url}: can't be opened as Zarr: {_one_line(err)}") from err


def _one_line(err: Exception) -> str:
    return " ".join(str(err).split()) or type(err).__name__


def _find_level(url: str) -> tuple[zarr.Group, str, dict[str, Any], dict[str, Any]]:
    """The image's group, its address, its first multiscale and the dataset asked for."""
    node = _open(url)
    if isinstance(node, zarr.Group):
        multiscale = _multiscale(url, node)
        first: dict[str, Any] = multiscale["datasets"][0]
        return node, url, multiscale, first
    head, tail = url, ""
    for _ in range(_LEVEL_DEPTH):
        head, _slash, name = head.rpartition("/")
        if not head or head.endswith("/"):
            break
        tail = f"{name}/{tail}".rstrip("/")
        try:
            parent = _open(head)
            multiscale = _multiscale(head, parent) if isinstance(parent, zarr.Group) else {"datasets": []}
        except InputError:
            continue
        for dataset in multiscale["datasets"]:
            if isinstance(parent, zarr.Group) and dataset["path"] == tail:
                return parent, head, multiscale, dataset
    raise InputError(
        f"{url}: a bare Zarr array of shape {node.shape}, expected an OME-Zarr image: a group with 'multiscales'"
    )


def _multiscale(url: str, group: zarr.Group) -> dict[str, Any]:
    """The first multiscale of the group, checked to list at least one dataset with a path."""
    attrs: dict[str, Any] = dict(group.attrs)
    ome = attrs.get("ome", attrs)
    if not isinstance(ome, dict):
        ome = {}
    if "image-label" in ome:
        raise InputError(f"{url}: a labels image, expected a tomogram: give the image it belongs to")
    if "labels" in ome or url.endswith("/labels"):
        raise InputError(f"{url}: a collection of labels, expected a tomogram: give the image it belongs to")
    scales = ome.get("multiscales")
    first = scales[0] if isinstance(scales, list) and scales else None
    if not isinstance(first, dict):
        held = ", ".join(sorted({*attrs, *ome})) or "none"
        raise InputError(f"{url}: not an OME-Zarr image: no 'multiscales' among its attributes ({held})")
    datasets = first.get("datasets")
    if not (isinstance(datasets, list) and datasets and all(_has_path(d) for d in datasets)):
        raise InputError(f"{url}: damaged OME-Zarr metadata: 'multiscales' lists no datasets with a path")
    return first


def _has_path(dataset: Any) -> bool:
    return isinstance(dataset, dict) and isinstance(dataset.get("path"), str)


def _array(group: zarr.Group, url: str, level: str) -> zarr.Array[Any]:
    try:
        node = group[level]
    except KeyError as err:
        raise InputError(f"{url}: its metadata lists the array {level!r}, which is not there") from err
    except Exception as err:
        raise InputError(f"{url}/{level}: can't be opened as Zarr: {_one_line(err)}") from err
    if not isinstance(node, zarr.Array):
        raise InputError(f"{url}: its metadata lists {level!r}, which is not an array")
    return node


def _axes(where: str, multiscale: dict[str, Any], ndim: int) -> tuple[list[str], list[str | None]]:
    """Names and units of the array's axes; version 0.3 has names alone, earlier ones none (always t, c, z, y, x)."""
    axes = multiscale.get("axes", list("tczyx"))
    if not isinstance(axes, list) or len(axes) != ndim:
        raise InputError(f"{where}: {ndim} dimensions, but its metadata describes the axes {axes}")
    entries = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
    names = [str(entry.get("name")).lower() for entry in entries]
    units = [str(entry["unit"]).lower() if entry.get("unit") else None for entry in entries]
    return names, units


def _spatial_axes(where: str, names: list[str], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Positions of z, y and x among the axes; every other axis must have length 1."""
    if any(names.count(axis) != 1 for axis in AXES):
        raise InputError(f"{where}: not 3D: axes {', '.join(names)}, expected z, y, x")
    for name, n in zip(names, shape, strict=True):
        if name not in AXES and n != 1:
            raise InputError(f"{where}: {n} entries along axis {name!r}, expected one: save one of them as a volume")
    return (names.index("z"), names.index("y"), names.index("x"))


def _transform(
    where: str, multiscale: dict[str, Any], dataset: dict[str, Any], ndim: int
) -> tuple[list[float] | None, list[float]]:
    """Scale (None where none is given) and translation per axis: the dataset's transformations, then the image's."""
    scale, shift, scaled = [1.0] * ndim, [0.0] * ndim, False
    for owner in (dataset, multiscale):
        for step in owner.get("coordinateTransformations") or []:
            kind = step.get("type") if isinstance(step, dict) else None
            if kind == "identity":
                continue
            factors = _numbers(step.get(kind), ndim) if kind in ("scale", "translation") else None
            if factors is None:
                raise InputError(
                    f"{where}: coordinate transformation {step}, expected a scale or translation of {ndim} numbers"
                )
            if kind == "scale":
                scaled = True
                scale = [a * f for a, f in zip(scale, factors, strict=True)]
                shift = [a * f for a, f in zip(shift, factors, strict=True)]
            else:
                shift = [a + f for a, f in zip(shift, factors, strict=True)]
    return scale if scaled else None, shift


def _numbers(values: Any, count: int) -> list[float] | None:
    """`values` if they are `count` finite numbers."""
    if not isinstance(values, list) or len(values) != count:
        return None
    numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    return numbers if len(numbers) == count else None


def _to_angstrom(
    where: str,
    spatial: tuple[int, int, int],
    scale: list[float] | None,
    shift: list[float],
    units: list[str | None],
    voxel_size: Point | None,
) -> tuple[Point, Point]:
    """Voxel size and origin in Å (z, y, x); a given `voxel_size` replaces the file's and leaves a known origin."""
    own = [units[axis] for axis in spatial]
    factors = [_ANGSTROM.get(unit, math.nan) if unit else math.nan for unit in own]
    steps = [scale[axis] if scale else math.nan for axis in spatial]
    found = [float(f"{step * factor:.9g}") for step, factor in zip(steps, factors, strict=True)]
    moved = [shift[axis] for axis in spatial]
    if all(map(plausible_voxel, found)):
        origin = [by * factor for by, factor in zip(moved, factors, strict=True)]
        z, y, x = found
    elif voxel_size is None:
        raise InputError(
            f"{where}: no usable voxel size (scale z, y, x: {steps if scale else 'missing'}; "
            f"units: {', '.join(unit or 'missing' for unit in own)}); {ASK_VOXEL_SIZE}"
        )
    else:
        z, y, x = voxel_size
        # A translation has the unit of the scale, so it is known in voxels even where the unit is not.
        in_voxels = [by / step if step > 0 else 0.0 for by, step in zip(moved, steps, strict=True)]
        origin = [by * size for by, size in zip(in_voxels, voxel_size, strict=True)]
    return voxel_size or (z, y, x), (origin[0], origin[1], origin[2])


def _read_block(array: zarr.Array[Any], source: ZarrSource, block: Block) -> Array:
    selection: list[int | slice] = [0] * array.ndim
    for axis, part in zip(source.spatial, block, strict=True):
        selection[axis] = part
    try:
        values = np.asarray(array[tuple(selection)])
    except Exception as err:
        place = ", ".join(f"{axis} {part.start}:{part.stop}" for axis, part in zip(AXES, block, strict=True))
        raise InputError(f"{source.url}/{source.level}: damaged at {place}: {_one_line(err)}") from err
    left = sorted(source.spatial)
    return owned(values.transpose([left.index(axis) for axis in source.spatial]), source.dtype)


def _identity(source: ZarrSource, array: zarr.Array[Any], multiscale: dict[str, Any]) -> dict[str, Any]:
    """Metadata and the voxels at both ends and in the middle, so that a copy elsewhere is the same tomogram."""
    digest = hashlib.sha256(json.dumps(multiscale, sort_keys=True, default=str).encode())
    for place in (0.0, 0.5, 1.0):
        starts = [int(place * max(n - _SAMPLE, 0)) for n in source.shape]
        z, y, x = (slice(a, min(a + _SAMPLE, n)) for a, n in zip(starts, source.shape, strict=True))
        digest.update(_read_block(array, source, (z, y, x)).tobytes())
    return {
        "format": "ome-zarr",
        "name": source.url.rpartition("/")[2],
        "level": source.level,
        "sha256_sampled": digest.hexdigest(),
        "shape": list(source.shape),
        "dtype": source.dtype.name,
        "voxel_size": list(source.voxel_size),
    }
