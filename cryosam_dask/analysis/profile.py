"""Similarity along an axis."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import open_group, query_names
from cryosam_dask.types import AXES, Array, Axis

if TYPE_CHECKING:
    import xarray as xr

PLANE_CELLS = 4 << 20
"""Cells of planes that are in memory at a time, or one plane if it has more."""


def similarity_profile(
    run: str | Path,
    name: str | None = None,
    axis: Axis = "z",
    ratio: int | None = None,
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
) -> xr.Dataset:
    """Mean and quantiles of the similarity to a query in each plane across an axis.

    Parameters
    ----------
    run : the run's store; name : the query; may be left out where there is one only
    axis : "z", "y" or "x": planes are those with one position on it
    ratio : of the cells; None: the coarsest, which is evaluated everywhere. Finer maps are evaluated only where the
        coarser one reached the threshold, so that their planes' figures are those of the likely places alone
    quantiles : from 0 to 1

    Returns
    -------
    A lazy Dataset over `axis` (ångström, as in `open_run`): `mean`, `quantiles` (quantile, axis), and `evaluated`, the
    share of the plane's cells that the figures are of; NaN where that is 0. Nothing is read until it is computed, on
    any Dask scheduler; planes are then read a row of chunks at a time.

    Raises `InputError` for an axis, a ratio, quantiles or a query that are not there.
    """
    import xarray as xr

    store = RunStore.open(run)
    chosen = _query(store, name)
    if axis not in AXES:
        raise InputError(f"axis {axis!r}: expected z, y or x")
    wanted = np.asarray(quantiles, np.float64).reshape(-1)
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise InputError(f"quantiles {list(quantiles)}: expected numbers from 0 to 1")
    known = ratios(store, chosen)
    if not known or (ratio is not None and ratio not in known):
        words = ", ".join(map(str, known)) or "none yet"
        at = "" if ratio is None else f" at ratio {ratio}"
        raise InputError(f"{store.url}: no similarity of {chosen!r}{at}; there are: {words}")
    chosen_ratio = known[-1] if ratio is None else ratio
    cells = open_group(store, layout.similarity_group(chosen, chosen_ratio))["similarity"]
    rest: list[str] = [a for a in AXES if a != axis]
    planes = max(1, PLANE_CELLS // (cells.sizes[rest[0]] * cells.sizes[rest[1]]))
    cells = cells.chunk({axis: min(planes, cells.sizes[axis]), rest[0]: -1, rest[1]: -1})
    profile = xr.Dataset(
        {
            "mean": _planes(cells, rest, _mean),
            "quantiles": _planes(cells, rest, _quantiles, wanted),
            "evaluated": cells.notnull().mean(rest),
        },
        attrs={"run": store.url, "query": chosen, "ratio": chosen_ratio},
    )
    profile["mean"].attrs["long_name"] = "mean similarity of the plane"
    profile["quantiles"].attrs["long_name"] = "quantiles of the plane's similarity"
    profile["evaluated"].attrs["long_name"] = "share of the plane's cells that were evaluated"
    return profile


def ratios(store: RunStore, name: str) -> list[int]:
    """The ratios of which a query has a similarity map, the finest first."""
    numbers = (key[1:] for key in store.groups(layout.similarities(name)) if key.startswith("r"))
    present = [int(number) for number in numbers if number.isdecimal()]
    return sorted(ratio for ratio in present if layout.similarity(name, ratio) in store)


def _query(store: RunStore, name: str | None) -> str:
    """The query that is meant; it need not have results yet."""
    known = query_names(store) or picks.names(store)
    if name is None and len(known) == 1:
        return known[0]
    if name is None or name not in known:
        asked = "say which query" if name is None else f"no query {name!r}"
        raise InputError(f"{store.url}: {asked}; there are: {', '.join(known) or 'none yet'}")
    return name


def _planes(cells: xr.DataArray, over: list[str], function: Any, *arguments: Any) -> xr.DataArray:
    import xarray as xr

    more = {"quantile": arguments[0]} if arguments else {}
    reduced: xr.DataArray = xr.apply_ufunc(
        function,
        cells,
        kwargs={"wanted": arguments[0]} if arguments else {},
        input_core_dims=[over],
        output_core_dims=[list(more)],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {key: len(value) for key, value in more.items()}},
    )
    return reduced.assign_coords(more).transpose(*more, ...)


def _mean(values: Array) -> Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # planes without a value are NaN
        return np.asarray(np.nanmean(values, axis=(-2, -1), dtype=np.float64))


def _quantiles(values: Array, wanted: Array) -> Array:
    flat = values.reshape(*values.shape[:-2], -1).astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.moveaxis(np.asarray(np.nanquantile(flat, wanted, axis=-1)), 0, -1)
