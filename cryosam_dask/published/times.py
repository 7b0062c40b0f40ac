"""The time that a configuration took, from the journal of its run."""

from __future__ import annotations

from typing import Any

from cryosam_dask.stages import chain, embed, features
from cryosam_dask.store.journal import commands
from cryosam_dask.store.run_store import RunStore

SHARED = ("ingest", "features", "embeddings")
"""What the configurations of a tomogram with one encoder have in common: it is counted for each of them, as if it had
been run alone. Embeddings are those that were there when it ended: planes that earlier ones needed are counted too."""

OWN = ("query", "matching", "segmentation")


def kind_of(stage: str, asked: str, name: str) -> str | None:
    """The kind of work of a stage; None for other queries'. `asked` : the prompted query, `name` : the lent one."""
    declared = chain.declaration_of(stage)
    if declared is None or not declared.part:
        return None
    whose = {"query": (asked, name)}.get(declared.part, (name,))
    return declared.part if declared.per == "run" or declared.query_of(stage) in whose else None


def seconds_of(store: RunStore, asked: str, name: str) -> tuple[dict[str, float], str, str]:
    """Wall time by kind of work, the device that models ran on, and where units ran, over all commands of the run.

    A command that was killed has its time up to the last few seconds before.
    """
    sums = dict.fromkeys((*SHARED, *OWN), 0.0)
    device = executor = ""
    for entry in commands(store):
        for stage, about in entry.get("stages", {}).items():
            kind = kind_of(stage, asked, name)
            if kind is not None:
                sums[kind] += float(about["seconds"])
                executor = _said(entry, executor)
            if stage in (features.NAME, embed.NAME):
                device = str(about["device"])
    return sums, device, executor


def _said(entry: dict[str, Any], before: str) -> str:
    where = f"{entry.get('executor', '')} on {entry.get('host', '')}"
    return where if where != " on " else before


def minutes(seconds: dict[str, float]) -> float:
    """All that a configuration takes, in minutes."""
    return sum(seconds.values()) / 60
