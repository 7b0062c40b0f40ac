"""A small run, a session that only holds state, and a client that says what the server answered."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from cryosam_dask.errors import InputError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.kernels.instance import Instance
from cryosam_dask.pipeline import Driver
from cryosam_dask.store import instances, layout, picks
from cryosam_dask.store.run_store import RunStore

RADIUS = 6


def ball(centre: tuple[int, int, int], radius: int = RADIUS) -> tuple[np.ndarray, tuple[int, ...]]:
    """The mask of a ball in its box."""
    side = np.arange(-radius, radius + 1)
    z, y, x = np.meshgrid(side, side, side, indexing="ij")
    low = [c - radius for c in centre]
    return z**2 + y**2 + x**2 <= radius**2, (*low, *(a + 2 * radius + 1 for a in low))


def ingested(tomogram: Path, url: Path) -> RunStore:
    """A run that has nothing but its tomogram."""
    Driver(str(url), SerialExecutor("cpu")).ingest(str(tomogram))
    return RunStore.open(url, "r+")


def add_picks(store: RunStore, name: str, centres: list[tuple[int, int, int]]) -> None:
    """Picks of balls, their masks, and their labels on all levels."""
    masks, boxes = zip(*(ball(c) for c in centres), strict=True)
    n = len(centres)
    group = instances.collect(range(n), boxes, masks, [0.9] * n, [0.8] * n)
    instances.write(store, layout.group(layout.instances(name), 0), group)
    table = pd.DataFrame(
        {
            **{axis: [float(c[i]) for c in centres] for i, axis in enumerate("zyx")},
            "score": np.linspace(0.9, 0.5, n),
            "instance": np.arange(1, n + 1),
            "size": [int(m.sum()) for m in masks],
            "similarity": [0.8] * n,
            "quality": [0.9] * n,
            "prompted": [False] * n,
            "group": [0] * n,
            "member": np.arange(n),
        }
    )
    picks.write(store, name, table, {"complete": True})
    full = np.zeros(store.shape, np.uint32)
    for label, (mask, box) in enumerate(zip(masks, boxes, strict=True), 1):
        part = full[box[0] : box[3], box[1] : box[4], box[2] : box[5]]
        part[mask] = label
    for level in range(layout.level_count(store.shape)):
        step = 1 << level
        values = full[::step, ::step, ::step]
        array = store.new_array(
            layout.labels(name, level),
            shape=values.shape,
            dtype="uint32",
            chunks=layout.level_chunks(level),
            dims=("z", "y", "x"),
        )
        array[...] = values


def add_similarity(store: RunStore, name: str, ratio: int, values: np.ndarray) -> None:
    """A similarity map on cells."""
    array = store.new_array(
        layout.similarity(name, ratio), shape=values.shape, dtype="f4", chunks=(16, 16, 16), dims=("z", "y", "x")
    )
    array[...] = values.astype(np.float32)


class StandInSession:
    """A session that holds what a test gives it, and notes what it is asked to do."""

    def __init__(self, store: RunStore | None) -> None:
        self.store = store
        self.state: dict[str, Any] = {
            "revision": 1,
            "run": {"path": "r.zarr", "ingested": store is not None},
            "tomogram": None if store is None else tomogram_of(store),
            "kinds": [{"name": "ball", "similarity": {"version": "s1"}, "picks": {"version": "p1"}}],
            "job": None,
            "messages": [],
            "commands": [],
        }
        self.acted: list[tuple[str, dict[str, Any]]] = []
        self.previews: dict[str, Instance] = {}
        self.files: dict[str, Path] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def snapshot(self) -> dict[str, Any]:
        return json.loads(json.dumps(self.state))

    def change(self, **values: Any) -> None:
        """Change the state, and tell those who want to know."""
        self.state = {**self.state, **values, "revision": self.state["revision"] + 1}
        with self._lock:
            callbacks = self._callbacks[:]
        for callback in callbacks:
            callback()

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        with self._lock:
            self._callbacks.append(callback)

        def end() -> None:
            with self._lock:
                self._callbacks.remove(callback)

        return end

    @property
    def listeners(self) -> int:
        return len(self._callbacks)

    def act(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        if name == "cancel":
            raise InputError("nothing runs")
        self.acted.append((name, body))
        return {"id": "c1"}

    def preview(self, version: str) -> Instance | None:
        return self.previews.get(version)

    def candidates(self, name: str) -> dict[str, Any]:
        return {"positions": [[1, 2, 3]], "scores": [0.5], "states": ["kept"]}

    def picks(self, name: str) -> dict[str, Any]:
        return {"instances": [1], "positions": [[1, 2, 3]]}

    def report(self) -> Path | None:
        return self.files.get("report.html")

    def download(self, name: str) -> Path | None:
        return self.files.get(name)


def tomogram_of(store: RunStore) -> dict[str, Any]:
    """What a snapshot says of the tomogram."""
    about = store.info["statistics"]
    mean, deviation = float(about["mean"]), float(about["std"])
    return {
        "range": [mean - 6 * deviation, mean + 6 * deviation],
        "window": [mean - 3 * deviation, mean + 3 * deviation],
        "levels": layout.level_count(store.shape),
        "version": "1",
    }


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


def ask(url: str, path: str = "", method: str = "GET", body: Any = None, **headers: str) -> Answer:
    """Ask a server; `path` is beneath the page's address, or from the root if it begins with a slash. Keywords are
    headers, `_` for `-`; a header that is None is not sent."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    sent = {"Host": parts.netloc, **{name.replace("_", "-"): value for name, value in headers.items()}}
    where = path if path.startswith("/") else parts.path + path
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method, where, content, {k: v for k, v in sent.items() if v is not None})
        response = connection.getresponse()
        read = response.read()
    finally:
        connection.close()
    answered = {name.lower(): value for name, value in response.getheaders()}
    if answered.get("content-encoding") == "gzip":
        read = gzip.decompress(read)
    return Answer(response.status, answered, read)


def chunk_of(answer: Answer, shape: tuple[int, int, int], dtype: str = "u1") -> np.ndarray:
    """A raw chunk as an array z, y, x."""
    assert answer.status == 200, answer.body
    return np.frombuffer(answer.body, dtype).reshape(shape)
