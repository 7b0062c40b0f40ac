"""The outcome of a unit: its result, with time and memory, or its failure, with what was done about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cryosam_dask.stages.base import Unit, UnitResult


@dataclass(frozen=True)
class Timing:
    """The time and the memory that a unit took.

    Attributes
    ----------
    seconds : wall time on its worker; worker : host and process id
    memory : resident bytes of the worker's process when the unit began; peak : the most while it ran
    together : how many units ran at once in the process, itself included; they share one `peak`
    attempt : which run of the unit this was, 1 if none had failed before
    """

    unit: str
    seconds: float
    worker: str
    memory: int
    peak: int
    together: int = 1
    attempt: int = 1

    def of_attempt(self, attempt: int) -> Timing:
        return replace(self, attempt=attempt)


@dataclass(frozen=True)
class Failure:
    """One run of a unit that failed.

    Attributes
    ----------
    attempt : which run of the unit it was, from 1
    worker : host and process id, or a worker's address; "" if it is not known
    error : one line
    given_up : whether it was the unit's last run; otherwise it is tried again
    """

    unit: str
    attempt: int
    worker: str
    error: str
    given_up: bool


@dataclass(frozen=True)
class Finished:
    """A unit's result, with the time and the memory that it took."""

    result: UnitResult
    timing: Timing


@dataclass(frozen=True)
class Failed:
    """What an executor reports of a unit that did not finish.

    Attributes
    ----------
    worker : where, as in `Failure`
    again : the executor runs the unit again by itself, because its worker was lost; another report follows
    """

    error: BaseException
    worker: str = ""
    again: bool = False


Report = Callable[[Unit, Finished | Failed], None]

Observer = Callable[[Timing | Failure], None]
"""Called after each run of a unit, when it is known how it ended, on the driver's thread."""


def one_line(error: BaseException) -> str:
    """An exception as `Type: first line of its message`."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
