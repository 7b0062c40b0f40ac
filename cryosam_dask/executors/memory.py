"""Memory of workers: what is there, what a unit would need, and what it did need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.filesize import decimal

from cryosam_dask.errors import MemoryLimitError
from cryosam_dask.stages.base import Stage, Unit

PROCESS_MEMORY = 600 << 20
"""Bytes that a worker process holds before its first unit: the interpreter with torch, zarr and scipy imported."""

USABLE = 0.9
"""Part of a worker's limit that units may plan with: a process that comes near its limit is paused, then killed."""


def available_memory() -> int:
    """Bytes that new work on this machine may take, within the limit of the process's control group if it has one."""
    from distributed.system import memory_limit

    own = psutil.Process().memory_info().rss
    return int(min(psutil.virtual_memory().available, memory_limit() - own))


def check_memory(stage: Stage, units: Sequence[Unit], allowed: int | None) -> None:
    """Compare the largest unit's projected memory with what a worker has.

    `MemoryLimitError` names stage, unit, the bytes needed and allowed, and the setting that helps.
    """
    if allowed is None or not units:
        return
    largest = max(units, key=lambda unit: unit.memory)
    needed = largest.memory + stage.model_memory
    if needed > allowed:
        model = f" ({decimal(stage.model_memory)} of it for the model)" if stage.model_memory else ""
        raise MemoryLimitError(
            f"{stage.name}: unit {largest.name} needs {decimal(needed)}{model}, a worker has "
            f"{decimal(max(allowed, 0))} for it; {stage.advice}"
        )


class PeakMemory:
    """Resident memory of this process: at the start of a unit, and the highest since.

    Linux lets a process reset its own high-water mark; elsewhere `peak` is the memory at the moment of asking.
    """

    _RESET = Path("/proc/self/clear_refs")
    _STATUS = Path("/proc/self/status")

    def __init__(self) -> None:
        self.before = int(psutil.Process().memory_info().rss)
        try:
            self._RESET.write_text("5")
        except OSError:
            self._resets = False
        else:
            self._resets = True

    @property
    def peak(self) -> int:
        """Bytes."""
        now = int(psutil.Process().memory_info().rss)
        if not self._resets:
            return max(int(self.before), now)
        for line in self._STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return max(now, int(line.split()[1]) * 1024)
        return now
