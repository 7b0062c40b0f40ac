"""The picks of a query: one row per kept instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
"""Column → unit. `instance` is the label; `group` and `member` say where its mask is under `instances/`: of an extended
structure, which is joined from several (`pieces`), the best of them."""

PIECES = ("instance", "group", "member")
"""Columns of the pieces of extended structures: the pick's label, and where one of its masks is."""

AMONG_KINDS = {"second": "", "margin": ""}
"""Columns of picks where several kinds competed: the number of the best other kind at the pick's place (its position in
the attribute `kinds`, from 1; 0 if there is none), and the pick's score minus the score of that one."""


def write(
    store: RunStore,
    name: str,
    table: pd.DataFrame,
    attributes: dict[str, Any],
    joined: NDArray[np.int64] | None = None,
) -> None:
    """Replace the picks of a query, unless they are the same. Positions are written in voxels and in ångström.

    The attributes are written last: picks without them are not complete.

    joined : (n, 3) `PIECES` of the instances that have several masks, if there are such
    """
    where = layout.picks(name)
    known = {column: unit for column, unit in (COLUMNS | AMONG_KINDS).items() if column in table}
    columns = {column: (table[column].to_numpy(), unit) for column, unit in known.items()}
    voxels = table[["z", "y", "x"]].to_numpy(dtype=float)
    positions = geometry.to_angstrom(voxels, store.voxel_size, store.origin)
    for i, axis in enumerate(("z", "y", "x")):
        columns[f"position_{axis}"] = positions[:, i].copy(), "angstrom"
    if _are_there(store, name, columns, attributes) and np.array_equal(
        pieces(store, name, table), _alone(table) if joined is None else joined
    ):
        return
    store.delete(where)
    for column, (values, unit) in columns.items():
        store.put(layout.pick_column(name, column), values, ("pick",), {"units": unit} if unit else None)
    if joined is not None:
        for i, column in enumerate(PIECES):
            store.put(layout.piece_column(name, column), joined[:, i].copy(), ("piece",))
    store.group(where).attrs.update(attributes)


def pieces(store: RunStore, name: str, table: pd.DataFrame | None = None) -> NDArray[np.int64]:
    """The masks of a query's picks, (n, 3) `PIECES`: one for each particle, one or more for an extended structure.

    table : the picks, if they have been read
    """
    if layout.piece_column(name, PIECES[-1]) not in store:
        return _alone(read(store, name) if table is None else table)
    return np.column_stack([np.asarray(store.read(layout.piece_column(name, c)), np.int64) for c in PIECES])


def _alone(table: pd.DataFrame) -> NDArray[np.int64]:
    return np.asarray(table[list(PIECES)].to_numpy(np.int64))


def _are_there(store: RunStore, name: str, columns: dict[str, tuple[Any, str]], attributes: dict[str, Any]) -> bool:
    """Whether exactly these picks are stored."""
    where = layout.picks(name)
    try:
        if where not in store or dict(store.group(where).attrs) != attributes:
            return False
        stored = {column: store.read(layout.pick_column(name, column)) for column in columns}
    except StoreError:
        return False
    return all(
        stored[column].dtype == values.dtype and np.array_equal(stored[column], values)
        for column, (values, _) in columns.items()
    )


def read(store: RunStore, name: str) -> pd.DataFrame:
    """The picks of a query, best first; `StoreError` if it has none yet. Some also have the columns `AMONG_KINDS`."""
    import pandas as pd

    where = layout.picks(name)
    if where not in store:
        known = names(store)
        raise StoreError(
            f"{store.url}: no picks called {name!r}; there are {', '.join(known) if known else 'none yet'}"
        )
    columns = [*COLUMNS, *(column for column in AMONG_KINDS if layout.pick_column(name, column) in store)]
    return pd.DataFrame({column: np.asarray(store.read(layout.pick_column(name, column))) for column in columns})


def kinds(store: RunStore, name: str) -> list[str]:
    """The kinds that a query's picks competed with, itself included, in the order of their numbers."""
    where = layout.picks(name)
    stored = store.group(where).attrs.get("kinds", []) if where in store else []
    return [str(kind) for kind in stored] if isinstance(stored, list) else []


def names(store: RunStore) -> list[str]:
    """Names of the queries that have picks."""
    return store.groups(layout.PICKS)
