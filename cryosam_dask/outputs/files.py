"""Results of a run as files that other programs read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.errors import InputError
from cryosam_dask.io.export import write_mrc_labels
from cryosam_dask.io.frame import Block
from cryosam_dask.io.picks import write_picks
from cryosam_dask.outputs.results import check_painted, single_name
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array

What = Literal["picks", "labels", "semantic"]
LABEL_FORMATS = {"mrc": (".mrc", ".map", ".rec")}


def export(
    run: str | Path, path: str | Path, *, name: str | None = None, what: What | None = None, format: str | None = None
) -> None:
    """Write the picks or the labels of a query to a file.

    Parameters
    ----------
    run : the run's store; path : the file, replaced when the new one is complete
    name : the query; may be left out where there is one only
    what : "picks", "labels" (instance ids) or "semantic" (0 or 1); None: by the file's suffix
    format : csv, star (relion4), relion5 or mrc; None: by the file's suffix

    Raises `InputError` for a format that does not hold `what`, `StoreError` where there is nothing to export.
    """
    store = RunStore.open(run)
    chosen = single_name(store, name)
    is_label = format in LABEL_FORMATS or (
        format is None and Path(path).suffix.lower() in [s for suffixes in LABEL_FORMATS.values() for s in suffixes]
    )
    kind: What = what or ("labels" if is_label else "picks")
    if (kind == "picks") == is_label:
        raise InputError(
            f"{path}: {format or Path(path).suffix or 'a file without a suffix'} can't hold {kind}; "
            "picks go to .csv or .star, labels to .mrc (or give --format)"
        )
    if kind == "picks":
        write_picks(
            picks.read(store, chosen),
            path,
            format=format,
            voxel_size=store.voxel_size,
            shape=store.shape,
            tomogram_name=Path(str(store.info["input"]["path"])).stem,
        )
        return
    check_painted(store, chosen)
    _export_labels(store, chosen if kind == "labels" else layout.semantic_name(chosen), path)


def _export_labels(store: RunStore, image: str, path: str | Path) -> None:
    array = store.array(layout.labels(image))
    largest = len(picks.read(store, image)) if image in picks.names(store) else 1

    def blocks() -> Iterator[tuple[Block, Array]]:
        for start, stop in geometry.slabs(store.shape[0], layout.INGEST_SLAB):
            yield (slice(start, stop), slice(None), slice(None)), np.asarray(array[start:stop])

    write_mrc_labels(
        path, store.shape, blocks(), max_id=max(largest, 1), voxel_size=store.voxel_size, origin=store.origin
    )
