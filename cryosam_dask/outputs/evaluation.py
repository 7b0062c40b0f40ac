"""A run's results against a truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.picks import read_points
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.outputs.results import check_painted, single_name
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore


def evaluate(
    run: str | Path,
    truth: str | Path,
    radius: float,
    *,
    name: str | None = None,
    truth_labels: str | Path | None = None,
) -> dict[str, Any]:
    """Compare a query's picks with true positions (and its labels with true ones): a JSON-able dict of figures.

    truth : CSV or STAR of voxels; radius : largest distance of a match, voxels; truth_labels : an MRC of instances
    """
    from cryosam_dask.evaluate import evaluate_masks, evaluate_picks

    store = RunStore.open(run)
    chosen = single_name(store, name)
    points = read_points(truth, voxel_size=store.voxel_size, shape=store.shape)
    table = picks.read(store, chosen)
    figures = evaluate_picks(table[["z", "y", "x"]], table["score"], points[["z", "y", "x"]], radius).to_dict()
    if truth_labels is not None:
        check_painted(store, chosen)
        source = open_tomogram(truth_labels, voxel_size=store.voxel_size)
        if source.shape != store.shape:
            raise InputError(f"{truth_labels}: shape {source.shape}, the tomogram has {store.shape}")
        true = source.read((slice(None), slice(None), slice(None)))
        figures |= evaluate_masks(store.array(layout.labels(chosen)), true.astype(np.int64)).to_dict()
    return figures
