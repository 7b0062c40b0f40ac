"""What `open_run` shows of a run, and what it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cryosam_dask as cs
from cryosam_dask.errors import StoreError
from cryosam_dask.store import views
from cryosam_dask.store.run_store import RunStore


def test_results_are_shown_and_the_programs_own_state_is_not(make_store: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path / "run.zarr")
    shown = ["queries/group1", "queries/state", "proposals/marks", "picks/instances", "similarity/dots/r4"]
    hidden = [
        "queries/group1/group00000", "queries/q/state00003", "proposals/q/profiles00001", "proposals/q/group00002",
        "similarity/dots/r4/dots", "instances/q/group00000", "marks", "embeddings/planes",
    ]  # fmt: skip
    for path in (*shown, *hidden):
        store.put(f"{path}/values", np.arange(3), (f"dim{path.count('/')}",))
    groups = {path.lstrip("/") for path in cs.open_run(store.url).groups}
    assert set(shown) <= groups
    assert not groups & set(hidden)


def test_one_node_alone(run: RunStore) -> None:
    alone = views.open_group(run, "similarity/a/r4")["similarity"]
    assert alone.identical(cs.open_run(run.url)["similarity/a/r4"]["similarity"])
    assert alone.chunks is not None
    with pytest.raises(StoreError, match="no group 'similarity/a/r3'"):
        views.open_group(run, "similarity/a/r3")
