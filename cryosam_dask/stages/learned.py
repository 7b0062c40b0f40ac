"""What decisions taught of a query, in this tomogram (`stages.refine`) or in the one that the query is borrowed from.

It says what is searched for in the place of the query's feature, how probabilities of places are corrected, which
places are prompts and where nothing may be proposed. What holds in other tomograms, too, is lent with the query.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels import decisions
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages.base import fingerprint
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Json

Float64 = NDArray[np.float64]

STAGE = "refine"
"""Name of the stage that learns."""

REJECTED = 3.0
"""Voxels, at least, around a rejected place in which nothing is proposed."""

SCALE, FACTOR = "scale", "factor"
"""Attributes of a direction: by what factor similarities of masks with it are smaller than those with the query, and by
what factor the threshold of cells is to be."""


def _stage_name(name: str) -> str:
    return f"{STAGE}/{name}"


def is_there(store: RunStore, name: str) -> bool:
    """Whether a query has been refined."""
    return marks.all_done(store, _stage_name(name))


def joined(store: RunStore, name: str, upstream: str) -> str:
    """A fingerprint, joined with that of the decisions if there are any."""
    record = marks.found_stage(store, _stage_name(name))
    return upstream if record is None else fingerprint({"made from": upstream, "decisions": record["fingerprint"]})


def direction(store: RunStore, name: str) -> str | None:
    """Path of what is searched for in the place of the query's feature, (3C,), learned here or borrowed; else None."""
    paths = (layout.refined_array(name, "direction"), layout.query_array(name, "direction"))
    return next((path for path in paths if path in store), None)


def before(store: RunStore, name: str) -> str:
    """Path of what was searched for before anything was decided in this tomogram."""
    path = layout.query_array(name, "direction")
    return path if path in store else layout.query_array(name, "feature")


def scale(store: RunStore, path: str | None, attribute: str = SCALE) -> float:
    """By what factor similarities with a direction are smaller than those with the query's feature; 1 without one."""
    return 1.0 if path is None else float(str(store.array(path).attrs[attribute]))


def rescaled(store: RunStore, name: str) -> float:
    """By what factor similarities with a borrowed query are smaller here than where it is from: it was refined here."""
    path = layout.query_array(name, "direction")
    return scale(store, direction(store, name)) / scale(store, path if path in store else None)


def searched(store: RunStore, name: str, settings: MatchSettings) -> MatchSettings:
    """Settings of the search: similarities to a direction are smaller, and so is the threshold."""
    factor = scale(store, direction(store, name), FACTOR)
    return settings.model_copy(update={"tau_sim": settings.tau_sim * factor})


def corrected(store: RunStore, name: str, probabilities: Float64, descriptors: Float64) -> Float64:
    """Probabilities (n,) of places with descriptors (n, D) after the decisions."""
    told = _told(store, name)
    return probabilities if told is None else decisions.corrected(probabilities, descriptors, *told)


def _told(store: RunStore, name: str) -> tuple[Float64, NDArray[np.bool_]] | None:
    """Descriptors (k, D) of what was decided on, here and where the query is from, and whether it was accepted (k,)."""
    paths = (
        (layout.query_array(name, "decided_descriptors"), layout.query_array(name, "decided")),
        (layout.refined_array(name, "descriptors"), layout.refined_array(name, "accepted")),
    )
    parts = [(store.read(seen), store.read(how)) for seen, how in paths if seen in store]
    if not parts:
        return None
    return np.concatenate([p[0] for p in parts]).astype(float), np.concatenate([p[1] for p in parts]).astype(bool)


def lent(store: RunStore, name: str) -> dict[layout.QueryArray, Array]:
    """What decisions taught that holds in other tomograms: the direction (3C + 2,) from the mean, with its scale and
    factor last; descriptors (k, D), and whether they were accepted (k,)."""
    out: dict[layout.QueryArray, Array] = {}
    if (path := direction(store, name)) is not None:
        away = store.read(path) - store.read(layout.query_array(name, "mean"))
        out["direction"] = np.append(away, [np.float32(scale(store, path, what)) for what in (SCALE, FACTOR)])
    if (told := _told(store, name)) is not None:
        out["decided_descriptors"], out["decided"] = told[0].astype(np.float32), told[1].astype(np.uint8)
    return out


def take(store: RunStore, name: str, rank: str, lent: Json) -> None:
    """Write what `lent` gave, as lists, as that of a borrowed query, once its mean is written."""
    if rank == "similarity" and "direction" in lent:
        *away, smaller, factor = lent["direction"]
        mean = store.read(layout.query_array(name, "mean"))
        values = (mean + np.asarray(away)).astype(np.float32)
        store.put(
            layout.query_array(name, "direction"), values, ("channel",), {SCALE: float(smaller), FACTOR: float(factor)}
        )
    if rank == "descriptor" and "decided_descriptors" in lent:
        seen, how = np.asarray(lent["decided_descriptors"], np.float32), np.asarray(lent["decided"], np.uint8)
        store.put(layout.query_array(name, "decided_descriptors"), seen, ("decision", "component"))
        store.put(layout.query_array(name, "decided"), how, ("decision",))


def count(store: RunStore, name: str) -> int:
    """How many decisions the query learned from in this tomogram."""
    path = layout.refined_array(name, "accepted")
    return int(store.array(path).shape[0]) if path in store and is_there(store, name) else 0


def rejected_profiles(store: RunStore, name: str) -> list[Float64]:
    """Profiles (k, P) of rejected places, in a list; none for a query that was not refined so."""
    path = layout.refined_array(name, "profiles")
    return [np.asarray(store.read(path), float)] if path in store else []


def decided(store: RunStore, name: str) -> tuple[Float64, Float64]:
    """Places (a, 3) that were accepted and (r, 3) that were rejected."""
    path = layout.refined_array(name, "points")
    if path not in store or not is_there(store, name):
        return np.empty((0, 3)), np.empty((0, 3))
    points = np.asarray(store.read(path), float)
    accepted = store.read(layout.refined_array(name, "accepted")).astype(bool)
    return points[accepted], points[~accepted]
