"""Done marks: the finished units of a stage, under the fingerprint of its settings and inputs.

A stage owns one array `marks/STAGE`, one byte a unit and one unit a chunk: marking is one small write that no other
unit touches. The array's attributes hold the fingerprint and the settings it stands for; they are written before the
stage's first unit. A mark's chunk is only ever written with a 1 in it, so one listing of keys tells which units are
done, without a read for each unit. Chunks of data are never taken as marks.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import numpy as np

from cryosam_dask.errors import StoreError
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool


def found_stage(store: RunStore, stage: str) -> dict[str, Any] | None:
    """Attributes of a stage's marks (`fingerprint`, `settings`, …); None if the stage has not begun."""
    path = layout.marks(stage)
    return dict(store.array(path).attrs) if path in store else None


def is_there(store: RunStore, stage: str) -> bool:
    """Whether a stage has marks that can be opened."""
    with contextlib.suppress(StoreError):
        return store.array(layout.marks(stage)) is not None
    return False


def begin(store: RunStore, stage: str, *, fingerprint: str, settings: dict[str, Any], count: int) -> bool:
    """Make sure that marks for this fingerprint exist; True if they are new, False if the stage is being continued.

    `StoreError` if the stage was begun with other settings: the message names those that differ.
    """
    stored = found_stage(store, stage)
    if stored is None:
        store.new_array(
            layout.marks(stage),
            shape=(count,),
            dtype="uint8",
            chunks=(1,),
            # arrays of one group must not share a dimension of different lengths, or xarray can't open them
            dims=(f"unit_of_{stage.rpartition('/')[2]}",),
            attributes={"fingerprint": fingerprint, "settings": settings},
        )
        return True
    if stored["fingerprint"] == fingerprint:
        return False
    differing = differences(stored["settings"], settings) or ["what it was made from"]
    raise StoreError(
        f"{store.url}: {stage} was made with other settings ({'; '.join(differing)}); "
        "use the same settings, another --out or --name, or --overwrite"
    )


def done(store: RunStore, stage: str) -> Bool:
    """Which units are done, as (units,) bool."""
    path = layout.marks(stage)
    out = np.zeros(store.array(path).shape, bool)
    out[[int(name) for name in store.chunk_names(path) if name.isdecimal()]] = True
    return out


def all_done(store: RunStore, stage: str) -> bool:
    """Whether a stage was begun and all of its units are done."""
    return found_stage(store, stage) is not None and bool(done(store, stage).all())


def mark(store: RunStore, stage: str, index: int) -> None:
    """Mark one unit as done; the last thing that a unit does.

    All marks of a stage have the same few bytes. This process encodes its first mark, and writes the same bytes for the
    others: to write each through the array would cost more than everything else around a small unit.
    """
    path = layout.marks(stage)
    key = (store.url, path)
    if key in _written:
        with contextlib.suppress(FileNotFoundError):  # the stage began anew since then
            store.write_chunk(path, index, _written[key])
            return
    store.array(path)[index] = 1
    _written[key] = store.read_chunk(path, index)


_written: dict[tuple[str, str], bytes] = {}
"""A chunk that holds a mark, as it is stored, by store and array."""


def check_same(store: RunStore, stage: str, fingerprint: str) -> None:
    """`StoreError` if a stage was started anew with another fingerprint. A unit may outlive a killed driver, and
    another driver may have overwritten its stage by then. Without a fingerprint nothing is compared."""
    if not fingerprint:
        return
    # read anew, whatever is held open; to open the array would take more than all else around a small unit
    try:
        stored = store.read_metadata(layout.marks(stage))
        if f'"{fingerprint}"'.encode() in stored:
            return
        current = json.loads(stored)["attributes"]["fingerprint"]
    except FileNotFoundError:
        current = None
    except (ValueError, KeyError, TypeError):
        return  # damaged, which is said elsewhere
    if current != fingerprint:
        raise StoreError(
            f"{store.url}: {stage} was overwritten by another command, so this unit of the former one is given up"
        )


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The settings that differ, as `name: old → new`, nested ones by their dotted name; digests as `other name`."""
    out: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            told = not (_is_digest(a) and _is_digest(b))
            out.append(f"{prefix}{key}: {a} → {b}" if told else f"other {prefix}{key}")
    return out


def _is_digest(value: object) -> bool:
    """Whether a setting is the SHA-256 of something that the store does not hold."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
