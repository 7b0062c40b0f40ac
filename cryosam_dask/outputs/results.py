"""Checks which results of a run are meant, that they are finished, and that they do not overwrite the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from cryosam_dask.errors import CryosamError, InputError, StoreError
from cryosam_dask.io import copick_project
from cryosam_dask.stages import label
from cryosam_dask.storage.address import is_local, local_path
from cryosam_dask.store import marks, picks
from cryosam_dask.store.run_store import RunStore


def single_name(store: RunStore, name: str | None, among: Callable[[RunStore], Sequence[str]] = picks.names) -> str:
    """The named query, or the only one of the run, of those that have picks, or of others that `among` gives."""
    known = among(store)
    if name is not None:
        if name not in known:
            raise InputError(f"{store.url}: no results called {name!r}; there are: {', '.join(known) or 'none yet'}")
        return name
    if len(known) != 1:
        raise InputError(f"{store.url}: say which results with --name; there are: {', '.join(known) or 'none yet'}")
    return known[0]


def check_painted(store: RunStore, name: str) -> None:
    """`StoreError` if the labels of a query are not complete: a run may have stopped after it wrote the picks."""
    if not marks.all_done(store, label.stage_name(name)):
        raise StoreError(f"{store.url}: the labels of {name!r} are not finished; run `cryosam segment` again")


def check_own(store: RunStore, path: Path) -> None:
    """InputError for a file in the run, and for the tomogram that the run was made of."""
    if is_local(store.url) and path.absolute().is_relative_to(Path(local_path(store.url)).expanduser().absolute()):
        raise InputError(f"{path}: a run, which no export replaces or adds to; choose another place")
    source = str(store.info.get("input", {}).get("path", ""))
    own = False
    with contextlib.suppress(OSError, CryosamError):  # what is not there is nobody's
        if copick_project.is_address(source):
            source = copick_project.tomogram(source).url
        own = is_local(source) and path.samefile(Path(local_path(source)).expanduser())
    if source and own:
        raise InputError(f"{path}: the run's own tomogram, which no export replaces; choose another name")
