"""`.cryosam` on xarray's objects: run on an array, look at arrays where the picks are, choose among picks, likeness.

    import cryosam_dask as cs

    tomogram.cryosam.run(points=[(92, 410, 388)], out="run.zarr", models="builtin")
    tree = cs.open_run("run.zarr")
    tree.cryosam.similarity("particle", 4)
    upper = tree["picks/particle"].to_dataset().cryosam.sel(z=slice(0, 800))
    tomogram.cryosam.sel_picks(upper, size=300)

The package imports this module as soon as xarray is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from cryosam_dask.errors import InputError
from cryosam_dask.types import AXES, Array

if TYPE_CHECKING:
    from cryosam_dask.pipeline import Driver

NAME = "cryosam"


@xr.register_dataarray_accessor(NAME)
class ArrayAccessor:
    """`array.cryosam`: what can be done with a volume (z, y, x)."""

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    def run(self, points: Any = None, out: str | Path | None = None, **options: Any) -> Driver:
        """`cryosam_dask.run` of this array as the tomogram; options are those of that."""
        from cryosam_dask.pipeline import run

        if out is None:
            raise InputError("say where the run is to be: out='run.zarr'")
        return run(self._array, points, out, **options)

    def sel_picks(self, picks: xr.Dataset, size: float | Sequence[float] | None = None) -> xr.DataArray:
        """The array at picks, which are found by their positions in ångström; so its own resolution does not matter.

        Parameters
        ----------
        picks : as `open_run` has them under `picks/NAME`
        size : Å, one number or (z, y, x), sides of a box around each pick; None: only the voxel that is nearest to it

        Returns
        -------
        A DataArray as lazy as the array is, (pick,), or with `size` (pick, z, y, x) whose z, y, x are Å from the voxel
        that is nearest to the pick; what lies beyond the array's faces is NaN. The picks' positions come along.
        """
        array = self._array.transpose(*AXES)
        positions = _positions(picks)
        nearest = [_nearest(array, axis, positions[:, i]) for i, axis in enumerate(AXES)]
        places = {f"position_{axis}": picks[f"position_{axis}"] for axis in AXES}
        if size is None:
            pointwise = {axis: xr.DataArray(index, dims="pick") for axis, index in zip(AXES, nearest, strict=True)}
            return array.isel(pointwise).assign_coords(places)
        steps = [_step(array, axis) for axis in AXES]
        wanted = np.broadcast_to(np.asarray(size, float), 3)
        half = [max(0, round(side / step / 2)) for side, step in zip(wanted, steps, strict=True)]
        boxes = [_box(array, centre, half, steps) for centre in zip(*nearest, strict=True)]
        if not boxes:
            raise InputError("there are no picks to cut boxes around")
        return xr.concat(boxes, dim="pick").assign_coords(places)


@xr.register_dataset_accessor(NAME)
class DatasetAccessor:
    """`picks.cryosam`: picks as `open_run` has them, chosen by where they are."""

    def __init__(self, picks: xr.Dataset) -> None:
        self._picks = picks

    def sel(
        self, z: slice | float | None = None, y: slice | float | None = None, x: slice | float | None = None
    ) -> xr.Dataset:
        """Picks by position in ångström: by slices those within, ends included; by three numbers the nearest one."""
        wanted = {axis: value for axis, value in zip(AXES, (z, y, x), strict=True) if value is not None}
        positions = _positions(self._picks)
        if wanted and not any(isinstance(value, slice) for value in wanted.values()):
            if len(wanted) < len(AXES):
                raise InputError("give z, y and x for the nearest pick, or slices for all within: z=slice(0, 400)")
            far = np.linalg.norm(positions - np.array([float(wanted[axis]) for axis in AXES]), axis=1)  # type: ignore[arg-type]
            return self._picks.isel(pick=[int(far.argmin())] if far.size else [])
        inside = np.ones(len(positions), bool)
        for axis, value in wanted.items():
            if not isinstance(value, slice) or value.step is not None:
                raise InputError(f"{axis}={value}: expected a slice without step, as all of them where one is")
            at = positions[:, AXES.index(axis)]
            inside &= (at >= (-np.inf if value.start is None else value.start)) & (
                at <= (np.inf if value.stop is None else value.stop)
            )
        return self._picks.isel(pick=np.flatnonzero(inside))


@xr.register_datatree_accessor(NAME)
class TreeAccessor:
    """`tree.cryosam`: what a run, as `open_run` opened it, can be asked."""

    def __init__(self, tree: xr.DataTree) -> None:
        self._tree = tree

    def similarity(self, query: str | Array, ratio: int = 4, *, center: bool = False) -> xr.DataArray:
        """How like a query each cell is, see `FeatureVolume.similarity`: lazy, and not only where the run looked.

        query : the name of one of the run's queries, or a feature (3C,), such as `FeatureVolume.pool` gives
        """
        from cryosam_dask.store.feature_volume import FeatureVolume

        root = self._tree.root
        where = root.encoding.get("source")
        if where is None:
            raise InputError("this tree was not opened by cryosam_dask.open_run")
        if isinstance(query, str):
            known = root["queries"].children if "queries" in root.children else {}
            if query not in known:
                raise InputError(f"{where}: no query called {query!r}; there are {', '.join(known) or 'none'}")
            query = np.asarray(known[query]["feature"])
        return FeatureVolume.open(where).similarity(query, ratio, center=center)


def _positions(picks: xr.Dataset) -> Array:
    """Å, (picks, 3)."""
    names = [f"position_{axis}" for axis in AXES]
    if missing := [name for name in names if name not in picks]:
        raise InputError(
            f"these are no picks of a run: no {', '.join(missing)}; expected tree['picks/NAME'].to_dataset()"
        )
    return np.stack([np.asarray(picks[name].values, float) for name in names], axis=1)


def _nearest(array: xr.DataArray, axis: str, positions: Array) -> Array:
    """Index of the voxel that is nearest to each position; of the last one for those beyond the ends."""
    if axis not in array.coords:
        raise InputError(f"the array has no coordinate {axis}, expected one in ångström, as arrays of open_run have")
    return np.asarray(array.get_index(axis).get_indexer(positions, method="nearest"))


def _step(array: xr.DataArray, axis: str) -> float:
    at = array.coords[axis].values
    return float(at[-1] - at[0]) / max(1, len(at) - 1)


def _box(array: xr.DataArray, centre: Sequence[int], half: Sequence[int], steps: Sequence[float]) -> xr.DataArray:
    """What lies around a voxel, by offsets in Å; NaN beyond the faces."""
    inside, beyond = {}, {}
    for axis, at, reach, length in zip(AXES, map(int, centre), half, array.shape, strict=True):
        inside[axis] = slice(max(0, at - reach), min(length, at + reach + 1))
        beyond[axis] = (max(0, reach - at), max(0, at + reach + 1 - length))
    part = array.isel(inside).drop_vars([name for name in array.coords if name not in array.xindexes or name in AXES])
    if any(sum(pair) for pair in beyond.values()):
        part = part.astype(np.result_type(part.dtype, np.float32)).pad(beyond, constant_values=np.nan)
    offsets = {
        axis: (axis, np.arange(-reach, reach + 1) * step, {"units": "angstrom", "long_name": f"{axis} from the pick"})
        for axis, reach, step in zip(AXES, half, steps, strict=True)
    }
    return part.assign_coords(offsets)
