"""Tomograms that are given as arrays: of NumPy or Dask, or xarray's DataArrays of either.

Axes of a DataArray are told by their names, in any order; bare arrays are z, y, x. Where voxels lie, and how large they
are, is taken from coordinates, as xarray and the CF conventions have them (evenly spaced, with an attribute `units`:
https://cfconventions.org/cf-conventions/cf-conventions.html#coordinate-types), or from the attributes `voxel_size` and
`units`, or is given.

Dask's arrays are lazy: only their metadata is looked at here, and a block is computed where it is needed. Others are in
this process's memory, or xarray reads a block of them from a file.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import (
    Block,
    Described,
    check_block,
    check_volume,
    in_angstrom,
    one_line_errors,
    parse_voxel_size,
    plausible_voxel,
    printable,
    shown,
    unset_voxel_size,
    voxel_dtype,
)
from cryosam_dask.io.units import angstroms
from cryosam_dask.types import AXES, Array, Point, Shape3

_ASK = "give it as voxel_size=ÅNGSTRÖM"
_UNEVEN = 0.01
"""How far a coordinate may be from where even spacing puts it, in steps: rounding to single precision is less."""
_ALIKE = 1e-3
_DIGITS = 9
"""Digits of a spacing that is worked out from coordinates: what rounding left of 13.2812 is 13.2812 again."""


@dataclass(frozen=True)
class ArraySource(Described):
    """A tomogram that an array holds; see `TomogramSource`.

    Besides the contract's attributes: `array`, (z, y, x), of Dask where `lazy`, else whatever gives blocks when it is
    sliced; `name`, for people.

    What an array holds is known only when all of it was computed. So `identity["content"]` is drawn by lot here, and is
    that of a run where the array is found to hold what the run was made from (`stages.ingest_array.recognized`).
    """

    array: Any
    name: str

    @property
    def lazy(self) -> bool:
        return is_lazy(self.array)

    @property
    def chunk(self) -> Shape3:
        """Dask computes each of its chunks once, whichever blocks they are in."""
        return (1, 1, 1)

    @property
    def scratch(self) -> int:
        """The largest chunk of a lazy array, from which a block is cut."""
        if not self.lazy:
            return 0
        return int(np.prod([max(sizes) for sizes in self.array.chunks])) * int(self.dtype.itemsize)

    def read(self, slices: Block) -> Array:
        """See `TomogramSource.read`; a lazy block is computed in this thread."""
        block = check_block(slices, self.shape)
        value = self.array[block]
        return self.checked(value.compute(scheduler="sync") if self.lazy else value, block)

    def checked(self, value: Any, block: Block) -> Array:
        """What the array gave for a block, as plain voxels of `dtype`."""
        return checked(value, tuple(part.stop - part.start for part in block), self.dtype, self.name)


def checked(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> Array:
    """A block as plain C-contiguous voxels; `InputError` where it is not what the array was said to hold.

    The metadata of a lazy array may be wrong: `map_blocks` trusts the type and shape that its caller gives.
    """
    value = getattr(value, "values", value)  # a block of a DataArray
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name}: voxels are masked; fill them, e.g. by the mean (`filled`)")
    if not isinstance(value, np.ndarray):
        raise InputError(f"{name}: its blocks are {type(value).__name__}, expected arrays of NumPy")
    if value.shape != shape:
        raise InputError(f"{name}: a block of shape {shape} was computed as {value.shape}; chunks= of map_blocks?")
    if not np.can_cast(value.dtype, dtype, "same_kind"):
        raise InputError(f"{name}: blocks of {dtype} were computed as {value.dtype}; dtype= of map_blocks?")
    with np.errstate(over="ignore"):  # what is too large is infinite then, which is said
        return np.ascontiguousarray(value, dtype)


def is_lazy(array: Any) -> bool:
    """Whether an array is one of Dask's."""
    dask = sys.modules.get("dask.array")
    return dask is not None and isinstance(array, dask.Array)


@one_line_errors()
def open_array(array: Any, *, voxel_size: Point | None = None) -> ArraySource:
    """An array as a tomogram; nothing of it is computed or read.

    Parameters
    ----------
    array : `xarray.DataArray` with the dimensions z, y and x in any order, or an array (z, y, x) of NumPy or Dask
    voxel_size : Å (z, y, x), instead of what coordinates or attributes say

    Raises InputError for what is not one volume of real numbers, and where there is no voxel size.
    """
    xarray = sys.modules.get("xarray")
    if xarray is not None and isinstance(array, xarray.DataArray):
        name = printable(str(array.name)) if array.name is not None else "array"
        array = _in_order(array, name)
        shape = _shape(array, name)
        sizes, origin, notes = _frame(array, name, voxel_size)
        array = array.data if array.chunks is not None else array  # without chunks `data` would read all of it
    elif isinstance(array, np.ndarray) or is_lazy(array):
        name, origin, notes = "array", (0.0, 0.0, 0.0), ()
        if array.ndim != 3:
            raise InputError(f"{name}: shape {array.shape}, expected three axes z, y, x")
        shape = _shape(array, name)
        sizes = _given(voxel_size, name)
    else:
        raise InputError(
            f"a {type(array).__module__}.{type(array).__name__}: expected a path, or an array: xarray.DataArray, NumPy "
            "or Dask (of a Dataset one variable, of others dask.array.from_array)"
        )
    dtype = voxel_dtype(name, array.dtype)
    identity = {
        "format": "array",
        "name": name,
        "shape": list(shape),
        "dtype": dtype.name,
        "voxel_size": list(sizes),
        "content": secrets.token_hex(32),
    }
    return ArraySource(shape, dtype, sizes, origin, identity, (*notes, *unset_voxel_size(sizes)), array, name)


def _shape(array: Any, name: str) -> Shape3:
    if any(n != n for n in array.shape):
        raise InputError(f"{name}: its shape is not known yet; call compute_chunk_sizes() first")
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{name}: voxels are masked; fill them, e.g. by the mean (`filled`)")
    z, y, x = (int(n) for n in array.shape)
    check_volume(name, (z, y, x))
    return z, y, x


def _in_order(array: Any, name: str) -> Any:
    if set(array.dims) != set(AXES):
        dims = ", ".join(map(str, array.dims))
        raise InputError(
            f"{name}: dimensions {shown(dims) or 'none'}, expected z, y and x; choose from others with isel(), name "
            "these with rename()"
        )
    return array.transpose(*AXES)


def _given(voxel_size: Point | None, name: str) -> Point:
    if voxel_size is None:
        raise InputError(f"{name}: an array does not tell its voxel size; {_ASK}, one number or (z, y, x)")
    return voxel_size


def _frame(array: Any, name: str, given: Point | None) -> tuple[Point, Point, tuple[str, ...]]:
    """Voxel size and origin, Å (z, y, x), with notes on what was assumed."""
    notes: list[str] = []
    places = {axis: _axis(array, axis, name, given is not None) for axis in AXES if axis in array.coords}
    axes = {axis: place for axis, place in places.items() if place is not None}
    origin = [axes[axis][0] if axis in axes else 0.0 for axis in AXES]
    attributes = _from_attributes(array.attrs, name, notes) if given is None else None
    sizes = [axes[axis][1] if axis in axes else attributes[i] if attributes else None for i, axis in enumerate(AXES)]
    if given is not None:
        sizes = list(given)
    missing = [axis for axis, size in zip(AXES, sizes, strict=True) if size is None]
    if missing:
        bare = [axis for axis in missing if axis in array.coords]
        why = f"coordinates {', '.join(bare)} have no units of length" if bare else "no coordinates and no voxel_size"
        raise InputError(
            f"{name}: no voxel size along {', '.join(missing)}: {why} in its attributes; set attrs['units'] of the "
            f"coordinates (angstrom, nm, µm), or {_ASK}"
        )
    z, y, x = (float(size) for size in sizes if size is not None)
    if not all(map(plausible_voxel, (z, y, x))):
        raise InputError(f"{name}: voxels of {in_angstrom((z, y, x))} by its coordinates can't be; {_ASK}")
    if attributes and any(abs(a - b) > _ALIKE * a for a, b in zip((z, y, x), attributes, strict=True)):
        notes.append(
            f"voxels are {in_angstrom((z, y, x))} by the coordinates and {in_angstrom(attributes)} by the attributes; "
            "the coordinates are taken"
        )
    return (z, y, x), (origin[0], origin[1], origin[2]), tuple(notes)


def _axis(array: Any, axis: str, name: str, given: bool) -> tuple[float, float] | None:
    """The first position along an axis and the step, in Å; None where its coordinate has no unit of length."""
    coordinate = array.coords[axis]
    unit = _unit(coordinate.attrs)
    factor = angstroms(unit if unit is not None else _unit(array.attrs))
    if factor is None or coordinate.dims != (axis,):
        return None
    values = np.asarray(coordinate.values)
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise InputError(f"{name}: coordinate {axis} is not all numbers")
    values = values.astype(np.float64)
    first, step = float(values[0]), float(values[-1] - values[0]) / max(1, len(values) - 1)
    if len(values) > 1 and step <= 0:
        raise InputError(f"{name}: coordinate {axis} does not rise; sort it: .sortby({axis!r})")
    off = np.abs(values - (first + step * np.arange(len(values)))).max()
    if off > _UNEVEN * step and not given:
        raise InputError(f"{name}: coordinate {axis} is not evenly spaced; {_ASK}, or resample it (interp)")
    return _rounded(first * factor), _rounded(step * factor)


def _from_attributes(attributes: Mapping[Any, Any], name: str, notes: list[str]) -> Point | None:
    """The attribute `voxel_size`, one number or (z, y, x), in the attribute `units`; Å where there is none."""
    value = attributes.get("voxel_size")
    if value is None:
        return None
    unit = _unit(attributes)
    factor = angstroms(unit)
    if factor is None:
        said = f"the attribute units ({shown(unit)}) is no length" if unit else "there is no attribute units"
        notes.append(f"{said}; voxel_size {shown(value)} is taken as ångström")
        factor = 1.0
    try:
        numbers = np.asarray(value, np.float64) * factor
    except (TypeError, ValueError):
        raise InputError(f"{name}: attribute voxel_size {shown(value)}: expected one number, or z, y, x") from None
    sizes: Sequence[float] = [_rounded(float(v)) for v in numbers.ravel()]
    return parse_voxel_size(sizes)


def _unit(attributes: Mapping[Any, Any]) -> str | None:
    unit = attributes.get("units", attributes.get("unit"))
    return unit if isinstance(unit, str) and unit.strip() else None


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def cut(array: Any, size: Shape3) -> tuple[dict[Any, Any], list[Any]]:
    """A lazy array in blocks of `size`, those at the ends smaller: Dask's graph, and each one's key in (z, y, x) order.

    Blocks are cut straight from the array's chunks. By itself Dask would put a step in between where there are many, of
    other chunks, or move everything over the workers' disks (`p2p`) before the first block is there.
    """
    from dask.base import optimize
    from dask.core import flatten

    (blocks,) = optimize(array.rechunk(size, method="tasks", threshold=1 << 40))
    return dict(blocks.__dask_graph__()), list(flatten(blocks.__dask_keys__()))
