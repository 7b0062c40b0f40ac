"""What a stage is: settings, and a list of independent units computed from shapes alone.

A unit opens what it needs by the store's URL, computes, writes whole chunks, and is marked done by whoever runs it.
Units are idempotent: one that ran half and runs again leaves the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json

BESIDES = 4 << 20
"""Bytes that any unit takes besides its own arrays: chunks that are being decoded or encoded, buffers, metadata, and
what the allocator keeps. It varies by some MB, so the memory of a small unit can't be projected closer than that."""


@dataclass(frozen=True)
class Region:
    """A box of an array: `start` inclusive, `stop` exclusive, per axis. `array` is a path in the store or "input"."""

    array: str
    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True)
class Unit:
    """One independent piece of a stage.

    Attributes
    ----------
    name : what a person reads in an error or in the log ("z 16:32")
    marks : the done marks that it stands for, nearly always one
    params : JSON-able parameters of the work function
    reads, writes : regions of the store
    memory : projected peak bytes of its own arrays, without the model
    value : what it gets of the stage's `inputs`, where it runs
    """

    name: str
    marks: tuple[int, ...]
    params: Json = field(default_factory=dict)
    reads: tuple[Region, ...] = ()
    writes: tuple[Region, ...] = ()
    memory: int = 0
    value: Any = None


@dataclass(frozen=True)
class UnitResult:
    """What a unit returns to the driver; `value` is small and JSON-able. A unit that is not `done` gets no mark and
    runs again later: it waits for something that the driver has to provide."""

    value: Json = field(default_factory=dict)
    done: bool = True


@dataclass(frozen=True)
class Context:
    """What a unit needs to run: the URL of the store, the device that models run on, and the fingerprint of its stage,
    or "" where no other command can replace the stage."""

    url: str
    device: str = "cpu"
    fingerprint: str = ""

    @property
    def store(self) -> RunStore:
        """The run, to be read and written; `StoreError` where it can't be opened."""
        return RunStore.open(self.url, "r+")


Work = Callable[[Context, Json, Unit], UnitResult | None]


class Inputs(Protocol):
    """What units work on where no path leads to it: blocks of an array that only the driver has.

    Attributes
    ----------
    graph : Dask's graph that computes the values of all units, so that what several of them need is computed once;
        None where they are here, and travel with their units
    collection : the collection of Dask that the graph is of
    """

    @property
    def collection(self) -> Any: ...

    @property
    def graph(self) -> dict[Any, Any] | None: ...

    def of(self, unit: Unit) -> Any:
        """What a unit gets as its `value`; where there is a graph, the key of that."""
        ...


@dataclass(frozen=True)
class Stage:
    """A stage, ready to run.

    Attributes
    ----------
    name : also the path of its marks ("features", "match/ribosome/r16")
    work : module-level function `work(context, settings, unit)`; it reaches a worker by its name
    settings : everything that its result depends on besides `upstream`
    upstream : fingerprint of what it is made from
    units : independent of each other
    count : number of done marks
    uses_model : whether units run a model (then they ask for a GPU where workers declare one)
    model_memory : bytes of the model, once per worker
    advice : the setting that makes units smaller, for the error that says that they do not fit
    inputs : the values of units, None where they open what they need
    """

    name: str
    work: Work
    settings: Json
    upstream: str
    units: tuple[Unit, ...]
    count: int
    uses_model: bool = False
    model_memory: int = 0
    advice: str = "give the workers more memory"
    inputs: Inputs | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint({"stage": self.name, "settings": self.settings, "upstream": self.upstream})


def fingerprint(what: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able mapping, independent of key order."""
    text = json.dumps(what, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
