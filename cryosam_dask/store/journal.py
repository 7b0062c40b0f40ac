"""The run's journal: who ran which command, when, for how long and on which device, and which units failed and were
tried again.

Each command that ran any units has one entry, in the attributes of the group `journal`. Only the driver writes it: when
the first unit of a stage has ended, every few seconds, and at the end. The entry of a killed command has no end.
"""

from __future__ import annotations

import datetime
import getpass
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore

GROUP = layout.JOURNAL
MOST_COMMANDS = 200
"""Entries that are kept; the oldest go first."""

MOST_FAILURES = 20
"""Failures that a stage's entry tells in full; all are counted."""

PAUSE = 5.0
"""Seconds between two writes of the same stage, which may come back in hundreds of turns."""


@dataclass
class StageEntry:
    """The entry of one stage in a command's entry.

    Attributes
    ----------
    began : when, in UTC; seconds : wall time in it; device : what its models ran on
    units : runs of units that finished; skipped : units that were done before
    unit_seconds : of all these units together; longest, longest_seconds : the unit that took most
    workers : by host, how many processes ran any; peak : resident bytes of the largest; projected : of the largest unit
    retried : failures after which the unit was tried again; failed : units that were given up
    failures : the first of both, as {unit, worker, error}
    """

    began: str
    device: str = "cpu"
    seconds: float = 0.0
    units: int = 0
    skipped: int = 0
    unit_seconds: float = 0.0
    longest: str = ""
    longest_seconds: float = 0.0
    workers: dict[str, int] = field(default_factory=dict)
    peak: int = 0
    projected: int = 0
    retried: int = 0
    failed: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seen: set[str] = set()

    def add_unit(self, name: str, seconds: float, worker: str, peak: int, *, part: bool = False) -> None:
        """A unit ran to its end on `worker`, as host:process; or a part of one, which is not counted."""
        self.units += not part
        self.unit_seconds += seconds
        self.peak = max(self.peak, peak)
        if worker not in self._seen:
            self._seen.add(worker)
            host = worker.rpartition(":")[0]
            self.workers[host] = self.workers.get(host, 0) + 1
        if seconds > self.longest_seconds:
            self.longest, self.longest_seconds = name, seconds

    def add_stage(self, skipped: int, projected: int) -> None:
        """A turn of the stage ended: units that were done before, and bytes that the largest was projected to take."""
        self.skipped = max(self.skipped, skipped)
        self.projected = max(self.projected, projected)

    def add_failure(self, unit: str, worker: str, error: str, *, given_up: bool) -> None:
        """A unit failed; `error` is one line."""
        self.failed += given_up
        self.retried += not given_up
        if len(self.failures) < MOST_FAILURES:
            self.failures.append({"unit": unit, "worker": worker, "error": error})


class Journal:
    """The entry of one command, which is written with its first stage.

    Parameters
    ----------
    store : the run; command : what was asked for ("query ribosome"); executor : where units run, for people
    """

    def __init__(self, store: RunStore, command: str, executor: str, version: str) -> None:
        self._store = store
        self._stages: dict[str, StageEntry] = {}
        self._entry: dict[str, Any] = {
            "command": command,
            "version": version,
            "user": user(),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "began": now(),
            "ended": None,
            "outcome": "running",
            "executor": executor,
            "notes": [],
        }
        self._earlier: list[dict[str, Any]] | None = None
        self._written = 0.0

    def __contains__(self, stage: str) -> bool:
        return stage in self._stages

    def stage(self, name: str, device: str) -> StageEntry:
        """The entry of a stage, which the caller adds to. What was added before is written, now and then."""
        if name not in self._stages:
            self._stages[name] = StageEntry(now(), device)
            self._write()
        elif time.monotonic() - self._written >= PAUSE:
            self._write()
        return self._stages[name]

    def note(self, text: str) -> None:
        """Add a sentence for readers of the results; it is written with the next entry."""
        if text not in self._entry["notes"]:
            self._entry["notes"].append(text)

    def close(self, outcome: str) -> None:
        """End the entry: "done", or what went wrong in one line. A command that ran nothing leaves none."""
        if self._stages:
            self._entry |= {"ended": now(), "outcome": outcome}
            self._write()

    def _write(self) -> None:
        if self._earlier is None:
            self._earlier = commands(self._store)[-(MOST_COMMANDS - 1) :]
        entry = {**self._entry, "stages": {name: asdict(stage) for name, stage in self._stages.items()}}
        self._store.group(GROUP).attrs["commands"] = [*self._earlier, entry]
        self._written = time.monotonic()


def commands(store: RunStore) -> list[dict[str, Any]]:
    """All entries, oldest first: a command's fields, and `stages`, each with the fields of `StageEntry`."""
    entries = store.root[GROUP].attrs.get("commands") if GROUP in store else None
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def seconds_per_unit(entries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean seconds of a unit, by the kind of its stage ("match" for "match/ribosome/r16"), over all entries."""
    sums: dict[str, tuple[float, int]] = {}
    for entry in entries:
        for name, stage in entry.get("stages", {}).items():
            seconds, units = sums.get(name.partition("/")[0], (0.0, 0))
            sums[name.partition("/")[0]] = (seconds + stage["unit_seconds"], units + stage["units"])
    return {kind: seconds / units for kind, (seconds, units) in sums.items() if units}


def user() -> str:
    """Who runs this, by name or else by number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
