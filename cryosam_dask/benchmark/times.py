"""What a configuration took, from the journal of its run."""

from __future__ import annotations

from typing import Any

from cryosam_dask.stages import embed, features, ingest, label, query, segment
from cryosam_dask.store import layout
from cryosam_dask.store.journal import commands
from cryosam_dask.store.run_store import RunStore

SHARED = ("ingest", "features", "embeddings")
"""What the configurations of a tomogram with one encoder have in common: it is counted for each of them, as if it had
been run alone. Embeddings are those that were there when it ended: planes that earlier ones needed are counted too."""

OWN = ("query", "matching", "segmentation")


def kind_of(stage: str, asked: str, name: str) -> str | None:
    """The kind of work of a stage; None for other queries'. `asked` : the prompted query, `name` : the lent one."""
    shared = {ingest.NAME: "ingest", features.STANDARDIZE: "features", features.NAME: "features"}
    shared |= {features.DENSE: "features", embed.NAME: "embeddings"}
    if stage in shared:
        return shared[stage]
    own = {
        query.stage_name(asked): "query",
        segment.stage_name(layout.query(asked)): "query",
        query.stage_name(name): "query",
        segment.stage_name(layout.instances(name)): "segmentation",
        label.stage_name(name): "segmentation",
    }
    if stage in own:
        return own[stage]
    parts = stage.split("/")
    return "matching" if parts[0] in ("match", "project", "rank") and parts[1:2] == [name] else None


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
