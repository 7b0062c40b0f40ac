"""All stages in the order of a run, and what follows from one another: the one list that everybody else reads.

A new stage is its module, its settings, its paths in `store.layout`, and one row here.
"""

from __future__ import annotations

from collections.abc import Iterator

from cryosam_dask.stages import (
    dense,
    embed,
    features,
    ingest,
    label,
    match,
    negative,
    project,
    propose,
    query,
    rank,
    segment,
    select,
    standardize,
)
from cryosam_dask.stages.base import fingerprint
from cryosam_dask.stages.declaration import Command, Declaration
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore

_PROMPTS, _NEGATIVES, _PROPOSALS = segment.STAGES

STAGES: tuple[Declaration, ...] = (
    ingest.STAGE,
    standardize.STAGE,
    features.STAGE,
    dense.STAGE,
    embed.STAGE,
    _PROMPTS,
    query.STAGE,
    _NEGATIVES,
    negative.STAGE,
    project.STAGE,
    match.STAGE,
    rank.STAGE,
    propose.STAGE,
    _PROPOSALS,
    select.STAGE,
    label.STAGE,
)


def declaration_of(stage: str) -> Declaration | None:
    """The declaration of a stage by its name ("match/ribosome/r16"); None for a stage that nobody knows."""
    return next((one for one in STAGES if one.is_of(stage)), None)


def named(name: str) -> Declaration:
    """The declaration of that name ("match")."""
    return next(one for one in STAGES if one.name == name)


def followers(name: str) -> list[Declaration]:
    """The stages that are made, at some remove, from the one of that name, in the order of a run."""
    stale = {name}
    after = []
    for one in STAGES:
        if stale & set(one.made_from):
            stale.add(one.name)
            after.append(one)
    return after


def made_alone(command: Command, per: str) -> list[Declaration]:
    """The stages that a command makes by their declarations alone, when all else that it makes is there."""
    return [one for one in STAGES if one.plan is not None and one.command == command and one.per == per]


def forget(store: RunStore, query: str, *, after: str, itself: bool = False) -> None:
    """Remove what follows from a stage of a query, and with `itself` that stage, too.

    Arrays go before marks, and the marks by which a query is found to be stale last: interrupted before, all this is
    found to be stale again.
    """
    stale = [one for one in [*([named(after)] if itself else []), *followers(after)] if one.per != "run"]
    for one in reversed(stale):
        for path in one.places(store, query):
            store.delete(path)
    for one in reversed(stale):
        store.delete(one.marks(query))


def forget_features(store: RunStore) -> None:
    """Remove the marks of the feature volume, and what is made from it for the run as a whole.

    The marks of the features themselves go last: by them the volume is found to be stale.
    """
    stale = [one for one in [standardize.STAGE, *followers(standardize.NAME)] if one.per == "run"]
    for one in stale:
        for path in one.places(store, ""):
            store.delete(path)
    for one in sorted(stale, key=lambda one: one.name == features.NAME):
        store.delete(one.marks())


def upstream(store: RunStore, declared: Declaration, query: str = "") -> str:
    """The fingerprint of what a stage is made from; of several, one of all of theirs."""
    known: dict[str, str] = {}
    wanted = list(declared.made_from)
    while wanted:
        source = named(wanted.pop())
        if not source.words:  # what the driver does itself has no marks of its own
            wanted += source.made_from
        for stage in begun(store):
            if source.is_of(stage) and source.query_of(stage) in ("", query):
                known[stage] = str((marks.found_stage(store, stage) or {})["fingerprint"])
    return next(iter(known.values())) if len(known) == 1 else fingerprint({"made from": known})


def begun(store: RunStore) -> list[str]:
    """Names of the stages that have begun."""
    names = []
    for path, _ in store.files(layout.MARKS):
        folder, _, file = path.rpartition("/")
        stage = folder.removeprefix(layout.marks(""))
        if file == "zarr.json" and marks.is_there(store, stage):
            names.append(stage)
    return names


def progress(store: RunStore) -> dict[str, tuple[int, int]]:
    """For each stage that has begun how many of its units are done, and how many there are."""
    out = {}
    for stage in sorted(begun(store)):
        done = marks.done(store, stage)
        out[stage] = (int(done.sum()), len(done))
    return out


def in_order(names: Iterator[str] | list[str] | set[str]) -> list[str]:
    """Names of declarations in the order of a run; those that nobody knows come last."""
    given = set(names)
    known = [one.name for one in STAGES if one.name in given]
    return [*known, *sorted(given - set(known))]
