"""Checks whether a command may go on with what a run has. Each raises a `StoreError` that says what differs.

No check writes. With --overwrite the driver makes only those checks that overwriting can't help.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.settings import Settings
from cryosam_dask.stages import borrow, label, negative, query, structure
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore, check_name
from cryosam_dask.store.views import query_names

COUNT = "chosen_count"
"""Attribute of a query: how many candidates are to be proposed, where a person chose that after looking at them."""


def ingested(store: RunStore) -> RunStore:
    """Return the store; `StoreError` if its ingest is not finished."""
    if "statistics" not in store.info:
        raise StoreError(f"{store.url}: the ingest is not finished; run `cryosam ingest` or `cryosam run` again")
    return store


def queried(store: RunStore, name: str) -> Settings:
    """Return the settings that a query is searched for with; `StoreError` if the query is not finished."""
    ingested(store)
    where = layout.query(check_name(name))
    if where not in store or not marks.all_done(store, query.stage_name(name)):
        finished = [other for other in query_names(store) if marks.all_done(store, query.stage_name(other))]
        known = ", ".join(finished) or "none yet"
        raise StoreError(f"{store.url}: no query called {name!r} (there are: {known}); run `cryosam query` first")
    settings = store.group(where).attrs.get("settings")
    if not isinstance(settings, dict):
        raise StoreError(f"{store.url}: the settings of query {name!r} are lost; run `cryosam query` again")
    if negative.given(store, name) and not marks.all_done(store, negative.stage_name(name)):
        raise StoreError(f"{store.url}: the negative points of {name!r} are not finished; run `cryosam query` again")
    told = Settings.model_validate(settings)
    if (count := store.group(where).attrs.get(COUNT)) is not None:
        told = told.replace({"match.count": count})
    return structure.effective(store, name, told)


def free_name(store: RunStore, name: str) -> None:
    """Check that a query may have this name."""
    check_name(name)
    if name == layout.KINDS and label.kinds_of(store):
        raise StoreError(f"{store.url}: labels/{name} is the image of all kinds here; use another name")


def encoder(store: RunStore, settings: Settings) -> None:
    """Check that the settings name the encoder that made the features: the run would record another one otherwise."""
    made_with, asked = store.info.get("features", {}).get("encoder"), settings.features.encoder
    if made_with not in (None, asked):
        raise StoreError(
            f"{store.url}: its features are of {made_with}, and the models ask for {asked}; give "
            f"--models {made_with}+{settings.propagation.segmenter}, or make the features again with --overwrite"
        )


def same_settings(store: RunStore, name: str, settings: Settings) -> None:
    """Check that a query was made with these settings. All are compared by name: a stage knows only its own."""
    if differing := _other_settings(store, name, settings):
        raise StoreError(
            f"{store.url}: {layout.query(name)} was made with other settings ({'; '.join(differing)}); "
            "use the same settings, another --name, or --overwrite"
        )


def lender(store: RunStore, name: str, settings: Settings) -> None:
    """Check that a query was made with these settings, where it is lent to other runs and used in its own run too."""
    if differing := _other_settings(store, name, settings):
        raise StoreError(
            f"{store.url}: {layout.query(name)}, which others are given, was made here with other settings "
            f"({'; '.join(differing)}); use the same settings, or leave this tomogram out"
        )


def _other_settings(store: RunStore, name: str, settings: Settings) -> list[str]:
    made_with = store.group(layout.query(name)).attrs.get("settings")
    if not isinstance(made_with, dict):
        return []
    # what an earlier version had no setting for was made with the default
    known = Settings.model_validate(made_with).model_dump(mode="json")
    return marks.differences(known, settings.model_dump(mode="json"))


def same_points(store: RunStore, name: str, points: ArrayLike | None, negatives: ArrayLike) -> None:
    """Check that the query of that name, if there is one, was made from these points.

    points : (n, 3) voxels (z, y, x); None for a query that is to be borrowed; negatives : (n, 3)
    """
    where = layout.query(name)
    if where not in store:
        return
    lent, begun = borrow.origin(store, name), marks.found_stage(store, query.stage_name(name))
    if points is not None and lent:
        raise StoreError(
            f"{store.url}: query {name!r} was taken from a run of {lent['tomogram']}; "
            "use another --name for one of these points, or --overwrite"
        )
    if begun is None or (points is None and not lent):
        return
    told = {
        "points": (begun["settings"].get("points"), points),
        "negatives": (negative.given(store, name), negatives),
    }
    differing = [
        f"{what}: {_brief(known)} → {_brief(wanted)}"
        for what, (known, asked) in told.items()
        if asked is not None and known != (wanted := np.asarray(asked, float).reshape(-1, 3).tolist())
    ]
    if differing:
        raise StoreError(
            f"{store.url}: {where} was made with other settings ({'; '.join(differing)}); use the same points and "
            "kinds (clicks on one are negatives of the others), another --name, or --overwrite"
        )


def kinds(store: RunStore, names: Sequence[str]) -> list[str]:
    """Return the names of kinds that can compete for places; `StoreError` or `InputError` if they can't."""
    wanted = list(names)
    if len(set(wanted)) != len(wanted) or not 1 < len(wanted) <= layout.MOST_KINDS:
        raise InputError(f"kinds {', '.join(wanted)}: expected 2 to {layout.MOST_KINDS} different names")
    if layout.query(layout.KINDS) in store:
        raise StoreError(f"{store.url}: labels/{layout.KINDS} is to be the image of all kinds, not of a query")
    chosen = {kind: queried(store, kind).match for kind in wanted}
    ranks = {kind: match.rank for kind, match in chosen.items() if match.structure != "extended"}
    if len(set(ranks.values())) > 1:
        said = ", ".join(f"{kind} by {how}" for kind, how in ranks.items())
        raise StoreError(
            f"{store.url}: kinds that were ranked differently ({said}) can't be compared; "
            "make their queries with the same match.rank"
        )
    return wanted


def _brief(points: object) -> str:
    """A few positions, for an error."""
    listed = points if isinstance(points, list) else []
    return "; ".join([say(point) for point in listed[:3]] + ["…"] * (len(listed) > 3)) or "none"


def say(point: Sequence[float]) -> str:
    """A position, for people."""
    return ",".join(f"{v:g}" for v in point)
