"""Results of a run as files that other programs read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.io.export import write_mrc_labels
from cryosam_dask.io.frame import Block
from cryosam_dask.io.picks import read_points, write_picks
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.stages import label
from cryosam_dask.store import journal, layout, marks, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names, stage_progress
from cryosam_dask.types import Array

What = Literal["picks", "labels", "semantic"]
LABEL_FORMATS = {"mrc": (".mrc", ".map", ".rec")}


def export(
    run: str | Path, path: str | Path, *, name: str | None = None, what: What | None = None, format: str | None = None
) -> None:
    """Write the picks or the labels of a query to a file.

    Parameters
    ----------
    run : the run's store; path : the file, replaced when the new one is complete
    name : the query; may be left out where there is one only
    what : "picks", "labels" (instance ids) or "semantic" (0 or 1); None: by the file's suffix
    format : csv, star (relion4), relion5 or mrc; None: by the file's suffix

    Raises `InputError` for a format that does not hold `what`, `StoreError` where there is nothing to export.
    """
    store = RunStore.open(run)
    chosen = single_name(store, name)
    is_label = format in LABEL_FORMATS or (
        format is None and Path(path).suffix.lower() in [s for suffixes in LABEL_FORMATS.values() for s in suffixes]
    )
    kind: What = what or ("labels" if is_label else "picks")
    if (kind == "picks") == is_label:
        raise InputError(
            f"{path}: {format or Path(path).suffix or 'a file without a suffix'} can't hold {kind}; "
            "picks go to .csv or .star, labels to .mrc (or give --format)"
        )
    if kind == "picks":
        write_picks(
            picks.read(store, chosen),
            path,
            format=format,
            voxel_size=store.voxel_size,
            shape=store.shape,
            tomogram_name=Path(str(store.info["input"]["path"])).stem,
        )
        return
    _check_painted(store, chosen)
    _export_labels(store, chosen if kind == "labels" else layout.semantic_name(chosen), path)


def single_name(store: RunStore, name: str | None) -> str:
    """The query that is meant: the one named, or the only one there is."""
    known = picks.names(store)
    if name is not None:
        if name not in known:
            raise InputError(f"{store.url}: no results called {name!r}; there are: {', '.join(known) or 'none yet'}")
        return name
    if len(known) != 1:
        raise InputError(f"{store.url}: say which results with --name; there are: {', '.join(known) or 'none yet'}")
    return known[0]


def _check_painted(store: RunStore, name: str) -> None:
    """`StoreError` where the labels of a query are not all painted: a run may have stopped after its picks."""
    stage = label.stage_name(name)
    if marks.found_stage(store, stage) is None or not marks.done(store, stage).all():
        raise StoreError(f"{store.url}: the labels of {name!r} are not finished; run `cryosam segment` again")


def _export_labels(store: RunStore, image: str, path: str | Path) -> None:
    array = store.array(layout.labels(image))
    largest = len(picks.read(store, image)) if image in picks.names(store) else 1

    def blocks() -> Iterator[tuple[Block, Array]]:
        for start, stop in geometry.slabs(store.shape[0], layout.INGEST_SLAB):
            yield (slice(start, stop), slice(None), slice(None)), np.asarray(array[start:stop])

    write_mrc_labels(
        path, store.shape, blocks(), max_id=max(largest, 1), voxel_size=store.voxel_size, origin=store.origin
    )


def evaluate(
    run: str | Path,
    truth: str | Path,
    radius: float,
    *,
    name: str | None = None,
    truth_labels: str | Path | None = None,
) -> dict[str, Any]:
    """Compare a query's picks with true positions (and its labels with true ones): a JSON-able dict of figures.

    truth : CSV or STAR of voxels; radius : largest distance of a match, voxels; truth_labels : an MRC of instances
    """
    from cryosam_dask.evaluate import evaluate_masks, evaluate_picks

    store = RunStore.open(run)
    chosen = single_name(store, name)
    points = read_points(truth, voxel_size=store.voxel_size, shape=store.shape)
    table = picks.read(store, chosen)
    figures = evaluate_picks(table[["z", "y", "x"]], table["score"], points[["z", "y", "x"]], radius).to_dict()
    if truth_labels is not None:
        _check_painted(store, chosen)
        source = open_tomogram(truth_labels, voxel_size=store.voxel_size)
        if source.shape != store.shape:
            raise InputError(f"{truth_labels}: shape {source.shape}, the tomogram has {store.shape}")
        true = source.read((slice(None), slice(None), slice(None)))
        figures |= evaluate_masks(store.array(layout.labels(chosen)), true.astype(np.int64)).to_dict()
    return figures


def describe(run: str | Path) -> dict[str, Any]:
    """What a run is of, how far each stage is, and what was found; JSON-able."""
    store = RunStore.open(run)
    queries = {}
    for name in query_names(store):
        attributes = dict(store.group(layout.query(name)).attrs)
        found = len(picks.read(store, name)) if name in picks.names(store) else None
        queries[name] = {"settings": attributes.get("settings"), "instances": found, "from": attributes.get("from")}
    stages = {name: {"done": done, "units": count} for name, (done, count) in stage_progress(store).items()}
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
        lines.append(f"query        {name}: {count}, segmenter {models}{origin}")
    for name, stage in described["stages"].items():
        lines.append(f"stage        {name}: {stage['done']} of {stage['units']} units")
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
