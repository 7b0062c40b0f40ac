"""Units that work on what Dask computes: one graph of an array's chunks, and of the units that take its blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import InputError
from cryosam_dask.executors.base import process_name, run_unit
from cryosam_dask.executors.outcomes import Failed, Finished, Report
from cryosam_dask.stages.base import Context, Stage, Unit

if TYPE_CHECKING:
    from distributed import Client, Future

Task = Callable[[Any], Any]
"""What is to be done with a value."""


def graph_with(stage: Stage, tasks: Mapping[str, tuple[Unit, Task]]) -> dict[Any, Any]:
    """What the values of some units of a stage take to compute, with a task for each of them under a key of its own."""
    from dask.optimization import cull

    assert stage.inputs is not None
    ours = {key: (task, stage.inputs.of(unit)) for key, (unit, task) in tasks.items()}
    graph, _ = cull({**(stage.inputs.graph or {}), **ours}, list(ours))
    return dict(graph)


def submit(client: Client, stage: Stage, tasks: Mapping[str, tuple[Unit, Task]]) -> list[Future[Any]]:
    """Send units with all that their values take as one graph; Dask begins no chunk before there is room for it."""
    futures: list[Future[Any]] = client.get(graph_with(stage, tasks), list(tasks), sync=False)
    return futures


def run_here(stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
    """Run units in this thread, in Dask's order, so that what several need is computed once and no sooner than needed.

    Where the array itself can't be computed, Dask ends; then the units that are left are tried one by one.
    """
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


def check_here(values: Any) -> None:
    """`InputError` where something lazy is held by a cluster's workers, and is to be computed in this process."""
    from distributed.client import futures_of

    if futures_of(values):
        raise InputError("the array is persisted on a Dask cluster; give its client=, so that the run is there too")
