"""When a device is in use while planes are embedded and prompts go on, wave by wave, with a stand-in that sleeps.

    python tests/benchmarks/planes_timeline.py [--shape 48,464,480] [--prompts 24] [--threads 1,3] [--embed-ms 12]
                                               [--decode-ms 0.15]

The segmenter has SAM's shapes. It holds a lock, as a GPU's models do, and sleeps for so long a plane and a prompt: what
an H100 is assumed to need for SAM ViT-H. Everything else is the program's own: reading, averaging, writing, waves.
Prints a timeline for each number of threads on standard error, one character for each 50 ms (`#` embedding, `+`
decoding, `.` idle while planes wait, a blank: idle else), and one JSON line: by threads the seconds, the share of the
time that planes waited in which the device was in use, its bound, the ratio of both, the longest gap in milliseconds,
and milliseconds of processor time a plane.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.executors import SerialExecutor
from cryosam_dask.executors.base import Failed, Report, process_name, run_unit
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.settings import Settings
from cryosam_dask.stages import embed, segment
from cryosam_dask.stages.base import Context, Stage, Unit
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Float32, Prediction, Shape3

BOUND = 0.9
"""Least share of the time that planes wait in which the device is in use."""

RADIUS = 6.0
"""Of each mask in pixels."""

Interval = tuple[float, float]


@dataclass
class Device:
    """What holds the models: one thing at a time, and it knows when it was in use."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    used: list[tuple[str, float, float]] = field(default_factory=list)

    def use(self, what: str, seconds: float) -> None:
        with self.turn:
            start = time.perf_counter()
            time.sleep(seconds)
            self.used.append((what, start, time.perf_counter()))


class Sleeping:
    """A segmenter of SAM's shapes that finds a disc at each point, after the device has slept."""

    name = identity = "sleeping"
    batch = 32

    def __init__(self, device: Device, embed_seconds: float, decode_seconds: float) -> None:
        self._device, self._embed, self._decode = device, embed_seconds, decode_seconds
        self._embedding = np.random.default_rng(0).standard_normal((256, 64, 64)).astype(np.float16)

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        return self._embedding.shape

    @property
    def embedding_dtype(self) -> np.dtype[Any]:
        return self._embedding.dtype

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        return 8, 8

    def embed(self, planes: NDArray[np.uint8]) -> Array:
        self._device.use("embed", self._embed * len(planes))
        return np.broadcast_to(self._embedding, (len(planes), *self._embedding.shape))

    def predict(self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Float32 | None) -> Prediction:
        self._device.use("decode", self._decode * len(points))
        rows, cols = np.ogrid[: plane[0], : plane[1]]
        masks = np.stack([(rows - r) ** 2 + (cols - c) ** 2 < RADIUS**2 for r, c in points])[:, None]
        # its own frame says where the disc is
        frames = np.zeros((len(points), 1, 8, 8), np.float32)
        frames[:, 0, 0, :2] = points
        return Prediction(masks, np.full((len(points), 1), 0.9, np.float32), frames)

    def peak(self, logits: Float32, plane: tuple[int, int]) -> Float32:
        peaks: Float32 = logits[:, 0, :2]
        return peaks


class Threads(SerialExecutor):
    """Units on threads of this process, as on a worker with a GPU; it knows when each stage began."""

    def __init__(self, count: int) -> None:
        super().__init__("cpu")
        self.slots = self.units_per_worker = count
        self.ran: list[tuple[str, float, float]] = []

    def run(self, stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
        start = time.perf_counter()
        with ThreadPoolExecutor(self.slots) as pool:
            futures = {
                pool.submit(run_unit, stage.name, stage.work, stage.settings, context, unit): unit for unit in units
            }
            for future in as_completed(futures):
                error = future.exception()
                report(futures[future], Failed(error, process_name()) if error else future.result())
        self.ran.append((stage.name, start, time.perf_counter()))


@contextmanager
def using(segmenter: Sleeping) -> Iterator[None]:
    """The stages' own code with this segmenter in the place of SAM."""
    with (
        mock.patch.object(embed, "get_segmenter", return_value=segmenter),
        mock.patch.object(segment, "get_segmenter", return_value=segmenter),
        mock.patch.object(embed, "weights_identity", return_value="none"),
        mock.patch.object(segment, "weights_identity", return_value="none"),
    ):
        yield


def tomogram(url: str, shape: Shape3, points: NDArray[np.float64]) -> RunStore:
    """A store with a tomogram as the ingest leaves it: noise, with a bright ball at each point."""
    store = RunStore.create(url, {"shape": list(shape), "voxel_size": [10.0] * 3, "origin": [0.0] * 3})
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    ball = np.linalg.norm(np.indices([33] * 3) - 16, axis=0) < 14
    for point in points.astype(int):
        low = np.maximum(point - 16, 0)
        part = values[tuple(slice(a, p + 17) for a, p in zip(low, point, strict=True))]
        cut = tuple(slice(a - p + 16, a - p + 16 + n) for a, p, n in zip(low, point, part.shape, strict=True))
        part += 4 * ball[cut]
    array = store.new_array(layout.tomogram(), shape=shape, dtype="f4", chunks=layout.CHUNK, dims=AXES)
    array[...] = values
    store.update_info(statistics={"mean": 0.0, "std": 1.0, "low": -3.0, "high": 7.0})
    marks.begin(store, "ingest", fingerprint="none", settings={}, count=1)
    return store


def settings(**changes: Any) -> Settings:
    """Of short walks in small groups."""
    usual = {"max_reach": 0.5, "group": 8, "precision": "float32", "rule": "guarded"}
    return settings_for("paper", {f"propagation.{name}": value for name, value in (usual | changes).items()})


def segmented(store: RunStore, points: NDArray[np.float64], threads: int, segmenter: Sleeping) -> Threads:
    """Segment all points, as the driver does it; what ran the units."""
    executor = Threads(threads)
    driver = Driver(store.url, executor)
    with using(segmenter), driver.command("segment"):
        stage = segment.plan(store.shape, settings().propagation, "", segment.PROMPTS, "ball", points)
        driver._segment(stage, settings(), points)
    return executor


def planes_waited(device: Device, executor: Threads) -> list[Interval]:
    """From the beginning of each wave's embedding until its last plane was embedded."""
    ends = [stop for what, _, stop in device.used if what == "embed"]
    runs = [(start, stop) for name, start, stop in executor.ran if name == embed.NAME]
    return [(start, max(end for end in ends if start < end < stop)) for start, stop in runs]


def in_use(device: Device, executor: Threads) -> dict[str, float]:
    """The device's use while planes waited to be embedded, and the longest gap then."""
    used = sorted((start, stop) for _, start, stop in device.used)
    waited = planes_waited(device, executor)
    gaps = [gap for wait in waited for gap in _gaps(used, wait)]
    whole = sum(stop - start for start, stop in waited)
    share = 1 - sum(gaps) / whole if whole else 1.0
    return {
        "seconds": round(used[-1][1] - used[0][0], 2),
        "planes_waited_seconds": round(whole, 2),
        "in_use": round(share, 3),
        "bound": BOUND,
        "ratio": round(share / BOUND, 2),
        "longest_gap_ms": round(1e3 * max(gaps, default=0.0), 1),
    }


def _gaps(used: Sequence[Interval], within: Interval) -> Iterator[float]:
    """Parts of an interval in which nothing is in use."""
    at, end = within
    for start, stop in used:
        if start > at:
            yield max(min(start, end) - at, 0.0)
        at = max(at, stop)
        if at >= end:
            return
    yield end - at


def timeline(device: Device, executor: Threads, step: float = 0.05) -> str:
    """One character for each `step` seconds, by what most of it was."""
    begin, end = executor.ran[0][1], max(stop for _, _, stop in device.used)
    edges = np.arange(begin, end + step, step)
    shares = {kind: np.zeros(len(edges)) for kind in ("#", "+", ".")}
    rows = [("#" if what == "embed" else "+", a, b) for what, a, b in device.used]
    rows += [(".", a, b) for a, b in planes_waited(device, executor)]
    for kind, a, b in rows:
        shares[kind] += np.clip(np.minimum(edges + step, b) - np.maximum(edges, a), 0, None)
    idle = step - shares["#"] - shares["+"]
    text = ""
    for embedding, decoding, waiting, none in zip(shares["#"], shares["+"], shares["."], idle, strict=True):
        busy = "#" if embedding >= decoding else "+"
        text += busy if embedding + decoding > none else "." if waiting > step / 2 else " "
    return "\n".join(text[i : i + 100] for i in range(0, len(text), 100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="48,464,480", type=lambda v: tuple(int(n) for n in v.split(",")))
    parser.add_argument("--prompts", default=24, type=int)
    parser.add_argument("--threads", default="1,3", type=lambda v: [int(n) for n in v.split(",")])
    parser.add_argument("--embed-ms", default=12.0, type=float)
    parser.add_argument("--decode-ms", default=0.15, type=float)
    options = parser.parse_args()
    points = np.random.default_rng(1).uniform(16, np.array(options.shape) - 17, (options.prompts, 3)).round()
    row: dict[str, Any] = {"shape": options.shape, "prompts": options.prompts, "embed_ms": options.embed_ms}
    with tempfile.TemporaryDirectory() as folder:
        for threads in options.threads:
            store, device = tomogram(str(Path(folder) / f"{threads}.zarr"), options.shape, points), Device()
            segmenter = Sleeping(device, options.embed_ms / 1e3, options.decode_ms / 1e3)
            start = time.process_time()
            executor = segmented(store, points, threads, segmenter)
            spent = time.process_time() - start
            print(f"{threads} threads\n{timeline(device, executor)}", file=sys.stderr)
            embedded = sum(what == "embed" for what, _, _ in device.used)
            row[f"threads_{threads}"] = {"planes": embedded, "processor_ms_a_plane": round(1e3 * spent / embedded, 1)}
            row[f"threads_{threads}"] |= in_use(device, executor)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
