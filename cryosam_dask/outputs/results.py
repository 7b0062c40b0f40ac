"""Which results of a run are meant, and whether they are finished."""

from __future__ import annotations

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.stages import label
from cryosam_dask.store import marks, picks
from cryosam_dask.store.run_store import RunStore


def single_name(store: RunStore, name: str | None) -> str:
    """The query that is meant: the one named, or the only one there is."""
    known = picks.names(store)
    if name is not None:
        if name not in known:
            raise InputError(f"{store.url}: no results called {name!r}; there are: {', '.join(known) or 'none yet'}")
        return name
    if len(known) != 1:
        raise InputError(f"{store.url}: say which results with --name; there are: {', '.join(known) or 'none yet'}")
    return known[0]


def check_painted(store: RunStore, name: str) -> None:
    """`StoreError` where the labels of a query are not all painted: a run may have stopped after its picks."""
    stage = label.stage_name(name)
    if marks.found_stage(store, stage) is None or not marks.done(store, stage).all():
        raise StoreError(f"{store.url}: the labels of {name!r} are not finished; run `cryosam segment` again")
