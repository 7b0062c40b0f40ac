"""The units that workers hold, and the workers that hang."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from cryosam_dask.executors.outcomes import Failed
from cryosam_dask.stages.base import Unit

GRACE = 60.0
"""Seconds more for a worker's first unit, which is preceded by the loading of all that the worker needs."""

_LOOKS = 4
"""Looks at the workers in one timeout: a unit that hangs is found after 1 to 1.25 timeouts."""


@dataclass
class Flown:
    """A unit that is with the scheduler.

    Attributes
    ----------
    order : units are begun in this order on a worker
    worker, process : address, and host and process id, of the worker that has begun it; "" before that
    began : when, by this process's clock; None if it is not known to run
    lost : a run that was lost with its worker, until it is known what comes of the unit
    """

    unit: Unit
    key: str
    order: int
    worker: str = ""
    process: str = ""
    began: float | None = None
    lost: Failed | None = None


class Watch:
    """Finds workers that hang: those that run a unit for too long, and those that begin none of the units that they
    hold.

    A worker of the second kind can't report anything: its process is stopped, or its machine does not answer. A worker
    that also holds tasks of others may be busy with those, and is left to the scheduler.

    Parameters
    ----------
    timeout : seconds that one unit may take; None: for ever
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._silent: dict[str, float] = {}
        self._looked = time.monotonic()

    @property
    def interval(self) -> float | None:
        """Seconds after which to look again."""
        return None if self._timeout is None else self._timeout / _LOOKS

    def hung(
        self,
        flown: Collection[Flown],
        processing: Callable[[], Mapping[str, Collection[str]]],
        threads: Callable[[str], int],
    ) -> dict[str, list[Flown]]:
        """Addresses of workers that hang, each with the units that it must be hanging in.

        `processing` asks the scheduler for the keys of the tasks that each worker holds; `threads` says how many
        run at once on a worker.
        """
        now = time.monotonic()
        if self._timeout is None or self.interval is None or now - self._looked < self.interval:
            return {}
        self._looked = now
        hanging: dict[str, list[Flown]] = {}
        for task in flown:
            if task.began is not None and now - task.began > self._timeout:
                hanging.setdefault(task.worker, []).append(task)
        for address, held in self._silent_ones(flown, processing(), now).items():
            if now - self._silent[address] > self._timeout + GRACE:
                hanging.setdefault(address, held[: threads(address)])
        return hanging

    def _silent_ones(
        self, flown: Collection[Flown], holding: Mapping[str, Collection[str]], now: float
    ) -> dict[str, list[Flown]]:
        """Workers that hold units of ours and nothing else, and have begun none of them."""
        ours = {task.key: task for task in flown}
        silent: dict[str, list[Flown]] = {}
        for address, keys in holding.items():
            held = sorted((ours[key] for key in keys if key in ours), key=lambda task: task.order)
            if held and len(held) == len(keys) and not any(task.worker == address for task in held):
                silent[address] = held
        self._silent = {address: self._silent.get(address, now) for address in silent}
        return silent
