"""A run in xarray: `open_run` returns a lazy DataTree with coordinates in ångström."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zarr

from cryosam_dask import geometry
from cryosam_dask.errors import StoreError
from cryosam_dask.store import layout, picks, reviews
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES

if TYPE_CHECKING:
    import xarray as xr


def open_run(url: str | Path) -> xr.DataTree:
    """Open a run as an xarray DataTree. Only coordinates are read; arrays are lazy and chunked as stored.

    Nodes, as far as the run is complete (NAME is a query's name, N a ratio):

    - `/`: attributes of the run: input, voxel size (ångström, z y x), statistics, models
    - `/scale0`, `/scale1`…: `tomogram` (z, y, x) and its 2× levels
    - `/labels/NAME/scale0`…: `labels`, instance ids, 0 = background; `/labels/NAME_semantic/…`: 0 or 1;
      `/labels/kinds/…`: the number of the kind, where several kinds competed
    - `/picks/NAME`: one row per instance: z, y, x in voxels, position_z… in ångström, score, size, similarity; and
      `verdict`, "accepted", "rejected" or "undecided", once anything was decided about them
    - `/reviews/NAME`: all decisions in their order: instance (the pick's label then), z, y, x, position_z…, verdict,
      by, when (UTC), and whether it is the last word about that particle (`current`)
    - `/similarity/NAME/rN`: `similarity` (z, y, x) on cells, NaN where it was not evaluated
    - `/features/rN`: latent views and their Gram maps; `/features/dense/rN`: 3C-channel features
    - `/queries/NAME`: the query's `feature` (channel), its points and settings

    Raises `StoreError` if there is no run.
    """
    import xarray as xr

    store = RunStore.open(url)
    nodes: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=store.info)}
    for path, group in _groups(store.root, ""):
        if any(True for _ in group.array_keys()):
            nodes[path] = open_group(store, path)
    for name in reviews.names(store):
        nodes[f"/{layout.reviews(name)}"] = _decisions(store, name)
        if (picked := f"/{layout.picks(name)}") in nodes:
            nodes[picked] = _with_verdicts(store, name, nodes[picked])
    tree = xr.DataTree.from_dict(nodes, name=Path(str(url)).name)
    tree.encoding["source"] = store.url  # where xarray keeps it, for `tree.cryosam`
    return tree


def open_group(store: RunStore, path: str) -> xr.Dataset:
    """One node of `open_run` alone, lazy; `StoreError` if it is not there."""
    import xarray as xr

    if path not in store:
        raise StoreError(f"{store.url}: no group {path!r}; the stage that makes it has not run")
    dataset: xr.Dataset = xr.open_zarr(store.root.store, group=path, consolidated=False, zarr_format=3, chunks={})
    known = [*picks.COLUMNS, "position_z", "position_y", "position_x"]  # folders of a disk come in any order
    return dataset[sorted(dataset.data_vars, key=lambda n: (known.index(n) if n in known else len(known), n))]


def _with_verdicts(store: RunStore, name: str, dataset: xr.Dataset) -> xr.Dataset:
    """Picks with the verdict about each."""
    positions = np.stack([dataset[axis].to_numpy() for axis in AXES], axis=1)
    return dataset.assign(verdict=("pick", np.array(reviews.of_picks(store, name, positions), dtype=np.str_)))


def _decisions(store: RunStore, name: str) -> xr.Dataset:
    """Decisions about the picks of a query, (decision,)."""
    import xarray as xr

    told = reviews.read(store, name)
    table, stand = reviews.table(told), set(reviews.standing(store, name))
    columns = {column: table[column].to_numpy() for column in ("instance", *AXES)}
    columns |= {column: table[column].to_numpy(np.str_) for column in ("verdict", "by")}
    columns["when"] = table["when"].dt.tz_localize(None).to_numpy("datetime64[ns]")
    columns["current"] = np.array([decision in stand for decision in told], bool)
    variables = {column: ("decision", values) for column, values in columns.items()}
    places = geometry.to_angstrom(table[list(AXES)].to_numpy(float), store.voxel_size, store.origin)
    for i, axis in enumerate(AXES):
        variables[axis] = (*variables[axis], {"units": "voxel"})  # type: ignore[assignment]
        variables[f"position_{axis}"] = ("decision", places[:, i], {"units": "angstrom"})  # type: ignore[assignment]
    return xr.Dataset(variables)


def _groups(group: zarr.Group, prefix: str) -> Iterator[tuple[str, zarr.Group]]:
    for key, child in sorted(group.groups(), key=lambda item: item[0]):
        path = f"{prefix}/{key}"
        if layout.is_hidden(path.lstrip("/")):
            continue
        yield path, child
        yield from _groups(child, path)


def query_names(store: RunStore) -> list[str]:
    """Names of the queries of a run."""
    return store.groups(layout.QUERIES)
