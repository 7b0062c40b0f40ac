"""Labels of a run as files, volumes and meshes, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.errors import InputError
from cryosam_dask.io.export import write_mrc_labels, write_tiff_labels
from cryosam_dask.io.mesh import MOST_SMOOTHING, Surface, surface_of, write_glb, write_ply, write_ply_folder
from cryosam_dask.io.omezarr_out import Level, Version, write_omezarr
from cryosam_dask.outputs.results import check_painted
from cryosam_dask.outputs.reviewed import Only, chosen_picks, masked
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, ome, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Point

if TYPE_CHECKING:
    import pandas as pd

LABEL_FORMATS: dict[str, tuple[str, ...]] = {
    "mrc": (".mrc", ".map", ".rec"),
    "tiff": (".tif", ".tiff"),
    "ome-zarr": (".zarr",),
    "ome-zarr-0.4": (),
}
MESH_FORMATS: dict[str, tuple[str, ...]] = {"glb": (".glb",), "ply": (".ply",)}
What = Literal["picks", "labels", "semantic", "kinds", "meshes", "query"]
WHATS: tuple[What, ...] = get_args(What)


def write_labels(
    store: RunStore,
    name: str,
    path: Path,
    format: str,
    what: What,
    *,
    only: Only | None = None,
    overwrite: bool = False,
) -> None:
    """Write instance ids ("labels"), 0 and 1 ("semantic") or the kinds' numbers in one of `LABEL_FORMATS`.

    only : of the first two, without what was rejected, see `reviewed`
    """
    check_painted(store, layout.KINDS if what == "kinds" else name)
    image = {"semantic": layout.semantic_name(name), "kinds": layout.KINDS}.get(what, name)
    table = chosen_picks(store, name, only)
    described = _described(store, name, what, table)
    levels = image_levels(store, image) if only is None else chosen_levels(store, name, table, what == "semantic")
    dtype = np.uint32 if what == "labels" else np.uint8
    if format.startswith("ome-zarr"):
        version: Version = "0.4" if format.endswith("0.4") else "0.5"
        write_omezarr(
            path,
            levels,
            dtype=dtype,
            voxel_size=store.voxel_size,
            origin=store.origin,
            name=image,
            version=version,
            label=ome.image_label(described, source=None),
            sampled=True,
            overwrite=overwrite,
        )
        return
    largest = max(described, default=1)
    if format == "tiff":
        write_tiff_labels(path, levels[0], max_id=largest, voxel_size=store.voxel_size)
        return
    blocks = (geometry.box_slices(box) for box in geometry.boxes(store.shape, layout.INGEST_BOX))
    contents = ((block, levels[0].read(block)) for block in blocks)
    write_mrc_labels(path, store.shape, contents, max_id=largest, voxel_size=store.voxel_size, origin=store.origin)


def chosen_levels(store: RunStore, name: str, table: pd.DataFrame, semantic: bool) -> list[Level]:
    """The levels of a query's label image, with the instances of a table of picks alone."""
    largest = int(picks.read(store, name)["instance"].max()) if len(table) else 0
    return masked(image_levels(store, name), table, largest, semantic=semantic)


def _described(store: RunStore, name: str, what: What, table: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """What is known of each value of a label image of a table's picks."""
    if what == "labels":
        return ome.described_instances(table)
    return {i: {"name": kind} for i, kind in enumerate(picks.kinds(store, name) if what == "kinds" else [name], 1)}


def write_meshes(
    store: RunStore,
    name: str,
    path: Path,
    format: str,
    *,
    smooth: float = 0.0,
    only: Only | None = None,
    overwrite: bool = False,
) -> int:
    """Write a surface for each instance: a GLB scene, one PLY, or a folder of PLY. Return how many were written."""
    meshes = surfaces(store, name, origin=store.origin, smooth=smooth, only=only)
    if format == "glb":
        return write_glb(path, meshes)
    if path.suffix.lower() in MESH_FORMATS["ply"]:
        return write_ply(path, meshes)
    return write_ply_folder(path, meshes, overwrite=overwrite)


def surfaces(
    store: RunStore, name: str, *, origin: Point, smooth: float = 0.0, only: Only | None = None
) -> Iterator[Surface]:
    """The surface of each instance as it was segmented, with the parts that others cover in the labels.

    An extended structure that is joined from pieces is one surface; its mask is in memory as a whole.
    """
    if not 0 <= smooth <= MOST_SMOOTHING:
        raise InputError(f"--smooth {smooth:g}: expected voxels from 0 to {MOST_SMOOTHING:g}")
    check_painted(store, name)
    # by group: masks of a group are read together
    table = chosen_picks(store, name, only).sort_values(["group", "member"])
    pieces = picks.pieces(store, name, table)
    masks = stored.Masks(store, layout.instances(name))
    for label, score in zip(table["instance"].tolist(), table["score"].tolist(), strict=True):
        mask, box = masks.union(pieces[pieces[:, 0] == label, 1:])
        yield surface_of(mask, box, store.voxel_size, origin, label=label, score=score, smooth=smooth)


def kinds_name(store: RunStore, name: str | None = None) -> str:
    """The named query, which must be one of the kinds that competed, or any of these; InputError if there is none."""
    competing = [query for query in picks.names(store) if picks.kinds(store, query)]
    if not competing:
        raise InputError(f"{store.url}: no kinds were told apart in this run")
    if name not in (None, *competing):
        raise InputError(f"{store.url}: {name!r} was not told apart from others; there are: {', '.join(competing)}")
    return name or competing[0]


def image_levels(store: RunStore, image: str) -> list[Level]:
    """The levels of a label image."""
    return _levels(store, [layout.labels(image, level) for level in range(layout.level_count(store.shape))])


def tomogram_levels(store: RunStore) -> list[Level]:
    """The levels of the tomogram."""
    return _levels(store, [layout.tomogram(level) for level in range(layout.level_count(store.shape))])


def _levels(store: RunStore, paths: Sequence[str]) -> list[Level]:
    def level(path: str) -> Level:
        array = store.array(path)
        z, y, x = array.shape
        return Level((z, y, x), lambda block: np.asarray(array[block]))

    return [level(path) for path in paths]
