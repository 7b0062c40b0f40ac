"""Other proposals of the same query: what was segmented of the former ones is not segmented again.

Of another number for the same ranking whole groups are taken over (`take_over`); where decisions changed the ranking,
masks are kept (`keep`) until the new proposals are segmented, and those at the same places are used then (`recalled`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import StoreError
from cryosam_dask.stages import chain, former, propose, segment
from cryosam_dask.stages.base import Stage, Unit
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, marks
from cryosam_dask.store.instances import StoredInstances
from cryosam_dask.store.run_store import RunStore

_Place = tuple[float, float, float]

_HOW = "made_with"


@dataclass
class Segmented:
    """What was segmented for some proposals.

    Attributes
    ----------
    fingerprint : of the stage; groups : those that are done, with the similarity of each instance to its most similar
        negative, or None
    places : by the proposal's position, its group and the instance in it, None where nothing was segmented there
    """

    fingerprint: str = ""
    groups: dict[int, tuple[StoredInstances, NDArray[Any] | None]] = field(default_factory=dict)
    places: dict[_Place, tuple[int, int] | None] = field(default_factory=dict)


def read(store: RunStore, name: str, group_size: int) -> Segmented:
    """What is segmented of a query's proposals so far; nothing where anything of it can't be read.

    group_size : as of `segment.group_prompts`
    """
    stage, where = segment.PROPOSALS.stage_name(name), layout.instances(name)
    record = marks.found_stage(store, stage)
    if record is None:
        return Segmented()
    out = Segmented(str(record["fingerprint"]))
    with contextlib.suppress(StoreError):
        points, _ = propose.read(store, name)
        done = marks.done(store, stage)
        for index, members in enumerate(segment.group_prompts(points, group_size)):
            if index < len(done) and done[index]:
                group = stored.read(store, layout.group(where, index))
                rival = layout.instance_array(where, index, stored.RIVAL)
                out.groups[index] = group, (store.read(rival) if rival in store else None)
                found = {int(prompt): i for i, prompt in enumerate(group.prompt)}
                for prompt in members:
                    out.places[_place(points[prompt])] = (index, found[prompt]) if prompt in found else None
    return out


def differs_in_points_alone(store: RunStore, stage: Stage) -> bool:
    """Whether a stage was begun with other points, and all else the same."""
    record = marks.found_stage(store, stage.name)
    if record is None or record["fingerprint"] == stage.fingerprint:
        return False
    same = {**stage.settings, "points": record["settings"].get("points")}
    return bool(replace(stage, settings=same).fingerprint == record["fingerprint"])


def take_over(store: RunStore, name: str, stage: Stage, known: Segmented) -> int:
    """Begin a stage anew, with the groups of which all is known as done; returns how many these are."""
    chain.forget(store, name, after=segment.PROPOSALS.stage, itself=True)
    marks.begin(store, stage.name, fingerprint=stage.fingerprint, settings=stage.settings, count=stage.count)
    taken = 0
    for unit in stage.units:
        places = [_place(point) for point in unit.params["points"]]
        if not all(place in known.places for place in places):
            continue
        _write(store, stage, unit.params["index"], dict(zip(unit.params["prompts"], places, strict=True)), known)
        for mark in unit.marks:
            marks.mark(store, stage.name, mark)
        taken += 1
    return taken


def _write(store: RunStore, stage: Stage, index: int, members: dict[int, _Place], known: Segmented) -> None:
    where = stage.settings["where"]
    sources = [(prompt, known.places[place]) for prompt, place in members.items()]
    kept = [(prompt, *known.groups[source[0]], source[1]) for prompt, source in sources if source is not None]
    if stage.settings.get("against"):
        rivals = [rival[i] if rival is not None else -np.inf for _, _, rival, i in kept]
        store.put(layout.instance_array(where, index, stored.RIVAL), np.asarray(rivals, np.float32), ("instance",))
    stored.write(
        store,
        layout.group(where, index),
        stored.collect(
            [prompt for prompt, *_ in kept],
            [group.box[i].tolist() for _, group, _, i in kept],
            [group.mask(i) for _, group, _, i in kept],
            [float(group.quality[i]) for _, group, _, i in kept],
            [float(group.similarity[i]) for _, group, _, i in kept],
        ),
    )


def keep(store: RunStore, name: str, group_size: int) -> None:
    """Keep the masks of a query's proposals, as far as they are segmented, before others are proposed.

    group_size : as of `segment.group_prompts`
    """
    record = marks.found_stage(store, segment.PROPOSALS.stage_name(name))
    with contextlib.suppress(StoreError):
        points, _ = propose.read(store, name)
        if record is None or record["settings"].get("points") != segment.digest_of(points):
            return
        how, where = former.made_with(record["settings"]), layout.former(name)
        rows = _kept(store, name, how)
        number = 1 + max((int(row[3]) for row in rows), default=-1)
        done = marks.done(store, segment.PROPOSALS.stage_name(name))
        for index, members in enumerate(segment.group_prompts(points, group_size)):
            if index < len(done) and done[index]:
                group = stored.read(store, layout.group(layout.instances(name), index))
                stored.write(store, layout.group(where, number), group)
                at = {int(prompt): i for i, prompt in enumerate(group.prompt)}
                rows += [(*_place(points[prompt]), number, at.get(prompt, -1)) for prompt in members]
                number += 1
        if rows:
            dims, told = ("place", "column"), {_HOW: how, "columns": ["z", "y", "x", "group", "instance"]}
            store.put(layout.former_places(name), np.asarray(rows, float), dims, told)


def recalled(store: RunStore, name: str, stage: Stage) -> Stage:
    """The segmentation of a query's proposals, whose units know the masks that were kept of the same places."""
    rows = _kept(store, name, former.made_with(stage.settings))
    if not rows:
        return stage
    at = {(z, y, x): (int(group), int(instance)) for z, y, x, group, instance in rows}
    alone = former.alone(stage.settings)
    groups: dict[int, list[_Place]] = {}
    for z, y, x, group, _ in rows:
        groups.setdefault(int(group), []).append((z, y, x))

    def told(unit: Unit) -> Unit:
        places = [_place(point) for point in unit.params["points"]]
        known = [[prompt, *at[p]] for prompt, p in zip(unit.params["prompts"], places, strict=True) if p in at]
        if known and (alone or groups[known[0][1]] == places):
            return replace(unit, params={**unit.params, former.KNOWN: known})
        return unit

    return replace(stage, units=tuple(map(told, stage.units)))


def _kept(store: RunStore, name: str, how: str) -> list[tuple[float, float, float, float, float]]:
    """Where former proposals were, z, y, x, with the group and the instance of each; none that were made otherwise."""
    path = layout.former_places(name)
    with contextlib.suppress(StoreError):
        if path in store and store.array(path).attrs.get(_HOW) == how:
            return [(z, y, x, group, instance) for z, y, x, group, instance in store.read(path).tolist()]
    return []


def _place(point: Any) -> _Place:
    z, y, x = (float(v) for v in point)
    return z, y, x
