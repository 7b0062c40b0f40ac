"""The functions that the driver runs on workers: units, and questions about the worker's process."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import ExecutionError
from cryosam_dask.executors.base import Finished, one_line, process_name, run_unit
from cryosam_dask.stages.base import Work

if TYPE_CHECKING:
    from cryosam_dask.stages.base import Unit


def run_sent(unit: bytes, job: bytes, topic: str = "", value: Any = None) -> Finished:
    """Call `run_unit` on what was sent as bytes, after telling the driver under `topic` that the unit begins.

    `value`, if it is not None, is what Dask computed for the unit.
    """
    from distributed.protocol import pickle

    if topic:
        announce(topic)
    try:
        stage, work, settings, context = pickle.loads(job)
        sent: Unit = pickle.loads(unit)
    except Exception as error:
        raise unlike("a worker", error) from error
    return run_unit(stage, work, settings, context, sent if value is None else replace(sent, value=value))


def take(value: Any, *, unit: bytes, job: bytes, topic: str) -> Finished:
    """`run_sent` as a task of a graph that computes its value."""
    return run_sent(unit, job, topic, value)


def announce(topic: str) -> None:
    """Tell those who listen which task begins, and where."""
    from distributed import get_worker

    worker: Any = get_worker()
    where = {"key": worker.get_current_task(), "worker": worker.address, "process": process_name()}
    worker.log_event(topic, where)


def device_here(requested: str, uses_torch: bool) -> str:
    """The device that `requested` stands for in this process."""
    from cryosam_dask.models.registry import resolve_device

    return resolve_device(requested, uses_torch)


def precision_here(device: str) -> str:
    """The type that models run in best in this process."""
    from cryosam_dask.models.registry import preferred_precision

    return preferred_precision(device)


def work_here(work: Work) -> str:
    """The module in which this process found a work function, which it must be able to load."""
    return work.__module__


def graph_here(graph: bytes, buffers: list[bytes]) -> str:
    """Load a pickled graph, which this process must be able to."""
    from distributed.protocol import pickle

    try:
        pickle.loads(graph, buffers=buffers)
    except Exception as error:
        raise unlike("a worker", error) from error
    return "loaded"


def unlike(who: str, error: BaseException) -> ExecutionError:
    """The error for a process whose packages are not those of the driver."""
    return ExecutionError(
        f"{who} can't load what the units need ({one_line(error)}); install the same packages, in the same versions, "
        "on scheduler and workers as here"
    )
