"""Tiles that were looked at for another query: what is seen in them does not depend on the query."""

from __future__ import annotations

import contextlib

import numpy as np

from cryosam_dask.errors import StoreError
from cryosam_dask.stages import recognize
from cryosam_dask.stages.base import Stage
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names


def take_over(store: RunStore, name: str, stage: Stage) -> None:
    """Begin to recognize with the tiles that were looked at in the same way for another query as done.

    Pieces of an extended structure are those of the query, and are looked for anew.
    """
    if stage.settings["extended"]:
        return
    others = {other: _looked_at(store, other, stage) for other in query_names(store) if other != name}
    donor = max(others, key=lambda other: len(others[other]), default=None)
    if donor is None or not others[donor]:
        return
    marks.begin(store, stage.name, fingerprint=stage.fingerprint, settings=stage.settings, count=stage.count)
    for index in others[donor]:
        with contextlib.suppress(StoreError):  # what can't be read is looked at again
            for source, copy in _arrays(donor, name, index):
                array = store.array(source)
                dims = [str(dim) for dim in getattr(array.metadata, "dimension_names", None) or ()]
                store.put(copy, store.read(source), dims, dict(array.attrs))
            marks.mark(store, stage.name, index)


def _looked_at(store: RunStore, other: str, stage: Stage) -> list[int]:
    """The tiles that were looked at for another query as this stage looks at them."""
    theirs = recognize.stage_name(other)
    record = marks.found_stage(store, theirs)
    if record is None or {**record["settings"], "name": stage.settings["name"]} != stage.settings:
        return []
    return [int(i) for i in np.flatnonzero(marks.done(store, theirs))]


def _arrays(donor: str, name: str, index: int) -> list[tuple[str, str]]:
    """The arrays of a tile: where another query has them, and where this one will."""
    masks = [layout.seen_masks(query) for query in (donor, name)]
    return [
        *(
            (layout.look_array(donor, index, array), layout.look_array(name, index, array))
            for array in recognize.ARRAYS
        ),
        *(
            (layout.instance_array(masks[0], index, array), layout.instance_array(masks[1], index, array))
            for array in stored.ARRAYS
        ),
    ]
