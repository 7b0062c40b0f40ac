"""Faults in real runs, injected where units run, with nothing in the product to help.

A `Spec` is a list of faults and a folder. `Spec.install` replaces `run_unit` in this process: from then on each run of
a unit is counted in the folder, over all processes that share it, and the fault whose turn it is happens: in a matching
stage, at the Nth run, before the work, between data and mark, or after the mark.

Three ways to bring it where units run:

- `with spec.on_workers(client)` : all workers of a Dask cluster, those that are started later included (nannies').
- `with spec.here()` : this process, for a `SerialExecutor`.
- `command(spec, "run", …)` : a command line that runs `cryosam run …` with it, in its own process and in local workers.
- `dask worker --preload injection.py` with `spec.environment()` : workers of a cluster that the test starts by itself.

Afterwards `spec.runs()` is every run of a unit that began, and `spec.fired()` every fault that happened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import fnmatch
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve()
VARIABLE = "INJECTED_FAULTS"
MOST = 2 << 30
"""Bytes that "allocate" takes at most: it must not eat a machine whose nanny does not look."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when.

    Attributes
    ----------
    stage : pattern of the stage's name, as a shell's ("match/*"; * goes over slashes, too)
    at : the number of the run, 1 for the first of all runs of units in matching stages
    when : "before" the work; "data", after it and before its mark; "mark", after its mark and before the answer
    do : "kill" (SIGKILL of the process), "stop" (SIGSTOP), "hang" (sleeps for ever), "raise" (RuntimeError),
        "full" (OSError of a full disk), "allocate" (memory, until something kills the process)
    times : how often it happens to the unit that it happened to; None: whenever that unit runs
    settle : seconds before it, so that what the process has said by then gets out
    heard : it waits until the driver, see `Spec.on_workers`, has heard that this run began
    """

    stage: str
    at: int = 1
    when: Literal["before", "data", "mark"] = "before"
    do: Literal["kill", "stop", "hang", "raise", "full", "allocate"] = "kill"
    times: int | None = 1
    settle: float = 0.0
    heard: bool = False


@dataclass(frozen=True)
class Run:
    """One run of a unit that began."""

    stage: str
    unit: str
    pid: int


@dataclass(frozen=True)
class Fired:
    """One fault that happened: `fault` is its number in the spec."""

    fault: int
    stage: str
    unit: str
    pid: int


@dataclass(frozen=True)
class Spec:
    """Faults, and the folder in which all processes count."""

    folder: str
    faults: tuple[Fault, ...] = ()

    @classmethod
    def new(cls, folder: Path, *faults: Fault) -> Spec:
        """A spec whose folder is made, and empty."""
        folder.mkdir(parents=True)
        return cls(str(folder), faults)

    def runs(self, stage: str = "*") -> list[Run]:
        """Runs of units that began, in the order in which they did."""
        found = [Run(s, unit, int(pid)) for s, unit, pid in self._lines("runs")]
        return [run for run in found if fnmatch.fnmatchcase(run.stage, stage)]

    def fired(self, fault: int | None = None) -> list[Fired]:
        """Faults that happened (of one number), in order."""
        found = [Fired(int(i), stage, unit, int(pid)) for i, stage, unit, pid in self._lines("fired")]
        return [one for one in found if fault is None or one.fault == fault]

    def _lines(self, name: str) -> list[list[str]]:
        path = Path(self.folder) / name
        return [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def loads(cls, text: str) -> Spec:
        data = json.loads(text)
        return cls(data["folder"], tuple(Fault(**fault) for fault in data["faults"]))

    def environment(self) -> dict[str, str]:
        """Variables of a process that preloads this file or imports it by its name."""
        paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, VARIABLE: self.dumps(), "PYTHONPATH": os.pathsep.join(paths)}

    def install(self) -> Callable[[], None]:
        """Replace `run_unit` in this process; returns what undoes that."""
        from cryosam_dask.executors import base

        original = base.run_unit

        def run_unit(stage: str, work: Any, settings: Any, context: Any, unit: Any) -> Any:
            due = self._due(stage, unit.name)

            def watched(*args: Any) -> Any:
                self._happen(due, "before", stage, unit.name)
                result = work(*args)
                self._happen(due, "data", stage, unit.name)
                return result

            finished = original(stage, watched, settings, context, unit)
            self._happen(due, "mark", stage, unit.name)
            return finished

        places = [
            module
            for name, module in list(sys.modules.items())
            if name.startswith("cryosam_dask.executors") and getattr(module, "run_unit", None) is original
        ]
        for module in places:
            module.run_unit = run_unit  # type: ignore[attr-defined]

        def undo() -> None:
            for module in places:
                module.run_unit = original  # type: ignore[attr-defined]

        return undo

    @contextlib.contextmanager
    def here(self) -> Iterator[Spec]:
        """In this process."""
        undo = self.install()
        try:
            yield self
        finally:
            undo()

    @contextlib.contextmanager
    def on_workers(self, client: Any) -> Iterator[Spec]:
        """On all workers of a cluster, those that join or are restarted meanwhile included."""
        name = f"faults-{self.folder}"
        client.register_plugin(_plugin(self), name=name)
        try:
            with self._listening():
                yield self
        finally:
            client.unregister_worker_plugin(name)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Note each run that the driver, which is this process, hears of."""
        from cryosam_dask.executors.flight import Flight

        original = Flight._began

        def began(flight: Any, one: Any, event: Any) -> None:
            original(flight, one, event)
            self._add(f"heard-{event.process.rpartition(':')[2]}", flight._stage.name, one.unit.name)

        Flight._began = began  # type: ignore[method-assign]
        try:
            yield
        finally:
            Flight._began = original  # type: ignore[method-assign]

    def _due(self, stage: str, unit: str) -> list[int]:
        """Count a run; numbers of the faults that are due in it."""
        due = []
        with self._locked():
            self._add("runs", stage, unit, os.getpid())
            for i, fault in enumerate(self.faults):
                if not fnmatch.fnmatchcase(stage, fault.stage):
                    continue
                counted = self._add(f"count-{i}", stage, unit)
                victims = self._lines(f"victim-{i}")
                if counted == fault.at:
                    self._add(f"victim-{i}", stage, unit)
                    due.append(i)
                elif [stage, unit] in victims and (fault.times is None or len(self.fired(i)) < fault.times):
                    due.append(i)
        return due

    def _happen(self, due: list[int], when: str, stage: str, unit: str) -> None:
        for i in due:
            fault = self.faults[i]
            if fault.when == when:
                with self._locked():
                    self._add("fired", i, stage, unit, os.getpid())
                time.sleep(fault.settle)
                while fault.heard and [stage, unit] not in self._lines(f"heard-{os.getpid()}"):
                    time.sleep(0.01)
                ACTIONS[fault.do]()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (Path(self.folder) / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _add(self, name: str, *what: object) -> int:
        """Add a line to a file; the number of its lines now."""
        path = Path(self.folder) / name
        with path.open("a") as file:
            file.write("\t".join(map(str, what)) + "\n")
        return len(path.read_text().splitlines())


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang() -> None:
    while True:
        time.sleep(60)


def _raise() -> None:
    raise RuntimeError("an injected fault\nwith a second line")


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _allocate() -> None:
    held = []
    for _ in range(MOST >> 24):
        held.append(b"\1" * (1 << 24))
        time.sleep(0.005)
    time.sleep(60)
    raise MemoryError("nothing has killed this process")


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": _kill,
    "stop": _stop,
    "hang": _hang,
    "raise": _raise,
    "full": _full,
    "allocate": _allocate,
}


class Faults:
    """A worker plugin that installs a spec in the worker's process."""

    def __init__(self, text: str) -> None:
        self.text = text

    def setup(self, worker: Any) -> None:
        self.undo = Spec.loads(self.text).install()

    def teardown(self, worker: Any) -> None:
        self.undo()


def _plugin(spec: Spec) -> Any:
    """The plugin of a spec. It travels by value: workers need not find this file."""
    import importlib

    import cloudpickle
    from distributed import WorkerPlugin

    if str(HERE.parent) not in sys.path:
        sys.path.insert(0, str(HERE.parent))
    module = importlib.import_module("injection")  # under one name, whoever asks
    cloudpickle.register_pickle_by_value(module)
    return type("FaultsPlugin", (module.Faults, WorkerPlugin), {"__module__": "injection"})(spec.dumps())


def dask_setup(worker: Any) -> None:
    """What `dask worker --preload` calls."""
    Spec.loads(os.environ[VARIABLE]).install()


def command(spec: Spec, *arguments: object) -> list[str]:
    """The command line of `cryosam …` with these faults, in its own process and in its local workers."""
    return [sys.executable, str(HERE), spec.dumps(), *map(str, arguments)]


def main() -> None:
    """`injection.py SPEC …`: `cryosam …` with faults."""
    from cryosam_dask.cli import main as cryosam
    from cryosam_dask.executors import local

    spec = Spec.loads(sys.argv[1])
    spec.install()
    plain = local.local_client

    def with_faults(*args: Any, **kwargs: Any) -> Any:
        client = plain(*args, **kwargs)
        client.register_plugin(_plugin(spec))
        return client

    local.local_client = with_faults
    sys.argv = ["cryosam", *sys.argv[2:]]
    cryosam()


if __name__ == "__main__":
    main()
