"""The picks of a query: one row per kept instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.errors import StoreError
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "z": "voxel",
    "y": "voxel",
    "x": "voxel",
    "score": "",
    "instance": "",
    "size": "voxel",
    "similarity": "",
    "quality": "",
    "prompted": "",
    "group": "",
    "member": "",
}
"""Column → unit. `instance` is the label; `group` and `member` say where its mask is under `instances/`."""


def write(store: RunStore, name: str, table: pd.DataFrame, attributes: dict[str, Any]) -> None:
    """Replace the picks of a query. Positions in ångström are written beside those in voxels."""
    where = layout.picks(name)
    store.delete(where)
    for column, unit in COLUMNS.items():
        values = table[column].to_numpy()
        store.put(f"{where}/{column}", values, ("pick",), {"units": unit} if unit else None)
    voxels = table[["z", "y", "x"]].to_numpy(dtype=float)
    positions = geometry.to_angstrom(voxels, store.voxel_size, store.origin)
    for i, axis in enumerate(("z", "y", "x")):
        store.put(f"{where}/position_{axis}", positions[:, i].copy(), ("pick",), {"units": "angstrom"})
    store.group(where).attrs.update(attributes)


def read(store: RunStore, name: str) -> pd.DataFrame:
    """The picks of a query, best first; `StoreError` if it has none yet."""
    import pandas as pd

    where = layout.picks(name)
    if where not in store:
        known = names(store)
        raise StoreError(
            f"{store.url}: no picks called {name!r}; there are {', '.join(known) if known else 'none yet'}"
        )
    return pd.DataFrame({column: np.asarray(store.read(f"{where}/{column}")) for column in COLUMNS})


def names(store: RunStore) -> list[str]:
    """Names of the queries that have picks."""
    return sorted(store.group("picks").group_keys()) if "picks" in store else []
