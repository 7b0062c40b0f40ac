"""One unit after the other in this process: the reference that other executors are compared with."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Self

from cryosam_dask.executors import lazy
from cryosam_dask.executors.base import Failed, Report, process_name, run_unit, with_value
from cryosam_dask.executors.memory import available_memory
from cryosam_dask.stages.base import Context, Stage, Unit


class SerialExecutor:
    """Runs units here. `device` is a torch device that is known to be there."""

    name = "serial"
    units_per_worker = 1
    slots = 1
    shares = False

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    @property
    def worker_memory(self) -> int | None:
        return available_memory()

    @property
    def precision(self) -> str:
        from cryosam_dask.models.registry import preferred_precision

        return preferred_precision(self.device)

    def describe(self) -> str:
        return f"this process, {device_name(self.device)}"

    def compute(self, values: Sequence[Any]) -> list[Any]:
        from dask.base import compute

        lazy.check_held(list(values), None)
        return list(compute(*values, scheduler="sync"))

    def run(self, stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
        if lazy.is_lazy(stage):
            lazy.run_here(stage, context, units, report, self.worker_memory)
            return
        for unit in units:
            try:
                finished = run_unit(stage.name, stage.work, stage.settings, context, with_value(stage, unit))
            except Exception as error:  # noqa: BLE001 - what to do with a failed unit is the caller's to decide
                report(unit, Failed(error, process_name()))
            else:
                report(unit, finished)

    def sibling(self, priority: int = 0, stop: threading.Event | None = None) -> Self:
        """This one: there is nothing to share."""
        return self

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def device_name(device: str) -> str:
    """A torch device as people call it."""
    return {"cpu": "CPU", "cuda": "GPU", "auto": "CPU or GPU"}.get(device, device)
