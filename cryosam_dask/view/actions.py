"""What a page may ask for: each action by its name, with the body that a request has."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.points.plausible import check_points
from cryosam_dask.pipeline import Driver
from cryosam_dask.stages import propose
from cryosam_dask.store import layout, picks
from cryosam_dask.store.clicks import Click, Kind, check_color, new_id, next_color
from cryosam_dask.store.pages import no_space
from cryosam_dask.store.reviews import VERDICTS, Decision
from cryosam_dask.store.run_store import RunStore, check_name
from cryosam_dask.types import Json, Point
from cryosam_dask.view import commands
from cryosam_dask.view.desk import Desk
from cryosam_dask.view.jobs import BusyError
from cryosam_dask.view.state import same_clicks
from cryosam_dask.view.status import NotThereError

MOST_CLICKS = 1000
"""Of one kind."""

MOST_DECISIONS = 10_000
"""In one request."""

AUTOMATIC = "auto"
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


# Kinds and clicks -----------------------------------------------------------------------------------------------------


def _add_kind(desk: Desk, body: Json) -> Json:
    store, name = desk.need_store(), _text(body, "name")
    check_name(name)
    kinds = desk.clicks(store).kinds
    if name.casefold() in {known.casefold() for known in kinds}:
        raise InputError(f"{name}: there is a kind of that name; choose another")
    if name == layout.KINDS:
        raise InputError(f"{name}: the image of all kinds is called so; choose another name")
    if len(kinds) >= layout.MOST_KINDS:
        raise InputError(f"{len(kinds)} kinds: there can't be more in one run")
    color = body.get("color")
    chosen = next_color(kind.color for kind in kinds.values()) if color is None else check_color(str(color))
    desk.log(store).write([{"do": "kind", "kind": name, "color": chosen}])
    return {"name": name, "color": chosen}


def _rename_kind(desk: Desk, body: Json) -> Json:
    store, kind = _kind(desk, body, "name")
    to = check_name(_text(body, "to"))
    if desk.kind_state(store, kind.name).begun:
        raise InputError(f"{kind.name}: has a query, which keeps its name; add a kind of the other name")
    others = {known.casefold() for known in desk.clicks(store).kinds if known != kind.name}
    if to.casefold() in others or to == layout.KINDS:
        raise InputError(f"{to}: the name is taken; choose another")
    desk.log(store).write([{"do": "rename", "kind": kind.name, "to": to}])
    return {}


def _remove_kind(desk: Desk, body: Json) -> Json:
    """What the run has of the kind stays there; a kind of that name, added again, has it."""
    store, kind = _kind(desk, body, "name")
    for click in kind.clicks:
        desk.previews.forget(click.id)
    desk.log(store).write([*_adopting(desk, store, kind), {"do": "remove", "kind": kind.name}])
    return {}


def _add_click(desk: Desk, body: Json) -> Json:
    store, kind = _kind(desk, body)
    position = _position(store, body.get("position"))
    if len(kind.clicks) >= MOST_CLICKS:
        raise InputError(f"{kind.name}: has {MOST_CLICKS} clicks, of which a few are enough; take some back")
    if position in [click.position for click in kind.clicks]:
        raise InputError(f"{kind.name}: this very place was clicked before; click another particle")
    click = Click(new_id(), position, bool(body.get("positive", True)))
    told = {"id": click.id, "position": list(position), "positive": click.positive}
    event = {"do": "click", "kind": kind.name, **told}
    desk.log(store).write([*_adopting(desk, store, kind), event])
    return {"id": click.id}


def _undo_click(desk: Desk, body: Json) -> Json:
    store, kind = _kind(desk, body)
    if not kind.clicks:
        raise InputError(f"{kind.name}: no click to take back")
    return _without(desk, store, kind, kind.clicks[-1].id)


def _remove_click(desk: Desk, body: Json) -> Json:
    store, kind = _kind(desk, body)
    wanted = _text(body, "id")
    if wanted not in [click.id for click in kind.clicks]:
        raise NotThereError(f"{kind.name}: no click {wanted[:20]!r} any more")
    return _without(desk, store, kind, wanted)


def _without(desk: Desk, store: RunStore, kind: Kind, click: str) -> Json:
    desk.previews.forget(click)
    desk.log(store).write([*_adopting(desk, store, kind), {"do": "unclick", "kind": kind.name, "id": click}])
    return {"id": click}


def _adopting(desk: Desk, store: RunStore, kind: Kind) -> list[Json]:
    """Events that write down a kind of a query that was made without the page, before anything of it changes."""
    if kind.name in desk.log(store).read().kinds:
        return []
    told = [{"id": c.id, "position": list(c.position), "positive": c.positive} for c in kind.clicks]
    first = {"do": "kind", "kind": kind.name, "color": kind.color}
    return [first, *({"do": "click", "kind": kind.name, **each} for each in told)]


def _cut(desk: Desk, body: Json) -> Json:
    store, kind = _kind(desk, body)
    cut = body.get("cut")
    chosen = None if cut in (None, AUTOMATIC) else _number(body, "cut")
    event = {"do": "cut", "kind": kind.name, "cut": chosen, "count": None}
    desk.log(store).write([*_adopting(desk, store, kind), event])
    return {}


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
    store, kind = _kind(desk, body)
    _check_clicked(desk, store, kind)
    asked = {"kind": kind.name}
    desk.start(words_of("like", asked), "like", asked, lambda driver: _query(desk, kind.name, driver()))
    return {}


def _find(desk: Desk, body: Json) -> Json:
    store, kind = _kind(desk, body)
    _check_clicked(desk, store, kind)
    asked: Json = {"kind": kind.name}
    event: Json = {"do": "cut", "kind": kind.name, "cut": kind.cut, "count": kind.count}
    if body.get("count") == AUTOMATIC or body.get("cut") == AUTOMATIC:
        event |= {"cut": None, "count": None}
    elif body.get("count") is not None:
        event |= {"cut": None, "count": _whole(body, "count")}
    elif body.get("cut") is not None:
        event |= {"cut": _number(body, "cut"), "count": None}
    desk.jobs.check_free()
    if (event["cut"], event["count"]) != (kind.cut, kind.count):
        desk.log(store).write([*_adopting(desk, store, kind), event])

    def work(driver: Callable[[], Driver]) -> None:
        runner = driver()
        with runner.command(f"find {kind.name}"):
            _query(desk, kind.name, runner)
            _search(desk, kind.name, runner)

    desk.start(words_of("find", asked), "find", asked, work)
    return {}


def _learn(desk: Desk, body: Json) -> Json:
    store, kind = _kind(desk, body)
    if not desk.decided(store, kind.name):
        raise InputError(f"{kind.name}: nothing was decided about its picks; accept or reject some first")
    asked = {"kind": kind.name}

    def work(driver: Callable[[], Driver]) -> None:
        runner = driver()
        with runner.command(f"refine {kind.name}"):
            runner.refine(kind.name)
            _search(desk, kind.name, runner)

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


def _search(desk: Desk, name: str, driver: Driver) -> None:
    """Rank the candidates of a kind, cut them where the person chose to, and segment what is left."""
    kind = desk.clicks(driver.store).kinds[name]
    count = kind.count
    if kind.cut is not None:
        driver.match(name)
        every = propose.read_candidates(driver.store, name)
        count = None if every is None else max(1, int((every[1] >= np.float32(kind.cut)).sum()))
    if driver.chosen(name) != count:
        driver.choose(name, count)
    else:
        driver.match(name)
    kinds = picks.kinds(driver.store, name)
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
    store, kind = _kind(desk, body)
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
    return Decision(instance, _position(store, told.get("position")), verdict)


def _export(desk: Desk, body: Json) -> Json:
    from cryosam_dask import outputs

    store, wished = desk.need_store(), _text(body, "format")
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


# Bodies ---------------------------------------------------------------------------------------------------------------


def _kind(desk: Desk, body: Json, key: str = "kind") -> tuple[RunStore, Kind]:
    """The run, and the kind that a body names."""
    store, name = desk.need_store(), _text(body, key)
    kinds = desk.clicks(store).kinds
    if name not in kinds:
        raise NotThereError(f"no kind {name[:64]!r}; there are: {', '.join(list(kinds)[:10]) or 'none yet'}")
    return store, kinds[name]


def _text(body: Json, key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{key}: expected a text, got {str(value)[:40]!r}")
    return value


def _number(body: Json, key: str) -> float:
    value = body.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{key}: expected a number, got {str(value)[:40]!r}")
    return float(value)


def _whole(body: Json, key: str) -> int:
    value = _number(body, key)
    if value != int(value) or not 1 <= value <= 10_000_000:
        raise InputError(f"{key}: expected a whole number of 1 or more, got {value:g}")
    return int(value)


def _position(store: RunStore, value: Any) -> Point:
    """A position (z, y, x) in the tomogram."""
    numbers = value if isinstance(value, list) and len(value) == 3 else []
    if not numbers or any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
        raise InputError(f"position {str(value)[:60]}: expected three numbers [z, y, x]")
    z, y, x = check_points(np.array([numbers], float), store.shape)[0].tolist()
    return z, y, x


ACTIONS: dict[str, Callable[[Desk, Json], Json]] = {
    "kind/add": _add_kind,
    "kind/rename": _rename_kind,
    "kind/remove": _remove_kind,
    "click/add": _add_click,
    "click/undo": _undo_click,
    "click/remove": _remove_click,
    "cut": _cut,
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
