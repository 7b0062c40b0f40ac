"""What the feature stage takes for each token besides the model, and whether a model on a device ever waits for it.

    python tests/benchmarks/tokens.py [--plane 924,952] [--channels 1024] [--microseconds 6] [--threads 4]
        [--device cpu]

A stand-in hands out tensors of torch, as an encoder on a device does. Prints one JSON line. `processor`: microseconds
of processor time a token by steps, for a unit of the z and the y view with planes of `--plane` voxels, with a stand-in
that takes no time; `bound` is the least that the same bytes take to be written to files with their checksums, measured
in the same run. The reduction counts here, though a GPU does it where there is one: `host` is the sum without it.
`arrays` is the same with an encoder that gives arrays of NumPy. `device`: with a stand-in that takes `--microseconds` a
token without holding a core, one call at a time, what part of the stage's time it is busy, units on `--threads` threads
as a GPU's worker has them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import google_crc32c
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from features import make, using  # the benchmark beside this one

from cryosam_dask.kernels import images
from cryosam_dask.kernels.reduction import Reduction
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import features, slabs
from cryosam_dask.stages.base import Context, Stage, Unit
from cryosam_dask.stages.sampling import Sample
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Axis, Float32

STEPS: list[tuple[Any, str, str]] = [
    (Sample, "__init__", "read"),
    (Sample, "standard", "standardise"),
    (images, "resample", "resize"),
    (Reduction, "add", "reduce"),
    (Reduction, "coarse", "reduce"),
    (slabs._Maps, "put", "write"),
    (features, "work", "rest"),
]
ON_DEVICE = ("reduce",)


class Arrays:
    """An encoder whose tokens cost nothing: patches of 14, arrays of noise that a thread's calls share."""

    name, identity, patch = "stand-in", "none", 14

    def __init__(self, channels: int, seconds: float = 0.0) -> None:
        self.channels, self.seconds = channels, seconds
        self.busy, self._own, self._turn = 0.0, threading.local(), threading.Lock()

    def encode(self, slices: Float32) -> Float32:
        grid = tuple(n // self.patch for n in slices.shape[1:])
        tokens = self.tokens(len(slices), grid)
        if self.seconds:
            with self._turn:
                taken = self.seconds * len(slices) * grid[0] * grid[1]
                time.sleep(taken)
                self.busy += taken
        return tokens

    def tokens(self, count: int, grid: tuple[int, ...]) -> Float32:
        tokens: dict[tuple[int, ...], Float32] = self._own.__dict__.setdefault("tokens", {})
        if grid not in tokens or len(tokens[grid]) < count:
            tokens[grid] = np.random.default_rng(0).standard_normal((count, *grid, self.channels), np.float32)
        return tokens[grid][:count]


class Tensors(Arrays):
    """The same as tensors on a device; a `TensorEncoder`."""

    def __init__(self, channels: int, seconds: float = 0.0, device: str = "cpu") -> None:
        super().__init__(channels, seconds)
        self.device = device

    def encode_tensor(self, slices: Float32) -> torch.Tensor:
        tokens = self.encode(slices)
        if self.device == "cpu":
            return torch.from_numpy(tokens)
        there: dict[tuple[int, ...], torch.Tensor] = self._own.__dict__.setdefault("there", {})
        if tokens.shape not in there:
            there[tokens.shape] = torch.from_numpy(tokens).to(self.device)
        return there[tokens.shape]


class Clock:
    """Processor time of each step, without that of the steps within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            self._inside.append(0.0)
            try:
                return function(*args, **options)
            finally:
                taken, inside = time.process_time() - start, self._inside.pop()
                self.seconds[name] = self.seconds.get(name, 0.0) + taken - inside
                if self._inside:
                    self._inside[-1] += taken

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, step in STEPS:
                stack.enter_context(mock.patch.object(owner, name, self.timed(step, getattr(owner, name))))
            yield


def tokens_of(store: RunStore, unit: Unit, chosen: FeatureSettings) -> int:
    rows, columns = features.token_grid(store.shape, unit.params["axis"], chosen, Arrays.patch)
    return int((unit.params["stop"] - unit.params["start"]) * rows * columns)


def processor(store: RunStore, stage: Stage, chosen: FeatureSettings, axis: Axis, repeats: int) -> dict[str, Any]:
    """Microseconds a token of a unit of a view, by steps; the best of some repeats."""
    unit = next(unit for unit in stage.units if unit.params["axis"] == axis)
    scale, best = 1e6 / tokens_of(store, unit, chosen), dict[str, float]()
    for _ in range(repeats):
        clock = Clock()
        with clock.watching():
            features.work(Context(store.url), stage.settings, unit)
        if not best or sum(clock.seconds.values()) < sum(best.values()):
            best = clock.seconds
    steps = {name: round(scale * seconds, 2) for name, seconds in best.items()}
    total = sum(steps.values())
    host = total - sum(steps.get(name, 0.0) for name in ON_DEVICE)
    return {"total": round(total, 2), "host": round(host, 2), "steps": steps}


def bound(folder: Path, count: int, channels: int, ratios: tuple[int, ...], repeats: int) -> float:
    """Microseconds a token of writing files of 2 MB with as many bytes as the latents of all ratios, and checksums."""
    block = np.random.default_rng(0).integers(0, 255, 2 << 20, np.uint8)
    files = round(count * 2 * channels * (1 + sum(1 / ratio for ratio in ratios)) / block.nbytes)
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        for index in range(files):
            checksum = google_crc32c.value(block)
            with (folder / f"{index}.part").open("wb") as file:
                file.write(block)
                file.write(checksum.to_bytes(4, "little"))
            (folder / f"{index}.part").replace(folder / str(index))
        taken.append(time.process_time() - start)
    return 1e6 * min(taken) / count


def device(store: RunStore, stage: Stage, chosen: FeatureSettings, options: argparse.Namespace) -> dict[str, Any]:
    """What part of the stage's time the stand-in is busy."""
    encoder = Tensors(options.channels, options.microseconds / 1e6, options.device)
    units = [unit for unit in stage.units if unit.params["axis"] == "z"]
    grid = features.token_grid(store.shape, "z", chosen, encoder.patch)
    together = threading.Barrier(options.threads)

    def ready(_: int) -> None:
        encoder.tokens(chosen.batch, grid)  # each thread's own, before the clock starts
        together.wait()

    def run(unit: Unit) -> None:
        features.work(Context(store.url), stage.settings, unit)

    with using(encoder), ThreadPoolExecutor(options.threads) as pool:
        list(pool.map(ready, range(options.threads)))
        start, used = time.perf_counter(), time.process_time()
        list(pool.map(run, units))
        wall, used = time.perf_counter() - start, time.process_time() - used
    count = sum(tokens_of(store, unit, chosen) for unit in units)
    return {
        "microseconds_a_token": options.microseconds,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "busy": round(encoder.busy / wall, 3),
        "wall_microseconds_a_token": round(1e6 * wall / count, 2),
        "processor_microseconds_a_token": round(1e6 * used / count, 2),
        "cores_others_use": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plane", default="924,952", type=lambda v: tuple(int(n) for n in v.split(",")))
    parser.add_argument("--channels", default=1024, type=int)
    parser.add_argument("--microseconds", default=6.0, type=float)
    parser.add_argument("--threads", default=4, type=int)
    parser.add_argument("--repeats", default=4, type=int)
    parser.add_argument("--units", default=8, type=int, help="of `device`")
    parser.add_argument("--device", default="cpu", help="where the tensors are")
    parser.add_argument("--folder", help="on the disk to write to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = FeatureSettings(encoder="dinov2-vitl14", dense_ratios=())
    info = mock.Mock(wraps=features.encoder_info(chosen.encoder), patch=14, channels=options.channels)
    info.encode_bytes.return_value, info.weights_bytes = 0, 0
    row: dict[str, Any] = {"plane": options.plane, "channels": options.channels, "processor": {}, "arrays": {}}
    rows, columns = options.plane
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        mock.patch.object(features, "encoder_info", return_value=info),
    ):
        for axis, shape in (("y", (rows, 64, columns)), ("z", (16 * options.units, rows, columns))):
            store = make(f"{folder}/{axis}.zarr", shape)
            for name, encoder in (
                ("processor", Tensors(options.channels, device=options.device)),
                ("arrays", Arrays(options.channels)),
            ):
                with using(encoder):
                    features.prepare(store, chosen)
                    stage = features.plan(store.shape, chosen, "")
                    row[name][axis] = processor(store, stage, chosen, axis, options.repeats)
        row["bound"] = round(bound(Path(folder), 100_000, options.channels, chosen.ratios, options.repeats), 2)
        row["ratio"] = {axis: round(steps["total"] / row["bound"], 2) for axis, steps in row["processor"].items()}
        row["device"] = device(store, stage, chosen, options)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
