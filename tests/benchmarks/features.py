"""What the feature stage costs beside the model's own forward passes, and how well units overlap on a GPU.

    python tests/benchmarks/features.py [--encoder dinov2-vits14] [--shape 64,448,480] [--units 2] [--device cpu]

Weights are random. Prints one JSON line. `stage`: units of each view run as an executor runs them, in turn with
`encoder.encode` of the same slices, resized and standardised before, in the same batches: processor seconds of both on
a CPU (wall seconds on a GPU), the overhead, and what part of a unit's wall time each step takes. `texture`: voxels per
second and core of the built-in encoder alone and in its units, on planes of 928 × 960. `overlap`: a stand-in that
takes a given time per slice without holding the interpreter, one call at a time, as a GPU does: seconds of several
units on 1 and on 3 threads as a ratio to the model's own time.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from threadpoolctl import threadpool_limits

from cryosam_dask import geometry
from cryosam_dask.kernels import images, reduction
from cryosam_dask.kernels import tokens as kernel
from cryosam_dask.models import load_encoder, vit
from cryosam_dask.models.vit_catalog import VITS
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import features, slabs, standardize
from cryosam_dask.stages.base import Context, Stage, Unit
from cryosam_dask.stages.sampling import Sample
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Float32, Shape3, SliceEncoder


class StandIn:
    """An encoder that sleeps: patches of 14 and 384 channels, one call at a time."""

    name, identity, patch, channels = "stand-in", "none", 14, 384

    def __init__(self, seconds: float) -> None:
        self.seconds, self.turn = seconds, threading.Lock()
        self.tokens: dict[tuple[int, ...], Float32] = {}

    def encode(self, slices: Float32) -> Float32:
        grid = tuple(n // self.patch for n in slices.shape[1:])
        with self.turn:
            time.sleep(self.seconds * len(slices))
            if grid not in self.tokens:
                self.tokens[grid] = np.random.default_rng(0).standard_normal((*grid, self.channels), np.float32)
        return np.repeat(self.tokens[grid][None], len(slices), 0)


class Clock:
    """Wall time of each step, without that of the steps within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            self._inside.append(0.0)
            try:
                return function(*args, **options)
            finally:
                taken, inside = time.perf_counter() - start, self._inside.pop()
                self.seconds[name] += taken - inside
                if self._inside:
                    self._inside[-1] += taken

        return run

    @contextmanager
    def watching(self, encoder: SliceEncoder) -> Iterator[None]:
        steps: list[tuple[Any, str, str]] = [
            (Sample, "__init__", "read"),
            (Sample, "standard", "standardise"),
            (images, "resample", "resize"),
            (encoder, "encode", "forward"),
            (kernel, "gram_maps", "gram"),
            (reduction.Reduction, "add", "pyramid"),
            (reduction.Reduction, "coarse", "pyramid"),
            (slabs._Maps, "put", "write"),
            (features, "work", "rest"),
        ]
        with ExitStack() as stack:
            for owner, name, step in steps:
                stack.enter_context(mock.patch.object(owner, name, self.timed(step, getattr(owner, name))))
            yield


def make(url: str, shape: Shape3) -> RunStore:
    """A store with a tomogram of noise, as the ingest leaves it."""
    store = RunStore.create(url, {"shape": list(shape), "voxel_size": [10.0] * 3, "origin": [0.0] * 3})
    array = store.new_array(layout.tomogram(), shape=shape, dtype="f4", chunks=layout.CHUNK, dims=AXES)
    array[...] = np.random.default_rng(0).standard_normal(shape, np.float32)
    store.update_info(statistics={"mean": 0.01, "std": 1.1, "low": -2.5, "high": 2.5})
    return store


def random_encoder(name: str, device: str, precision: str) -> SliceEncoder:
    import torch

    if name == "texture":
        return load_encoder("texture")
    torch.manual_seed(0)
    module = vit.build(VITS[name].architecture)
    return vit.TimmEncoder(module, name, "random", device, precision)


@contextmanager
def using(encoder: SliceEncoder) -> Iterator[None]:
    """The stage's own code with this encoder in the place of the loaded one."""
    with (
        mock.patch.object(features, "get_encoder", return_value=encoder),
        mock.patch.object(features, "weights_identity", return_value="random"),
        threadpool_limits(1, "blas"),
    ):
        yield


def lay_out(store: RunStore, chosen: FeatureSettings) -> Stage:
    """The stage, its arrays made anew, and its linear maps fitted where the settings ask for them."""
    features.prepare(store, chosen)
    before = standardize.plan(store.shape, chosen, "")
    for unit in before.units:
        standardize.work(Context(store.url), before.settings, unit)
    return features.plan(store.shape, chosen, "")


def some(stage: Stage, axis: str, count: int) -> list[Unit]:
    return [unit for unit in stage.units if unit.params["axis"] == axis][:count]


def in_processor_seconds(device: str) -> Callable[[], float]:
    return time.process_time if device == "cpu" else time.perf_counter


def stage_overhead(store: RunStore, options: argparse.Namespace) -> dict[str, Any]:
    encoder = random_encoder(options.encoder, options.device, options.precision)
    chosen = FeatureSettings(encoder=options.encoder, precision=options.precision)
    now = in_processor_seconds(options.device)
    rows: dict[str, Any] = {}
    with using(encoder):
        stage = lay_out(store, chosen)
        for axis in AXES:
            clock, bare, units = Clock(), math.inf, math.inf
            for unit in some(stage, axis, options.units):
                slices = range(unit.params["start"], unit.params["stop"])
                sample = Sample(store, unit.params["axis"], slices, 1)
                plane = sample.standard(slices[:1]).shape[1:]
                size = [geometry.image_size(n, encoder.patch, None) for n in plane]
                ready = images.resize(sample.standard(slices), (size[0], size[1]))
                batches = [ready[i : i + chosen.batch] for i in range(0, len(slices), chosen.batch)]
                encoder.encode(batches[0][:1])
                start = now()
                for batch in batches:
                    encoder.encode(batch)
                middle = now()
                with clock.watching(encoder):
                    features.work(Context(store.url, options.device), stage.settings, unit)
                bare, units = min(bare, middle - start), min(units, now() - middle)
            total = sum(clock.seconds.values())
            rows[axis] = {
                "forward_seconds": round(bare, 3),
                "unit_seconds": round(units, 3),
                "overhead": round(units / bare - 1, 4),
                "steps": {name: round(seconds / total, 4) for name, seconds in clock.seconds.items()},
            }
    return rows


def texture_speed(options: argparse.Namespace) -> dict[str, Any]:
    slices = np.random.default_rng(0).standard_normal((4, 928, 960), np.float32)
    encoder = load_encoder("texture")
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, using(encoder):
        seconds = best(lambda: encoder.encode(slices), 5)
        row["encoder_voxels_per_second"] = round(slices.size / seconds)
        store = make(f"{folder}/run.zarr", (48, 928, 960))
        chosen = FeatureSettings(encoder="texture", standardize="whiten", thickness=5)
        stage = lay_out(store, chosen)
        clock = Clock()
        for axis in AXES:
            (unit,) = some(stage, axis, 2)[1:]
            box = unit.reads[0]
            voxels = math.prod(b - a for a, b in zip(box.start, box.stop, strict=True))
            with clock.watching(encoder):
                seconds = best(lambda u=unit: features.work(Context(store.url), stage.settings, u), 3)  # type: ignore[misc]
            row[f"unit_voxels_per_second_{axis}"] = round(voxels / seconds)
        total = sum(clock.seconds.values())
        row["steps"] = {name: round(seconds / total, 4) for name, seconds in clock.seconds.items()}
    return row


def best(run: Callable[[], Any], repeats: int) -> float:
    """Least processor seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def overlap(store: RunStore, options: argparse.Namespace) -> dict[str, Any]:
    encoder = StandIn(options.milliseconds / 1000)
    chosen = FeatureSettings(encoder="dinov2-vits14")
    row: dict[str, Any] = {"milliseconds_per_slice": options.milliseconds}
    with using(encoder):
        stage = lay_out(store, chosen)
        units = [unit for axis in AXES for unit in some(stage, axis, 3)]
        slices = sum(unit.params["stop"] - unit.params["start"] for unit in units)
        for threads in (1, 3, 1, 3):
            start = time.perf_counter()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda unit: features.work(Context(store.url), stage.settings, unit), units))
            ratio = (time.perf_counter() - start) / (slices * encoder.seconds)
            key = f"ratio_to_model_time_{threads}_threads"
            row[key] = round(min(ratio, row.get(key, math.inf)), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="dinov2-vits14")
    parser.add_argument("--shape", default="64,448,480", type=lambda v: tuple(int(n) for n in v.split(",")))
    parser.add_argument("--units", default=1, type=int, help="units of each view; the best counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--milliseconds", default=20.0, type=float)
    parser.add_argument("--only", default="stage,texture,overlap", type=lambda v: v.split(","))
    options = parser.parse_args()
    row: dict[str, Any] = {"encoder": options.encoder, "device": options.device, "shape": options.shape}
    with tempfile.TemporaryDirectory() as folder:
        store = make(str(Path(folder) / "run.zarr"), options.shape)
        if "stage" in options.only:
            row["stage"] = stage_overhead(store, options)
        if "overlap" in options.only:
            row["overlap"] = overlap(store, options)
    if "texture" in options.only:
        row["texture"] = texture_speed(options)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
