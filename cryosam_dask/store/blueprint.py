"""A run's store in memory, for planning: stages create their arrays in it, and no data is ever written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import zarr
from zarr.storage import MemoryStore

from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore


@dataclass(frozen=True)
class ArraySize:
    """An array's path, its bytes before compression, and its chunks, which are objects of the storage."""

    path: str
    bytes: int
    chunks: int


def blueprint(attributes: dict[str, Any]) -> RunStore:
    """An empty store in memory, with the attributes that `RunStore.create` would be given."""
    root = zarr.create_group(MemoryStore(), attributes={"cryosam": {"format": layout.FORMAT, **attributes}})
    return RunStore("blueprint", root)


def array_sizes(store: RunStore) -> Iterator[ArraySize]:
    """All arrays of a store, by their shapes alone."""
    for path, member in store.root.members(max_depth=None):
        if isinstance(member, zarr.Array):
            yield ArraySize(path, int(member.nbytes), int(member.nchunks))
