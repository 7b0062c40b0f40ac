"""What a page shows of a run: the content of a snapshot."""

from __future__ import annotations

from pathlib import Path

from cryosam_dask.storage.address import public
from cryosam_dask.store.clicks import Click, Kind
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json
from cryosam_dask.viewer import actions, commands, tables
from cryosam_dask.viewer.desk import Desk
from cryosam_dask.viewer.state import KindState, same_clicks

NOTHING_HERE = "nothing could be segmented here; click nearer to the middle of a clearly visible particle"


def content(desk: Desk) -> Json:
    """All that a page shows; what is not there is null."""
    with desk.lock:
        store = desk.store
        return nothing(desk) if store is None else _content(desk, store)


def around(desk: Desk) -> Json:
    """What does not come from the run: the job that runs, and messages."""
    job = desk.jobs.job
    return {"job": None if job is None else job.to_json(), "messages": list(desk.messages)}


def report(desk: Desk) -> Path | None:
    """The run's report, if it was made."""
    path = desk.folder / actions.REPORT
    return path if path.is_file() else None


def nothing(desk: Desk) -> Json:
    """The content before there is a run."""
    run: Json = {"path": public(desk.url), "tomogram": public(desk.tomogram), "shape": None, "voxel_size": None}
    run |= {"ingested": False, "features": False, "models": desk.settings.preset, "extended": False, "report": False}
    empty: Json = {"tomogram": None, "kinds": [], "resumable": None, "commands": _first_commands(desk, False)}
    return {**around(desk), "run": run, **empty}


def _content(desk: Desk, store: RunStore) -> Json:
    ingested = "statistics" in store.info
    if ingested:
        desk.previews.open(store, desk.settings)
    clicks = desk.clicks(store)
    features = store.info.get("features") is not None
    run = {
        "path": public(desk.url),
        "tomogram": str(store.info.get("input", {}).get("path", "")),
        "shape": list(store.shape),
        "voxel_size": list(store.voxel_size),
        "ingested": ingested,
        "features": features,
        "models": desk.settings.preset,
        "extended": False,
        "report": report(desk) is not None,
    }
    kinds, lines = [], _first_commands(desk, features)
    for kind in clicks.kinds.values():
        state = desk.state.kind(store, kind.name)
        shown, own = _kind(desk, store, kind, state, ingested)
        run["extended"] = run["extended"] or shown["extended"]
        kinds.append(shown)
        lines += own
    return {
        **around(desk),
        "run": run,
        "tomogram": desk.state.tomogram(store),
        "kinds": kinds,
        "resumable": actions.words_of(*clicks.asked) if clicks.asked and desk.jobs.job is None else None,
        "commands": lines,
    }


def _first_commands(desk: Desk, features: bool) -> list[str]:
    lines = [commands.ingest(public(desk.tomogram), public(desk.url), actions.reading_options(desk.reading))]
    if features:
        lines.append(commands.features(public(desk.url), desk.settings))
    return lines if desk.tomogram else lines[1:]


def _kind(desk: Desk, store: RunStore, kind: Kind, state: KindState, ingested: bool) -> tuple[Json, list[str]]:
    """A kind of the snapshot, and the commands that do the same."""
    decided = desk.decided(store, kind.name)
    count = {v: sum(d.verdict == v for d in decided) for v in ("accepted", "rejected", "added")}
    query = "none" if not state.made else "made" if same_clicks(kind, state) else "stale"
    candidates = state.candidates
    if candidates is not None and kind.cut is not None:
        candidates = {**candidates, "cut": {**candidates["cut"], "chosen": kind.cut}}
    shown = {
        "name": kind.name,
        "color": kind.color,
        "query": query,
        "refined": state.refined,
        "extended": state.settings is not None and state.settings.match.structure == "extended",
        "clicks": [_click(desk, store, kind.name, click, state, ingested) for click in kind.clicks],
        "similarity": state.similarity,
        "candidates": candidates,
        "picks": state.picks,
        "decided": count,
    }
    url = public(desk.url)
    lines = commands.find(url, kind, state, desk.settings)
    return shown, [*lines, *commands.decisions(url, kind.name, state, decided)]


def _click(desk: Desk, store: RunStore, name: str, click: Click, state: KindState, ingested: bool) -> Json:
    shown: Json = {"id": click.id, "position": list(click.position), "positive": click.positive}
    none: Json = {"preview": None, "voxels": None, "diameter_nm": None, "box": None, "quality": None, "doubts": []}
    mask, version, error = None, "", ""
    if state.made and click.positive and list(click.position) in state.points:
        number = state.points.index(list(click.position))
        mask = desk.prompted(store, name).get(number)
        version = f"{click.id}.q.{name}.{number}.{(state.similarity or {}).get('version', '0')}"
    if mask is None and ingested:
        preview = desk.previews.of(click)
        if preview is not None:
            mask, version, error = preview.mask, preview.version, preview.error
    if error or (mask is not None and mask.final and mask.instance is None):
        said = error or NOTHING_HERE
        return {**shown, "state": "failed", **none, "doubts": [said]}
    if mask is None or mask.instance is None:
        return {**shown, "state": "pending", **none}
    instance = mask.instance
    return {
        **shown,
        "state": "done" if mask.final else "pending",
        "preview": version,
        "voxels": instance.size,
        "diameter_nm": round(tables.diameter_nm(instance.size, store.voxel_size), 2),
        "box": list(instance.box),
        "quality": round(instance.score, 4),
        "doubts": list(mask.doubts),
    }


def prompt_of(version: str) -> tuple[str, int] | None:
    """The query and the number of a prompt whose mask has a version; None for another mask."""
    _, mark, rest = version.partition(".q.")
    name, *numbers = rest.rsplit(".", 2)
    return (name, int(numbers[0])) if mark and len(numbers) == 2 and numbers[0].isdecimal() else None
