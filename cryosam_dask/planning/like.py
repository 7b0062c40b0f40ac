"""What an earlier run took compared with its plan, by its journal, for planning the next run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.errors import StoreError
from cryosam_dask.io.frame import Block
from cryosam_dask.planning import costs
from cryosam_dask.planning.plan import DIAMETER, Measured, plan_stages
from cryosam_dask.planning.stages import Planner
from cryosam_dask.settings import Settings
from cryosam_dask.stages import propose
from cryosam_dask.store import journal, layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names
from cryosam_dask.types import Array, Point, Shape3


def measured(url: str | Path, worker: costs.Machine) -> Measured:
    """Compare what each stage of the run at `url` took with what its plan gives on `worker`.

    Raises `StoreError` if there is no run, or none that has come as far as a query.
    """
    store = RunStore.open(url)
    entries = journal.commands(store)
    took = journal.seconds_per_unit(entries)
    names = query_names(store)
    settings = next((_settings(store, name) for name in names), None)
    if not took or settings is None:
        raise StoreError(f"{url}: its journal says nothing that could be planned by; give a run that was finished")
    count = len(propose.read(store, names[0])[0]) if layout.proposals(names[0]) in store else 0
    planner = Planner(_Header.of(store), settings, worker, _diameter(store, names[0]))
    plan_stages(planner, max(1, count))
    factors = {
        name: took[name] / (stage.seconds / stage.units)
        for name, stage in planner.stages.items()
        if name in took and stage.seconds > 0
    }
    return Measured(str(url), str(entries[-1]["executor"]), factors, count / math.prod(store.shape), settings)


@dataclass(frozen=True)
class _Header:
    """The header of a run's tomogram, read from its store, for a plan; see `TomogramSource`."""

    shape: Shape3
    dtype: np.dtype[Any]
    voxel_size: Point
    origin: Point
    identity: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    chunk: Shape3 = (1, 1, 1)
    scratch: int = 0

    @classmethod
    def of(cls, store: RunStore) -> _Header:
        return cls(store.shape, store.array(layout.tomogram()).dtype, store.voxel_size, store.origin)

    def read(self, slices: Block) -> Array:
        raise NotImplementedError("a plan reads no voxels")


def _settings(store: RunStore, name: str) -> Settings | None:
    settings = store.group(layout.query(name)).attrs.get("settings")
    return None if settings is None else Settings.model_validate(settings)


def _diameter(store: RunStore, name: str) -> float:
    """Voxels: of a ball as large as the prompted instances are in the middle."""
    path = layout.query_array(name, "sizes")
    sizes = store.read(path) if path in store else np.zeros(0)
    if not sizes.size or not np.median(sizes) > 0:
        return DIAMETER / float(np.mean(store.voxel_size))
    return 2 * geometry.equivalent_radius(float(np.median(sizes)))
