"""A description of a run for people and programs: its tomogram, its progress, and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryosam_dask.stages import chain
from cryosam_dask.store import journal, layout, picks, reviews
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names


def describe(run: str | Path) -> dict[str, Any]:
    """Describe a run, JSON-able: its tomogram, the progress of each stage, and what was found."""
    store = RunStore.open(run)
    queries, reviewed = {}, reviews.names(store)
    for name in query_names(store):
        attributes = dict(store.group(layout.query(name)).attrs)
        instances = len(picks.read(store, name)) if name in picks.names(store) else None
        queries[name] = {
            "settings": attributes.get("settings"),
            "instances": instances,
            "from": attributes.get("from"),
            "negatives": attributes.get("negatives", []),
            "kinds": picks.kinds(store, name),
        }
        if name in reviewed:
            queries[name]["decisions"] = len(reviews.standing(store, name))
    stages = {name: {"done": done, "units": count} for name, (done, count) in chain.progress(store).items()}
    return {
        "run": store.url,
        **store.info,
        "queries": queries,
        "stages": stages,
        "journal": journal.commands(store),
    }


def describe_in_words(described: dict[str, Any]) -> str:
    """`describe` as a page for a terminal."""
    statistics, features = described.get("statistics"), described.get("features")
    lines = [
        f"run          {described['run']} (cryosam_dask {described['version']})",
        f"tomogram     {described['input']['path']}",
        f"shape        {' × '.join(str(n) for n in described['shape'])} voxels (z, y, x)",
        f"voxel size   {', '.join(f'{v:g}' for v in described['voxel_size'])} Å",
    ]
    if statistics:
        lines.append(f"voxels       mean {statistics['mean']:.4g}, standard deviation {statistics['std']:.4g}")
    if features:
        lines.append(f"features     {features['encoder']} ({features['weights']}), 3 × {features['channels']} channels")
    for name, query in described["queries"].items():
        models = query["settings"]["propagation"]["segmenter"] if query["settings"] else "?"
        count = "not segmented yet" if query["instances"] is None else f"{query['instances']} instances"
        origin = f", prompted in {query['from']['tomogram']}" if query["from"] else ""
        unlike = f", negative points: {len(query['negatives'])}" if query["negatives"] else ""
        others = ", ".join(other for other in query["kinds"] if other != name)
        told = f", told apart from {others}" if others else ""
        told += f", {query['decisions']} decisions" if query.get("decisions") else ""
        lines.append(f"query        {name}: {count}, segmenter {models}{origin}{unlike}{told}")
    for name, stage in described["stages"].items():
        declared = chain.declaration_of(name)
        some = declared is not None and declared.sparse and stage["done"] < stage["units"]
        why = ", those that prompts reach" if some else ""
        lines.append(f"stage        {name}: {stage['done']} of {stage['units']} units{why}")
    for entry in described["journal"]:
        lines += _entry_in_words(entry)
    return "\n".join(lines)


def _entry_in_words(entry: dict[str, Any]) -> list[str]:
    """One command of the journal: a line, one for each of its stages, and one for each failure."""
    lines = [
        f"journal      {entry['began']} {entry['command']}, by {entry['user']} on {entry['host']}, "
        f"{entry['executor']}: {entry['outcome']}"
    ]
    for name, stage in entry["stages"].items():
        words = [
            f"{stage['units']} units in {stage['seconds']:.1f} s ({stage['unit_seconds']:.1f} s of work) on "
            f"{stage['device']}, {sum(stage['workers'].values())} processes"
        ]
        if stage["skipped"]:
            words.append(f"{stage['skipped']} done before")
        if stage["longest"]:
            words.append(f"longest {stage['longest']} {stage['longest_seconds']:.1f} s")
        if stage["peak"]:
            words.append(f"peak {stage['peak'] / 1e6:.0f} MB")
        words += [f"{stage[what]} {what}" for what in ("retried", "failed") if stage[what]]
        lines.append(f"             {name}: {', '.join(words)}")
        lines += [f"               {f['unit']} on {f['worker'] or '?'}: {f['error']}" for f in stage["failures"]]
    return lines
