"""Progress on stderr: one line for each stage, with how far it is and how long it will take.

Where stderr is not a terminal nothing is drawn, and each stage leaves two lines in the log at level INFO.
"""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

logger = logging.getLogger(__name__)

SPEED_PERIOD = 1800.0
"""Seconds of the past that the speed is taken from: units of minutes must give an estimate too."""


class StageProgress:
    """One stage's line. `close` it when the stage ends, however it ends."""

    def __init__(self, name: str, total: int, done: int, device: str, bars: Bars | None = None) -> None:
        self._name, self._total, self._done = name, total, done
        self._bars = bars
        self._start = time.monotonic()
        self._task: TaskID | None = None
        if bars is not None:
            bars.start()
            self._task = bars.add_task(name, total=total, completed=done, device=device)
        before = f", {done} of them done before" if done else ""
        logger.info("%s: %d units%s, on %s", name, total, before, device)

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self._done += count
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, count)

    def extend(self, count: int) -> None:
        """`count` units are yet to do: all that is known now, beside those that are done."""
        self._total = self._done + count
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, total=self._total)

    def close(self) -> None:
        """End the line. It stays on the terminal as it is."""
        if self._bars is not None and self._task is not None:
            self._bars.stop_task(self._task)
            if all(task.stop_time is not None for task in self._bars.tasks):
                self._bars.stop()
        seconds = time.monotonic() - self._start
        logger.info("%s: %d of %d units done after %.1f s", self._name, self._done, self._total, seconds)


class Progress:
    """Lines of the stages of one run; stages follow each other, one at a time. For several: `progress_lines`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = Console(stderr=True) if console is None else console

    def stage(self, name: str, total: int, done: int, device: str) -> StageProgress:
        """Begin a stage of `total` units, `done` of them from an earlier run, with models on `device`."""
        return StageProgress(name, total, done, device, self.bars())

    def interleaved(self) -> Interleaved:
        """For stages that take turns: each keeps one line, however often it comes back, until `close`."""
        return Interleaved(self._console, self.bars())

    def bars(self) -> Bars | None:
        """What lines are drawn on; None where they are not."""
        if not self._console.is_terminal:
            return None
        return Bars(
            TextColumn("{task.description:<20}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[device]}", markup=False),
            console=self._console,
            speed_estimate_period=SPEED_PERIOD,
        )

    def close(self) -> None:
        """Do nothing: no line is left open between stages."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Interleaved(Progress):
    """Progress of stages that take turns; see `Progress.interleaved`."""

    def __init__(self, console: Console, bars: Bars | None) -> None:
        super().__init__(console)
        self._shared = bars
        self._lines: dict[str, StageProgress] = {}

    def stage(self, name: str, total: int, done: int, device: str) -> StageProgress:
        """Begin a stage, or go on with it: `total` − `done` units are then yet to do."""
        if name not in self._lines:
            self._lines[name] = self._begin(name, total, done, device)
        else:
            self._lines[name].extend(total - done)
        return self._lines[name]

    def _begin(self, name: str, total: int, done: int, device: str) -> StageProgress:
        return _Turn(name, total, done, device, self._shared)

    def close(self) -> None:
        """End all lines."""
        lines, self._lines = self._lines, {}
        for line in lines.values():
            StageProgress.close(line)


class _Turn(StageProgress):
    def close(self) -> None:
        """The turn ends; the line stays open."""


class NullProgress(Progress):
    """Draws nothing, wherever it runs; the log lines stay."""

    def bars(self) -> Bars | None:
        return None
