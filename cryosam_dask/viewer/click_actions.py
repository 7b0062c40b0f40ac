"""What a page may do with kinds and clicks."""

from __future__ import annotations

from collections.abc import Callable

from cryosam_dask.errors import InputError
from cryosam_dask.store import layout
from cryosam_dask.store.clicks import Click, Kind, check_color, new_id, next_color
from cryosam_dask.store.run_store import RunStore, check_name
from cryosam_dask.types import Json
from cryosam_dask.viewer import bodies
from cryosam_dask.viewer.desk import Desk
from cryosam_dask.viewer.status import NotThereError

MOST_CLICKS = 1000
"""Of one kind."""

AUTOMATIC = "auto"


def _add_kind(desk: Desk, body: Json) -> Json:
    store, name = desk.need_store(), bodies.text(body, "name")
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
    store, kind = bodies.kind_of(desk, body, "name")
    to = check_name(bodies.text(body, "to"))
    if desk.kind_state(store, kind.name).begun:
        raise InputError(f"{kind.name}: has a query, which keeps its name; add a kind of the other name")
    others = {known.casefold() for known in desk.clicks(store).kinds if known != kind.name}
    if to.casefold() in others or to == layout.KINDS:
        raise InputError(f"{to}: the name is taken; choose another")
    desk.log(store).write([{"do": "rename", "kind": kind.name, "to": to}])
    return {}


def _color_kind(desk: Desk, body: Json) -> Json:
    store, kind = bodies.kind_of(desk, body, "name")
    color = check_color(bodies.text(body, "color"))
    desk.log(store).write([*adopting(desk, store, kind), {"do": "color", "kind": kind.name, "color": color}])
    return {"color": color}


def _remove_kind(desk: Desk, body: Json) -> Json:
    """What the run has of the kind stays there; a kind of that name, added again, has it."""
    store, kind = bodies.kind_of(desk, body, "name")
    for click in kind.clicks:
        desk.previews.forget(click.id)
    desk.log(store).write([*adopting(desk, store, kind), {"do": "remove", "kind": kind.name}])
    return {}


def _add_click(desk: Desk, body: Json) -> Json:
    store, kind = bodies.kind_of(desk, body)
    position = bodies.position_of(store, body.get("position"))
    if len(kind.clicks) >= MOST_CLICKS:
        raise InputError(f"{kind.name}: has {MOST_CLICKS} clicks, of which a few are enough; take some back")
    if position in [click.position for click in kind.clicks]:
        raise InputError(f"{kind.name}: this very place was clicked before; click another particle")
    click = Click(new_id(), position, bool(body.get("positive", True)))
    told = {"id": click.id, "position": list(position), "positive": click.positive}
    event = {"do": "click", "kind": kind.name, **told}
    desk.log(store).write([*adopting(desk, store, kind), event])
    return {"id": click.id}


def _undo_click(desk: Desk, body: Json) -> Json:
    store, kind = bodies.kind_of(desk, body)
    if not kind.clicks:
        raise InputError(f"{kind.name}: no click to take back")
    return _without(desk, store, kind, kind.clicks[-1].id)


def _remove_click(desk: Desk, body: Json) -> Json:
    store, kind = bodies.kind_of(desk, body)
    wanted = bodies.text(body, "id")
    if wanted not in [click.id for click in kind.clicks]:
        raise NotThereError(f"{kind.name}: no click {wanted[:20]!r} any more")
    return _without(desk, store, kind, wanted)


def _without(desk: Desk, store: RunStore, kind: Kind, click: str) -> Json:
    desk.previews.forget(click)
    desk.log(store).write([*adopting(desk, store, kind), {"do": "unclick", "kind": kind.name, "id": click}])
    return {"id": click}


def adopting(desk: Desk, store: RunStore, kind: Kind) -> list[Json]:
    """Events that write down a kind of a query that was made without the page, before anything of it changes."""
    if kind.name in desk.log(store).read().kinds:
        return []
    told = [{"id": c.id, "position": list(c.position), "positive": c.positive} for c in kind.clicks]
    first = {"do": "kind", "kind": kind.name, "color": kind.color}
    return [first, *({"do": "click", "kind": kind.name, **each} for each in told)]


def _cut(desk: Desk, body: Json) -> Json:
    store, kind = bodies.kind_of(desk, body)
    cut = body.get("cut")
    chosen = None if cut in (None, AUTOMATIC) else bodies.number(body, "cut")
    event = {"do": "cut", "kind": kind.name, "cut": chosen, "count": None}
    desk.log(store).write([*adopting(desk, store, kind), event])
    return {}


ACTIONS: dict[str, Callable[[Desk, Json], Json]] = {
    "kind/add": _add_kind,
    "kind/rename": _rename_kind,
    "kind/color": _color_kind,
    "kind/remove": _remove_kind,
    "click/add": _add_click,
    "click/undo": _undo_click,
    "click/remove": _remove_click,
    "cut": _cut,
}
