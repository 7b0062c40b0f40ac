"""Ingest: a tomogram file → the store's chunked image with its 2× levels, and the statistics of the same pass.

A unit is a slab of slices: it reads the slab once, writes its whole chunks on every level, and one row of statistics.
"""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import numpy as np

from cryosam_dask import __version__, geometry
from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.kernels import images
from cryosam_dask.stages.base import Context, Json, Region, Stage, Unit, UnitResult
from cryosam_dask.store import layout, ome
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array

NAME = "ingest"


def stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Type that voxels are stored in: the file's own where it is small, else float32."""
    return dtype if dtype.kind in "iuf" and dtype.itemsize <= 4 and dtype not in ("i4", "u4") else np.dtype("f4")


def plan(source: TomogramSource, path: str, options: Json) -> Stage:
    """The stage for a source opened from `path` with `options` (`voxel_size`, `unsigned`)."""
    shape, dtype = source.shape, stored_dtype(source.dtype)
    units = []
    for index, (start, stop) in enumerate(geometry.slabs(shape[0], layout.INGEST_SLAB)):
        box = ((start, stop), (0, shape[1]), (0, shape[2]))
        voxels = (stop - start) * shape[1] * shape[2]
        region = Region(layout.tomogram(), tuple(a for a, _ in box), tuple(b for _, b in box))
        units.append(
            Unit(
                name=f"slices {start}:{stop}",
                marks=(index,),
                params={"path": path, "options": options, "index": index, "start": start, "stop": stop},
                reads=(Region("input", region.start, region.stop),),
                writes=(region,),
                # the slab as read and as stored, float64 for halving it, and the encoder's copies of its chunks
                memory=voxels * (source.dtype.itemsize + dtype.itemsize + 8 + 4) + (64 << 20),
            )
        )
    settings = {
        "input": _content(source),
        "voxel_size": list(source.voxel_size),
        "origin": list(source.origin),
        "chunk": list(layout.CHUNK),
    }
    return Stage(NAME, work, settings, "", tuple(units), len(units), advice="give each worker more memory")


def create_store(url: str, source: TomogramSource, path: str) -> RunStore:
    """A store with the arrays of the ingest, empty."""
    store = RunStore.create(
        url,
        {
            "version": __version__,
            "packages": _versions(),
            "input": {"path": path, **source.identity},
            "shape": list(source.shape),
            "voxel_size": list(source.voxel_size),
            "origin": list(source.origin),
            "notes": list(source.notes),
        },
    )
    prepare(store, source)
    return store


def prepare(store: RunStore, source: TomogramSource) -> None:
    """Create the arrays that the units write to, and the OME-Zarr metadata."""
    levels = layout.level_count(source.shape)
    for level in range(levels):
        store.new_array(
            layout.tomogram(level),
            shape=layout.level_shape(source.shape, level),
            dtype=stored_dtype(source.dtype),
            chunks=layout.level_chunks(level),
            dims=("z", "y", "x"),
        )
        ome.put_coordinates(store, layout.level_group(level), 1 << level)
    count = len(geometry.slabs(source.shape[0], layout.INGEST_SLAB))
    store.new_array(
        layout.STATISTICS,
        shape=(count, 3 + images.QUANTILES),
        dtype="float64",
        chunks=(1, 3 + images.QUANTILES),
        dims=("slab", "summary"),
    )
    scales = ome.multiscales("tomogram", layout.TOMOGRAM_VARIABLE, levels, source.voxel_size, source.origin)
    store.root.attrs["ome"] = {"version": "0.5", "multiscales": scales}


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Read a slab, check it, write it on all levels with its statistics."""
    params = unit.params
    options = params["options"]
    source = open_tomogram(params["path"], voxel_size=options.get("voxel_size"), unsigned=options.get("unsigned"))
    if _content(source) != settings["input"]:
        raise InputError(f"{params['path']}: the file changed since the run began; use another --out or --overwrite")
    store = RunStore.open(context.url, "r+")
    start, stop = params["start"], params["stop"]
    slab = source.read((slice(start, stop), slice(None), slice(None)))
    _check_finite(slab, start, params["path"])
    slab = slab.astype(stored_dtype(slab.dtype), copy=False)
    store.array(layout.STATISTICS)[params["index"]] = images.summarize(slab)
    for level in range(layout.level_count(source.shape)):
        if level:
            slab = images.halve(slab)
        first = start >> level
        store.array(layout.tomogram(level))[first : first + slab.shape[0]] = slab
    return None


def _versions() -> dict[str, str]:
    """What the run was made with, for its description."""
    names = ("numpy", "scipy", "scikit-image", "zarr", "dask", "torch", "timm", "segment-anything")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _content(source: TomogramSource) -> Json:
    """What tells two inputs apart: not what the file is called."""
    return {key: value for key, value in source.identity.items() if key != "name"}


def _check_finite(slab: Array, start: int, path: str) -> None:
    if slab.dtype.kind != "f":
        return
    bad = ~np.isfinite(slab)
    if bad.any():
        z, y, x = (int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            f"{path}: {int(bad.sum())} voxels of slices {start}:{start + len(slab)} are NaN or infinite, the first at "
            f"z,y,x = {z + start},{y},{x}; replace them (e.g. by the mean) and run again"
        )


def finish(store: RunStore, path: str) -> None:
    """Merge the slabs' statistics into the run's; `InputError` for a constant volume."""
    if "statistics" in store.info:
        return
    merged = images.merge_summaries(store.read(layout.STATISTICS))
    if not merged.std > 0 or not merged.high > merged.low:
        raise InputError(f"{path}: all voxels are (nearly) {merged.mean:g}; expected a tomogram with contrast")
    store.update_info(statistics=merged.to_json())
