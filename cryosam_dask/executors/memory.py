"""Memory of workers: how much there is, how much a unit would need, and how much it did need."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from rich.filesize import decimal

from cryosam_dask.errors import MemoryLimitError
from cryosam_dask.stages.base import Stage, Unit

PROCESS_MEMORY = 190 << 20
"""Bytes that a worker process holds before its first unit: the interpreter with Dask, zarr and scipy imported."""

TORCH_MEMORY = 670 << 20
"""What torch and the model libraries add to it where a run's models use them."""

USABLE = 0.9
"""Part of a worker's limit that units may plan with: a process that comes near its limit is paused, then killed."""


def process_memory(uses_torch: bool) -> int:
    """Bytes that a worker process holds before its first unit."""
    return PROCESS_MEMORY + (TORCH_MEMORY if uses_torch else 0)


def available_memory() -> int:
    """Bytes that new work on this machine may take, within the limit of the process's control group if it has one."""
    from distributed.system import memory_limit

    own = psutil.Process().memory_info().rss
    return int(min(psutil.virtual_memory().available, memory_limit() - own))


def check_memory(stage: Stage, units: Sequence[Unit], allowed: int | None, sharing: int = 1) -> None:
    """Compare the largest unit's projected memory with the `allowed` bytes that a worker has for one.

    A model is in a worker's memory once, for all `sharing` units that run there at once.

    `MemoryLimitError` names stage, unit, the bytes needed and allowed, and the setting that helps.
    """
    if allowed is None or not units:
        return
    largest = max(units, key=lambda unit: unit.memory)
    part = -(-stage.model_memory // sharing)
    needed = largest.memory + part
    if needed > allowed:
        model = f" ({decimal(part)} of it for the model)" if part else ""
        raise MemoryLimitError(
            f"{stage.name}: unit {largest.name} needs {decimal(needed)}{model}, a worker has "
            f"{decimal(max(allowed, 0))} for it; {stage.advice}"
        )


class PeakMemory:
    """Resident memory of this process while a unit runs, within `with`.

    Linux lets a process reset its high-water mark; elsewhere `peak` is the memory at the end. There is one mark for
    all threads. It is reset only when no other unit is running, so units that overlap share a peak, counted since the
    first of them began; `together` says how many they were at most.

    Attributes
    ----------
    before : bytes when the unit began; peak : the most since then, or since the unit it shares the peak with
    together : units that ran at once in this process while this one did, itself included
    """

    _RESET = Path("/proc/self/clear_refs")
    _STATUS = Path("/proc/self/status")
    _guard = threading.Lock()
    _running: list[PeakMemory] = []  # noqa: RUF012 - of all, on purpose
    _resets = False

    def __enter__(self) -> Self:
        cls = PeakMemory
        with cls._guard:
            if not cls._running:
                cls._resets = self._reset()
            cls._running.append(self)
            self.together = 1
            for measurement in cls._running:
                measurement.together = max(measurement.together, len(cls._running))
            self.before = self.peak = self._resident()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cls = PeakMemory
        with cls._guard:
            self.peak = max(self.before, self._highest() if cls._resets else self._resident())
            cls._running.remove(self)

    @staticmethod
    def _resident() -> int:
        return int(psutil.Process().memory_info().rss)

    def _reset(self) -> bool:
        try:
            self._RESET.write_text("5")
        except OSError:
            return False
        return True

    def _highest(self) -> int:
        for line in self._STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return self._resident()
