"""All stages in the order of a run, and which follow from which. Everything else reads this list.

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
    recognize,
    refine,
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
    refine.STAGE,
    project.STAGE,
    match.STAGE,
    rank.STAGE,
    recognize.STAGE,
    propose.STAGE,
    _PROPOSALS,
    select.STAGE,
    label.STAGE,
)


def declaration_of(stage: str) -> Declaration | None:
    """The declaration that a stage's name ("match/ribosome/r16") belongs to; None for an unknown stage."""
    return next((declaration for declaration in STAGES if declaration.is_of(stage)), None)


def named(name: str) -> Declaration:
    """The declaration of that name ("match")."""
    return next(stage for stage in STAGES if stage.name == name)


def followers(name: str) -> list[Declaration]:
    """The stages that are made from the one of that name, directly or indirectly, in the order of a run."""
    stale = {name}
    after = []
    for stage in STAGES:
        if stale & set(stage.made_from):
            stale.add(stage.name)
            after.append(stage)
    return after


def made_alone(command: Command, per: str) -> list[Declaration]:
    """The stages of a command that need nothing but their declarations; they are made after its other stages."""
    return [stage for stage in STAGES if stage.plan is not None and stage.command == command and stage.per == per]


def forget(store: RunStore, query: str, *, after: str, itself: bool = False) -> None:
    """Remove what follows from a stage of a query, and with `itself` the stage too.

    Arrays are removed before marks, and the marks that show a query to be stale last. If this is interrupted, the query
    is still stale, and the next command removes the rest.
    """
    stale = [stage for stage in [*([named(after)] if itself else []), *followers(after)] if stage.per != "run"]
    for stage in reversed(stale):
        for path in stage.places(store, query):
            store.delete(path)
    for stage in reversed(stale):
        store.delete(stage.marks(query))


def forget_features(store: RunStore) -> None:
    """Remove the marks of the feature volume, and what is made from it for the run as a whole.

    The marks of the features are removed last, since they show the volume to be stale.
    """
    stale = [stage for stage in [standardize.STAGE, *followers(standardize.NAME)] if stage.per == "run"]
    for stage in stale:
        for path in stage.places(store, ""):
            store.delete(path)
    for stage in sorted(stale, key=lambda stage: stage.name == features.NAME):
        store.delete(stage.marks())


def upstream(store: RunStore, declared: Declaration, query: str = "") -> str:
    """The fingerprint of what a stage is made from; a digest of all fingerprints if it is made from several stages."""
    known: dict[str, str] = {}
    wanted, stages = list(declared.made_from), begun(store)
    while wanted:
        source = named(wanted.pop())
        if not source.words:  # what the driver does itself has no marks of its own
            wanted += source.made_from
        for stage in stages:
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
    """For each stage that has begun, (units that are done, all units)."""
    out = {}
    for stage in sorted(begun(store)):
        done = marks.done(store, stage)
        out[stage] = (int(done.sum()), len(done))
    return out


def in_order(names: Iterator[str] | list[str] | set[str]) -> list[str]:
    """Names of declarations in the order of a run; unknown names come last."""
    given = set(names)
    known = [stage.name for stage in STAGES if stage.name in given]
    return [*known, *sorted(given - set(known))]
