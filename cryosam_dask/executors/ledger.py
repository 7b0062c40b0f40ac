"""What became of each unit of one `execute`: results, failures, and what is still to be tried."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cryosam_dask.errors import CryosamError, ExecutionError, StoreError
from cryosam_dask.executors.outcomes import Failed, Failure, Finished, Observer, Timing, one_line
from cryosam_dask.executors.progress import StageProgress
from cryosam_dask.stages.base import Unit, UnitResult

logger = logging.getLogger(__name__)

PATIENCE = 32
"""Failures in a row after which a round ends: what is broken for all units should not be tried on all of them."""


class RoundOverError(Exception):
    """Raised through `Executor.run` to end a round early; never leaves `execute`."""


class Ledger:
    """What became of each unit.

    Parameters
    ----------
    bar : the stage's progress; where : what runs the units, for people; observer : told of each run's end
    """

    def __init__(
        self, stage: str, units: Sequence[Unit], bar: StageProgress, where: str, observer: Observer | None = None
    ) -> None:
        self.results: dict[str, UnitResult] = {}
        self.timings: list[Timing] = []
        self.failures: list[Failure] = []
        self._stage, self._where = stage, where
        self._bar = bar
        self._observer = observer
        self._open = {unit.name: unit for unit in units}
        self._attempts = dict.fromkeys(self._open, 1)
        self._errors: dict[str, BaseException] = {}
        self._in_a_row = 0
        self._hopeless = False
        self._last_round = False

    @property
    def settled(self) -> bool:
        """Whether another round has nothing to try."""
        return self._hopeless or not self._open

    def next_round(self, last: bool) -> list[Unit]:
        """Units that are neither finished nor failed for good; those that fail in the last round are given up."""
        self._in_a_row = 0
        self._last_round = last
        return list(self._open.values())

    def report(self, unit: Unit, outcome: Finished | Failed) -> None:
        """Record how a run of a unit ended; `RoundOverError` if it is of no use to go on with this round."""
        if isinstance(outcome, Finished):
            self._finished(unit, outcome)
        elif outcome.again:
            self._note(unit, outcome, given_up=False)
        else:
            self._failed(unit, outcome)

    def _finished(self, unit: Unit, outcome: Finished) -> None:
        self._in_a_row = 0
        self._errors.pop(unit.name, None)
        del self._open[unit.name]
        timing = outcome.timing.of_attempt(self._attempts[unit.name])
        again = f" at attempt {timing.attempt}" if timing.attempt > 1 else ""
        logger.debug("%s: %s done in %.2f s on %s%s", self._stage, unit.name, timing.seconds, timing.worker, again)
        self.results[unit.name] = outcome.result
        self.timings.append(timing)
        if outcome.result.done:
            self._bar.advance(1)
        if self._observer is not None:
            self._observer(timing)

    def _failed(self, unit: Unit, outcome: Failed) -> None:
        final = isinstance(outcome.error, CryosamError)
        self._errors[unit.name] = outcome.error
        if final:
            del self._open[unit.name]
        self._hopeless = isinstance(outcome.error, StoreError)
        self._in_a_row += 1
        self._note(unit, outcome, given_up=final or self._last_round)
        if self._hopeless or self._in_a_row >= PATIENCE:
            raise RoundOverError

    def _note(self, unit: Unit, outcome: Failed, *, given_up: bool) -> None:
        """Keep a failure, and put it in the log with all that is known of it."""
        attempt = self._attempts[unit.name]
        self._attempts[unit.name] = attempt + 1
        failure = Failure(unit.name, attempt, outcome.worker, one_line(outcome.error), given_up)
        logger.info(
            "%s: %s failed%s at attempt %d, %s: %s",
            self._stage,
            unit.name,
            f" on {outcome.worker}" if outcome.worker else "",
            attempt,
            "given up" if given_up else "to be tried again",
            failure.error,
        )
        logger.debug("%s: %s", self._stage, unit.name, exc_info=outcome.error)
        self.failures.append(failure)
        if self._observer is not None:
            self._observer(failure)

    def raise_failures(self) -> None:
        """Raise the error that stands for all units that did not finish, if there are any."""
        if not self._errors:
            return
        for cause in self._errors.values():
            if isinstance(cause, CryosamError):
                raise cause
        names = list(self._errors)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        first = self._errors[names[0]]
        raise ExecutionError(
            f"{self._stage}: {len(names)} of {len(names) + len(self.results)} units failed on {self._where} "
            f"({shown}), the first with {one_line(first)}; finished units are kept, run the same command again to go on"
        ) from first
