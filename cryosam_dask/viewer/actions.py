"""What a page may ask for: each action by its name, with the body that a request has."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.pipeline import Driver
from cryosam_dask.store import picks
from cryosam_dask.store.clicks import Kind
from cryosam_dask.store.pages import no_space
from cryosam_dask.store.reviews import VERDICTS, Decision
from cryosam_dask.store.run_store import RunStore, check_name
from cryosam_dask.types import Json
from cryosam_dask.viewer import bodies, click_actions, commands
from cryosam_dask.viewer.click_actions import AUTOMATIC, adopting
from cryosam_dask.viewer.desk import Desk
from cryosam_dask.viewer.jobs import BusyError
from cryosam_dask.viewer.state import same_clicks
from cryosam_dask.viewer.status import NotThereError

MOST_DECISIONS = 10_000
"""In one request."""

REPORT = "report.html"

SUFFIXES = {"relion4": ".star", "relion5": ".star", "warp": ".star", "stopgap": ".star", "eman2": ".json"}
"""Of files whose format is not told by their suffix, by format."""


def act(desk: Desk, name: str, body: Json) -> Json:
    """Do what a page asks for; returns what it is to know of that."""
    action = ACTIONS.get(name)
    if action is None:
        raise NotThereError(f"no action {name[:40]!r}; there are: {', '.join(ACTIONS)}")
    return action(desk, body) or {}


def words_of(action: str, body: Json) -> str:
    """What a job is called."""
    kind = str(body.get("kind", ""))
    return {
        "ingest": "Reading the tomogram",
        "features": "Features of the tomogram",
        "like": f"Places like {kind}",
        "find": f"Finding all of {kind}",
        "learn": f"Learning what {kind} is like",
        "report": "Report",
    }.get(action, action)


def reading_options(reading: Json) -> list[str]:
    """Options that say how the tomogram's file is read."""
    size, unsigned = reading.get("voxel_size"), reading.get("unsigned")
    words: list[str] = []
    if size is not None:
        words += ["--voxel-size", ",".join(f"{v:g}" for v in np.atleast_1d(size).tolist())]
    if unsigned is not None:
        words.append("--unsigned" if unsigned else "--signed")
    return words


# Jobs -----------------------------------------------------------------------------------------------------------------


def _ingest(desk: Desk, body: Json) -> Json:
    tomogram, reading = desk.tomogram, desk.reading
    if not tomogram:
        raise InputError(f"{desk.url}: its tomogram is not known; open the tomogram itself")
    desk.start(words_of("ingest", body), "ingest", {}, lambda driver: driver().ingest(tomogram, **reading))
    return {}


def _features(desk: Desk, body: Json) -> Json:
    desk.need_store()
    desk.start(words_of("features", body), "features", {}, lambda driver: driver().features(desk.settings))
    return {}


def _like(desk: Desk, body: Json) -> Json:
    store, kind = bodies.kind_of(desk, body)
    _check_clicked(desk, store, kind)
    asked = {"kind": kind.name}
    desk.start(words_of("like", asked), "like", asked, lambda driver: _query(desk, kind.name, driver()))
    return {}


def _find(desk: Desk, body: Json) -> Json:
    store, kind = bodies.kind_of(desk, body)
    _check_clicked(desk, store, kind)
    asked: Json = {"kind": kind.name}
    event: Json = {"do": "cut", "kind": kind.name, "cut": kind.cut, "count": kind.count}
    if body.get("count") == AUTOMATIC or body.get("cut") == AUTOMATIC:
        event |= {"cut": None, "count": None}
    elif body.get("count") is not None:
        event |= {"cut": None, "count": bodies.whole(body, "count")}
    elif body.get("cut") is not None:
        event |= {"cut": bodies.number(body, "cut"), "count": None}
    desk.jobs.check_free()
    if (event["cut"], event["count"]) != (kind.cut, kind.count):
        desk.log(store).write([*adopting(desk, store, kind), event])

    def work(driver: Callable[[], Driver]) -> None:
        runner = driver()
        with runner.command(f"find {kind.name}"):
            _query(desk, kind.name, runner)
            _search(desk, kind.name, runner)

    desk.start(words_of("find", asked), "find", asked, work)
    return {}


def _learn(desk: Desk, body: Json) -> Json:
    store, kind = bodies.kind_of(desk, body)
    if not desk.decided(store, kind.name):
        raise InputError(f"{kind.name}: nothing was decided about its picks; accept or reject some first")
    asked = {"kind": kind.name}

    def work(driver: Callable[[], Driver]) -> None:
        runner = driver()
        with runner.command(f"refine {kind.name}"):
            together = runner.refine(kind.name)
            _search(desk, kind.name, runner, together)

    desk.start(words_of("learn", asked), "learn", asked, work)
    return {}


def _query(desk: Desk, name: str, driver: Driver) -> None:
    """Make the query of a kind's clicks, unless it is made, and its similarity map; before that the features."""
    with driver.command(f"like {name}"):
        driver.features(desk.settings)
        store = driver.store
        kind, state = desk.clicks(store).kinds[name], desk.kind_state(store, name)
        if not (state.made and same_clicks(kind, state)):
            if state.begun:
                driver.forget(name)
            driver.query(name, kind.points(True), desk.settings, kind.points(False))
        driver.compare(name)


def _search(desk: Desk, name: str, driver: Driver, together: Sequence[str] = ()) -> None:
    """Rank the candidates of a kind, cut them where the person chose to, and segment what is left.

    together : the kinds that compete; else those that the picks competed with
    """
    kind = desk.clicks(driver.store).kinds[name]
    if kind.cut is not None or driver.chosen(name) != kind.count:
        driver.choose(name, kind.count, kind.cut)
    else:
        driver.match(name)
    kinds = together or picks.kinds(driver.store, name)
    driver.segment(kinds if len(kinds) > 1 else name)


def _check_clicked(desk: Desk, store: RunStore, kind: Kind) -> None:
    if "statistics" not in store.info:
        raise BusyError("the tomogram is being read; wait until that is done")
    if not kind.points(True) and not desk.kind_state(store, kind.name).borrowed:
        raise InputError(f"{kind.name}: no click; click a particle of that kind first")


def _cancel(desk: Desk, body: Json) -> Json:
    return {"cancelled": desk.jobs.cancel()}


def _resume(desk: Desk, body: Json) -> Json:
    store = desk.store
    asked = desk.log(store).read().asked if store is not None else None
    if asked is None:
        raise InputError("nothing was cancelled or broken off")
    return act(desk, *asked)


def _report(desk: Desk, body: Json) -> Json:
    desk.need_store()

    def work(driver: Callable[[], Driver]) -> None:
        from cryosam_dask.report import write_report

        desk.folder.mkdir(parents=True, exist_ok=True)
        write_report(desk.url, desk.folder / REPORT)

    desk.start(words_of("report", body), "report", {}, work)
    return {}


# Decisions and exports ------------------------------------------------------------------------------------------------


def _review(desk: Desk, body: Json) -> Json:
    store, kind = bodies.kind_of(desk, body)
    told = body.get("decisions")
    if not isinstance(told, list) or not 0 < len(told) <= MOST_DECISIONS:
        raise InputError(f"decisions: expected a list of 1 to {MOST_DECISIONS}")
    if not desk.kind_state(store, kind.name).made:
        raise InputError(f"{kind.name}: has no picks to decide about; find some first")
    decisions = [_decision(store, each) for each in told]
    try:
        written = desk.review_log(store, kind.name).write(decisions)
    except OSError as error:
        raise no_space(store.url, error) from None
    return {"written": len(written)}


def _decision(store: RunStore, told: Any) -> Decision:
    if not isinstance(told, dict):
        raise InputError("a decision: expected instance, position and verdict")
    verdict = told.get("verdict")
    if verdict not in VERDICTS:
        raise InputError(f"verdict {str(verdict)[:20]!r}: expected {', '.join(VERDICTS)}")
    instance = told.get("instance") or 0
    if not isinstance(instance, int) or isinstance(instance, bool) or not 0 <= instance < 2**32:
        raise InputError(f"instance {str(instance)[:20]}: expected a whole number")
    return Decision(instance, bodies.position_of(store, told.get("position")), verdict)


def _export(desk: Desk, body: Json) -> Json:
    from cryosam_dask import outputs

    store, wished = desk.need_store(), bodies.text(body, "format")
    wanted = body.get("kind")
    names = [check_name(str(wanted))] if wanted is not None else picks.names(store)
    if not names:
        raise InputError("nothing was found yet that could be exported; find all of a kind first")
    reviewed = bool(body.get("reviewed"))
    only: dict[str, Any] = {"reviewed": "accepted"} if reviewed else {}
    desk.folder.mkdir(parents=True, exist_ok=True)
    files, lines = [], []
    for name in names:
        path = desk.folder / f"{name}{_ending(wished)}"
        kept = None if wished == "query" else wished
        for note in outputs.export(
            store.url, path, name=name, what="query" if kept is None else None, format=kept, overwrite=True, **only
        ):
            desk.say(note)
        lines.append(commands.export(store.url, str(path), name, wished, reviewed))
        if path.is_dir():
            path = type(path)(shutil.make_archive(str(path), "zip", path.parent, path.name))
        files.append(path.name)
    return {"files": files, "folder": str(desk.folder), "commands": lines}


def _ending(format: str) -> str:
    """The end of a file's name: what tells the format, and the suffix that programs expect."""
    from cryosam_dask.io.points.files import FORMATS, PICK_FORMATS
    from cryosam_dask.outputs.labels import LABEL_FORMATS, MESH_FORMATS

    if format == "query":
        return ".query.json"
    written = {name: PICK_FORMATS[name] for name, each in FORMATS.items() if each.encode}
    known = {**written, **LABEL_FORMATS, **MESH_FORMATS, "ome-zarr-0.4": (".zarr",)}
    if format not in known:
        raise InputError(f"unknown format {format[:20]!r}; expected {', '.join([*known, 'query'])}")
    suffix = next(iter(known[format]), SUFFIXES.get(format, ""))
    return suffix if suffix == f".{format}" else f".{format}{suffix}"


ACTIONS: dict[str, Callable[[Desk, Json], Json]] = {
    **click_actions.ACTIONS,
    "ingest": _ingest,
    "features": _features,
    "like": _like,
    "find": _find,
    "learn": _learn,
    "cancel": _cancel,
    "resume": _resume,
    "report": _report,
    "review": _review,
    "export": _export,
}
