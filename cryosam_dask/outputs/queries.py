"""A run's query as a file that other tomograms' runs take (`--query-from FILE.json`)."""

from __future__ import annotations

from pathlib import Path

from cryosam_dask.errors import InputError
from cryosam_dask.stages import borrow, query_file
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names


def export_query(run: str | Path, path: str | Path, *, name: str | None = None) -> None:
    """Write a finished query with its negatives to a `.json` file, whole or not at all.

    name : may be left out where there is one only. The run need not have gone farther than its queries

    Raises `InputError` for another suffix or an unclear name, `StoreError` where there is no such query.
    """
    store = RunStore.open(run)
    if not query_file.is_file(path):
        raise InputError(f"{path}: a query goes to a file that ends in {query_file.SUFFIX}")
    known = query_names(store)
    if name is None and len(known) != 1:
        raise InputError(f"{store.url}: say which query with --name; there are: {', '.join(known) or 'none yet'}")
    query_file.write(borrow.take(store, name or known[0]), path)
