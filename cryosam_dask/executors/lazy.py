"""Units that work on a lazy Dask array: one graph holds the array's chunks and the units that take its blocks.

In one graph no chunk is computed twice, however many units need it. But what neighbouring units share is held until the
last of them has it; for a `map_overlap` that is several layers of chunks at a time. So where not all units would fit
into the memory of all workers together there are several graphs, one after the other, each of units that lie in one
block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import InputError
from cryosam_dask.executors.base import process_name, run_unit
from cryosam_dask.executors.outcomes import Failed, Finished, Report
from cryosam_dask.stages.base import Context, Stage, Unit

if TYPE_CHECKING:
    from distributed import Client, Future

MOST_ASKED = 64 << 20
"""Bytes that workers are sent to see whether they can load them."""

Task = Callable[[Any], Any]
"""A function that is called with a unit's value."""


def is_lazy(stage: Stage) -> bool:
    """Whether Dask computes what the units of a stage work on."""
    return stage.inputs is not None and stage.inputs.graph is not None


def graph_with(stage: Stage, tasks: Mapping[str, tuple[Unit, Task]]) -> dict[Any, Any]:
    """The graph that computes the values of some units of a stage, with a task for each unit under a key of its own."""
    from dask.optimization import cull

    assert stage.inputs is not None
    ours = {key: (task, stage.inputs.of(unit)) for key, (unit, task) in tasks.items()}
    graph, _ = cull({**(stage.inputs.graph or {}), **ours}, list(ours))
    return dict(graph)


def portions(units: Sequence[Unit], room: int | None) -> list[list[Unit]]:
    """Group units into blocks that are as compact as possible; each takes at most `room` bytes, or is one unit."""
    if not units:
        return []
    starts = [unit.reads[0].start for unit in units]
    places = [sorted(set(side)) for side in zip(*starts, strict=True)]
    index = [{start: i for i, start in enumerate(side)} for side in places]
    sides = [max(unit.reads[0].stop[a] - unit.reads[0].start[a] for unit in units) for a in range(len(places))]
    spans, largest = [len(side) for side in places], max(unit.memory for unit in units)
    while room is not None and math.prod(spans) * largest > room and math.prod(spans) > 1:
        lengths = [span * side if span > 1 else 0 for span, side in zip(spans, sides, strict=True)]
        widest = lengths.index(max(lengths))
        spans[widest] = -(-spans[widest] // 2)
    blocks: dict[tuple[int, ...], list[Unit]] = {}
    for unit, start in zip(units, starts, strict=True):
        place = tuple(known[a] // span for known, a, span in zip(index, start, spans, strict=True))
        blocks.setdefault(place, []).append(unit)
    return list(blocks.values())


def packed(stage: Stage, unit: Unit) -> tuple[bytes, list[bytes]] | None:
    """What one unit's value is computed with, pickled for `worker_calls.graph_here`; None where that is large."""
    from distributed.protocol import pickle

    buffers: list[Any] = []
    graph = pickle.dumps(graph_with(stage, {"asked": (unit, bool)}), buffer_callback=buffers.append)
    size = len(graph) + sum(memoryview(buffer).nbytes for buffer in buffers)
    return (graph, [bytes(memoryview(buffer)) for buffer in buffers]) if size <= MOST_ASKED else None


def submit(
    client: Client, stage: Stage, tasks: Mapping[str, tuple[Unit, Task]], priority: int = 0
) -> list[Future[Any]]:
    """Send units, and all that computes their values, as one graph; Dask begins no chunk before there is room for
    it."""
    assert stage.inputs is not None
    check_held([stage.inputs.collection], client)
    futures: list[Future[Any]] = client.get(graph_with(stage, tasks), list(tasks), sync=False, priority=priority)
    return futures


def run_here(stage: Stage, context: Context, units: Sequence[Unit], report: Report, room: int | None) -> None:
    """Run units in this thread, in Dask's order, so that what several need is computed once and no sooner than needed.

    room : bytes that they may take together; see `portions`
    """
    assert stage.inputs is not None
    check_held([stage.inputs.collection], None)
    for portion in portions(units, room):
        _run_portion(stage, context, portion, report)


def _run_portion(stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
    """Run units as one graph. Where the array itself can't be computed, that ends; then the units that are left are
    tried one by one."""
    left = {unit.name: unit for unit in units}

    def land(unit: Unit, outcome: Finished | Failed) -> None:
        del left[unit.name]
        report(unit, outcome)

    try:
        _compute(stage, context, units, land)
    except _ComputeError:
        for unit in list(left.values()):
            try:
                _compute(stage, context, [unit], report)
            except _ComputeError as error:
                report(unit, Failed(error.cause, process_name()))


class _ComputeError(Exception):
    """The array could not be computed."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _compute(stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
    """Run units as one graph; what `report` raises passes through, `_ComputeError` is of the array."""
    from dask.callbacks import Callback
    from dask.local import get_sync

    by_key = {f"{stage.name}-{unit.name}": unit for unit in units}
    raised: list[BaseException] = []

    def landed(key: object, outcome: Any, *_: Any) -> None:
        if isinstance(key, str) and key in by_key:
            try:
                report(by_key[key], outcome)
            except BaseException as error:
                raised.append(error)
                raise

    tasks = {key: (unit, functools.partial(_run, stage, context, unit)) for key, unit in by_key.items()}
    graph = graph_with(stage, tasks)
    try:
        with Callback(posttask=landed):
            get_sync(graph, list(by_key))
    except Exception as error:
        if raised:
            raise raised[0] from None
        raise _ComputeError(error) from error


def _run(stage: Stage, context: Context, unit: Unit, value: Any) -> Finished | Failed:
    try:
        return run_unit(stage.name, stage.work, stage.settings, context, replace(unit, value=value))
    except Exception as error:  # noqa: BLE001 - what to do with a failed unit is the caller's to decide
        return Failed(error, process_name())


def check_held(values: Any, client: Client | None) -> None:
    """`InputError` if collections need data on the workers of another client; with None, on any workers."""
    from distributed.client import futures_of

    if any(future.client is not client for future in futures_of(values)):
        raise InputError("the array is persisted on a Dask cluster; give its client=, so that the run is there too")
