"""Progress of several runs that go on at once: a line for each, with the stage that it is in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID

from cryosam_dask.executors.progress import Interleaved, Progress, StageProgress


class Lines:
    """The lines of the runs that go on; each run is in a thread of its own. Use `line` within `with`.

    bars : what they are drawn on; None: nothing is drawn
    """

    def __init__(self, bars: Bars | None) -> None:
        self._bars = bars

    @contextlib.contextmanager
    def line(self, run: str) -> Iterator[Progress]:
        """The progress of a run, which has a line until it ends."""
        if self._bars is None:
            yield _Line(run, None, None)
            return
        task = self._bars.add_task(run, total=None, device="")
        try:
            yield _Line(run, self._bars, task)
        finally:
            self._bars.remove_task(task)

    def start(self) -> None:
        """Begin to draw."""
        if self._bars is not None:
            self._bars.start()

    def close(self) -> None:
        """Take all lines off the terminal."""
        if self._bars is not None:
            self._bars.stop()


class _Line(Progress):
    def __init__(self, run: str, bars: Bars | None, task: TaskID | None) -> None:
        self._run, self._drawn, self._task = run, bars, task

    def stage(self, name: str, total: int, done: int, device: str) -> StageProgress:
        return _Shown(self, name, total, done, device)

    def interleaved(self) -> Interleaved:
        return _Turns(self)

    def show(self, stage: str, done: int, total: int, device: str) -> None:
        """Say how far a stage is."""
        if self._drawn is not None and self._task is not None:
            words = f"{self._run}  {stage}"
            self._drawn.update(self._task, description=words, completed=done, total=total, device=device)


class _Shown(StageProgress):
    """A stage that is shown on the line of its run."""

    def __init__(self, line: _Line, name: str, total: int, done: int, device: str) -> None:
        super().__init__(name, total, done, device)
        self._line, self._device = line, device
        self._show()

    def advance(self, count: int = 1) -> None:
        super().advance(count)
        self._show()

    def extend(self, count: int) -> None:
        super().extend(count)
        self._show()

    def _show(self) -> None:
        self._line.show(self._name, self._done, self._total, self._device)


class _Turn(_Shown):
    def close(self) -> None:
        """The turn ends; the stage goes on."""


class _Turns(Interleaved):
    """Stages that take turns on one line."""

    def __init__(self, line: _Line) -> None:
        super().__init__(Console(quiet=True), None)
        self._line = line

    def _begin(self, name: str, total: int, done: int, device: str) -> StageProgress:
        return _Turn(self._line, name, total, done, device)
