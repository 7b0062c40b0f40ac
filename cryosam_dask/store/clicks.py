"""Kinds and clicks: what a person looks for in a tomogram, before and beside the queries that are made from it.

They are a log of what was done (`store.pages`): a kind was added, a click was made or taken back, a cut was chosen. A
row is one such event as JSON. What there is now follows from all rows of all writers, in the order of time.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.store import layout
from cryosam_dask.store.journal import user
from cryosam_dask.store.pages import PageReader, PageWriter, new_writer, no_space
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json, Point

WIDTH = 640
"""Bytes of an event, at most."""

COLORS = (
    "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#fabed4",
    "#469990", "#dcbeff", "#9a6324", "#fffac8", "#800000", "#aaffc3", "#808000", "#ffd8b1", "#000075", "#a9a9a9",
)  # fmt: skip
"""Colours of kinds, in turn: twenty that are easily told apart (Sasha Trubetskoy's list)."""

_COLOR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class Click:
    """A place that a person clicked. position : (z, y, x) voxels; positive : on the kind, else on what it is not"""

    id: str
    position: Point
    positive: bool


@dataclass
class Kind:
    """A kind of particles. cut, count : where its candidates are to be cut, by score or by number, if that was
    chosen"""

    name: str
    color: str
    clicks: list[Click] = field(default_factory=list)
    cut: float | None = None
    count: int | None = None

    def points(self, positive: bool) -> list[list[float]]:
        """(n, 3) voxels."""
        return [list(click.position) for click in self.clicks if click.positive == positive]


@dataclass
class Clicks:
    """What all events so far amount to. removed : names of kinds that are not shown; asked : the last job that was
    asked for and has not ended, as an action's name and its arguments"""

    kinds: dict[str, Kind] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    asked: tuple[str, Json] | None = None


class ClickLog:
    """Reads the events of all writers, and writes as one of them. May be used by several threads."""

    def __init__(self, store: RunStore, by: str | None = None) -> None:
        self._writer, self._by = new_writer(), user() if by is None else by
        self._url = store.url
        self._reader = PageReader(store, layout.CLICKS)
        self._pages: PageWriter | None = None
        self._latest = 0.0
        self._lock = threading.Lock()

    def read(self) -> Clicks:
        """What there is now."""
        with self._lock:
            return fold(self._events())

    def write(self, events: Sequence[Json]) -> None:
        """Write events; they are on the disk when this returns. `StoreError` where they could not be written."""
        with self._lock:
            try:
                if self._pages is None:
                    store = RunStore.open(self._url, "r+")
                    self._pages = PageWriter(
                        store, lambda page: layout.click_log(self._writer, page), WIDTH, "uint8", {"by": self._by}
                    )
                    self._events()
                for event in events:
                    # a clock that was set back must not put an event before those that it follows
                    when = max(time.time(), self._latest + 1e-6)
                    self._pages.append(_packed({**event, "when": when}))
                    self._latest = when
            except OSError as error:
                raise no_space(self._url, error) from None

    def _events(self) -> list[Json]:
        every: list[tuple[float, str, int, Json]] = []
        for name, rows, _ in self._reader.pages():
            for number, event in enumerate(_unpacked(rows)):
                every.append((float(event["when"]), name, number, event))
        every.sort(key=lambda item: item[:3])
        if every:
            self._latest = max(self._latest, every[-1][0])
        return [event for *_, event in every]


def new_id() -> str:
    """The id of a new click."""
    return secrets.token_hex(6)


def check_color(color: str) -> str:
    """A colour, as #rrggbb."""
    if not _COLOR.fullmatch(color):
        raise InputError(f"colour {color[:20]!r}: expected #rrggbb, as #e6194b")
    return color.lower()


def next_color(taken: Iterable[str]) -> str:
    """A colour that no kind has, as long as there are such."""
    used = list(taken)
    return min(COLORS, key=used.count)


def fold(events: Iterable[Json]) -> Clicks:
    """What events, in the order of time, amount to. One that makes no sense (any more) changes nothing."""
    out = Clicks()
    for event in events:
        _apply(out, event)
    return out


def _apply(out: Clicks, event: Json) -> None:
    do, name = event.get("do"), str(event.get("kind", ""))
    kind = out.kinds.get(name)
    if do == "asked":
        out.asked = (str(event["action"]), dict(event["body"])) if event.get("action") else None
    elif do == "kind":
        color = str(event.get("color", COLORS[0]))
        if kind is None:
            out.kinds[name] = Kind(name, color)
        else:
            kind.color = color
        out.removed.discard(name)
    elif kind is None:
        return
    elif do == "rename" and event["to"] not in out.kinds:
        kind.name = str(event["to"])
        out.kinds = {k.name: k for k in out.kinds.values()}
    elif do == "color":
        kind.color = str(event["color"])
    elif do == "remove":
        del out.kinds[name]
        out.removed.add(name)
    elif do == "click":
        z, y, x = (float(v) for v in event["position"])
        kind.clicks.append(Click(str(event["id"]), (z, y, x), bool(event["positive"])))
    elif do == "unclick":
        kind.clicks = [click for click in kind.clicks if click.id != event["id"]]
    elif do == "cut":
        kind.cut, kind.count = event.get("cut"), event.get("count")


def _packed(event: Json) -> Any:
    """An event as a row of bytes, zeros after its end."""
    text = json.dumps(event, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > WIDTH:
        start = text[:60].decode(errors="replace")
        raise InputError(f"{start}…: {len(text)} bytes, of which {WIDTH} can be kept")
    row = np.zeros(WIDTH, np.uint8)
    row[: len(text)] = np.frombuffer(text, np.uint8)
    return row


def _unpacked(rows: Any) -> list[Json]:
    out = []
    for row in np.asarray(rows, np.uint8):
        text = row.tobytes().rstrip(b"\0")
        try:
            event = json.loads(text) if text else None
            if isinstance(event, dict) and isinstance(event.get("when"), float | int):
                out.append(event)
        except ValueError:  # of a later version, or damaged
            continue
    return out
