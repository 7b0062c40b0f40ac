"""What the feature stage takes for each token besides the model, and whether a model on a device ever waits for it.

    python tests/benchmarks/tokens.py [--plane 924,952] [--channels 1024] [--microseconds 6] [--threads 4]
        [--device cpu]

Prints one JSON line. `processor`: microseconds of processor time a token by steps, for a unit of the z and the y view
with planes of `--plane` voxels and a stand-in encoder that takes no time:

- `beside`: what remains of ours beside a device that computes tokens and reduces them. The stage's own code runs on
  tensors that have shapes and no values (torch's "meta" device), so that each call is made and nothing is computed,
  and what a device would have copied to pinned memory is there before: noise, in memory that is used again, as torch's
  pinned memory is. Images are copied once, as to pinned memory. No copy over a bus takes a core; starting kernels is
  counted as what torch takes for tensors without values;
- `tensors`: tensors of torch on `--device`; on the processor, where it is the default, the reduction counts, too;
- `arrays`: the same with an encoder that gives arrays of NumPy.

Each repeat writes to arrays that are laid out anew, as a run does. `bound` is the least that the same bytes take to be
written to new files with their checksums, measured in the same run. `device`: a device as in `beside` that takes
`--microseconds` a token, one batch after another, without holding a core: what part of the stage's time it is busy,
from the first byte read to the last one written, units on `--threads` threads as a GPU's worker has them. It writes
3 KB a token, 490 MB a second for 6 µs, so that a slower disk is what is measured; `--folder` may be one in memory.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import google_crc32c
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

sys.path.insert(0, str(Path(__file__).parent))
from features import make, using  # the benchmark beside this one

from cryosam_dask.kernels import images
from cryosam_dask.kernels.backend import Backend, Landing
from cryosam_dask.kernels.reduction import Reduction
from cryosam_dask.models.devices import to_device
from cryosam_dask.models.torch_backend import TorchBackend, backend_of
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


class Arrays:
    """An encoder whose tokens cost nothing: patches of 14, arrays of noise that a thread's calls share."""

    name, identity, patch = "stand-in", "none", 14

    def __init__(self, channels: int) -> None:
        self.channels, self._own = channels, threading.local()

    def encode(self, slices: Float32) -> Float32:
        count, *plane = slices.shape
        shape = (count, *(n // self.patch for n in plane), self.channels)
        tokens: dict[tuple[int, ...], Float32] = self._own.__dict__.setdefault("tokens", {})
        if shape not in tokens:
            tokens[shape] = np.random.default_rng(0).standard_normal(shape, np.float32)
        return tokens[shape]


class Tensors(Arrays):
    """The same as tensors on a device; a `TensorEncoder`."""

    def __init__(self, channels: int, device: str = "cpu") -> None:
        super().__init__(channels)
        self.device = device

    def encode_tensor(self, slices: Float32) -> torch.Tensor:
        tokens = self.encode(slices)
        if self.device == "cpu":
            return torch.from_numpy(tokens)
        there: dict[tuple[int, ...], torch.Tensor] = self._own.__dict__.setdefault("there", {})
        to_device(slices, self.device)
        if tokens.shape not in there:
            there[tokens.shape] = torch.from_numpy(tokens).to(self.device)
        return there[tokens.shape]


class Device(Arrays):
    """An encoder on a device that is not there, and takes some seconds a token: a queue of batches with times.

    Attributes
    ----------
    busy : seconds that its batches take; first, until : when the first of them came, and when the last one ends
    """

    device = "meta"

    def __init__(self, channels: int, seconds: float = 0.0) -> None:
        super().__init__(channels)
        self.seconds, self._turn = seconds, threading.Lock()
        self.start()

    def start(self) -> None:
        self.busy = self.first = self.until = 0.0

    def sent(self, values: NDArray[Any]) -> torch.Tensor:
        """Values after they were copied to pinned memory."""
        np.copyto(self.prepared(values.shape, values.dtype), values)
        return torch.empty(values.shape, device="meta")

    def encode_tensor(self, slices: Any) -> torch.Tensor:
        if isinstance(slices, np.ndarray):
            self.sent(slices)
        shape = (len(slices), *(n // self.patch for n in slices.shape[1:]), self.channels)
        with self._turn:
            taken = self.seconds * math.prod(shape[:3])
            now = time.perf_counter()
            self.first = self.first or now
            self.until = max(self.until, now) + taken
            self.busy += taken
        return torch.empty(shape, device="meta")

    def prepared(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Noise in the thread's pinned memory, as it were."""
        kept: dict[tuple[Any, ...], NDArray[Any]] = self._own.__dict__.setdefault("prepared", {})
        key = (*shape, np.dtype(dtype))
        if key not in kept:
            block = np.random.default_rng(0).standard_normal(1 << 16, np.float32).astype(dtype)
            kept[key] = np.resize(block, tuple(shape))
        return kept[key]


class Queued(TorchBackend):
    """Tensors without values, on such a device."""

    def __init__(self, encoder: Device) -> None:
        super().__init__(encoder.name, encoder.device)
        self._encoder = encoder

    def landing(self, shape: Sequence[int], dtype: DTypeLike) -> Landing:
        return Landed(self._encoder, shape, dtype)

    def place(self, values: NDArray[Any]) -> torch.Tensor:
        return self._encoder.sent(values)


class Landed:
    """Results that have arrived when all has ended that was in the device's queue as the last of them was put."""

    def __init__(self, encoder: Device, shape: Sequence[int], dtype: DTypeLike) -> None:
        self._encoder, self._shape, self._dtype, self._until = encoder, tuple(shape), np.dtype(dtype), 0.0

    def put(self, part: slice, values: torch.Tensor) -> torch.Tensor:
        self._until = self._encoder.until
        return values.to(getattr(torch, self._dtype.name))

    def array(self) -> NDArray[Any]:
        time.sleep(max(0.0, self._until - time.perf_counter()))
        return self._encoder.prepared(self._shape, self._dtype)


def backend(encoder: Any) -> Backend:
    return Queued(encoder) if isinstance(encoder, Device) else backend_of(encoder)


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
        features.prepare(store, chosen)
        clock = Clock()
        with clock.watching():
            features.work(Context(store.url), stage.settings, unit)
        if not best or sum(clock.seconds.values()) < sum(best.values()):
            best = clock.seconds
    steps = {name: round(scale * seconds, 2) for name, seconds in best.items()}
    return {"total": round(sum(steps.values()), 2), "steps": steps}


def bound(folder: Path, count: int, channels: int, ratios: tuple[int, ...], repeats: int) -> float:
    """Microseconds a token of writing files of 2 MB with as many bytes as the latents of all ratios, and checksums."""
    block = np.random.default_rng(0).integers(0, 255, 2 << 20, np.uint8)
    files = round(count * 2 * channels * (1 + sum(1 / ratio for ratio in ratios)) / block.nbytes)
    taken = []
    for _ in range(repeats):
        for path in folder.iterdir():
            path.unlink()
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
    encoder = Device(options.channels, options.microseconds / 1e6)
    units = [unit for unit in stage.units if unit.params["axis"] == "z"]
    threads = min(options.threads, len(units))
    together = threading.Barrier(threads)

    def run(unit: Unit) -> None:
        features.work(Context(store.url), stage.settings, unit)

    def ready(unit: Unit) -> None:
        run(unit)  # each thread's own memory is there before the clock starts
        together.wait()

    with using(encoder), ThreadPoolExecutor(threads) as pool:
        list(pool.map(ready, units[:threads]))
        features.prepare(store, chosen)
        encoder.start()
        start, used = time.perf_counter(), time.process_time()
        list(pool.map(run, units))
        wall, used = time.perf_counter() - start, time.process_time() - used
    count = sum(tokens_of(store, unit, chosen) for unit in units)
    return {
        "microseconds_a_token": options.microseconds,
        "threads": threads,
        "cores": os.cpu_count(),
        "busy": round(encoder.busy / wall, 3),
        "first_batch_after_seconds": round(encoder.first - start, 3),
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
    parser.add_argument("--units", default=12, type=int, help="of `device`")
    parser.add_argument("--kinds", default="beside,tensors,arrays", type=lambda v: v.split(","), help="of `processor`")
    parser.add_argument("--device", default="cpu", help="of `tensors`")
    parser.add_argument("--folder", help="on the disk to write to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = FeatureSettings(encoder="dinov2-vitl14", dense_ratios=())
    info = mock.Mock(wraps=features.encoder_info(chosen.encoder), patch=14, channels=options.channels)
    info.encode_bytes.return_value, info.weights_bytes = 0, 0
    row: dict[str, Any] = {"plane": options.plane, "channels": options.channels, "processor": {"y": {}, "z": {}}}
    encoders = {"beside": Device, "tensors": functools.partial(Tensors, device=options.device), "arrays": Arrays}
    rows, columns = options.plane
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        mock.patch.object(features, "encoder_info", return_value=info),
        mock.patch.object(features, "backend_of", backend),
    ):
        for axis, shape in (("y", (rows, 64, columns)), ("z", (16 * options.units, rows, columns))):
            store = make(f"{folder}/{axis}.zarr", shape)
            stage = features.plan(store.shape, chosen, "")
            for kind in options.kinds:
                with using(encoders[kind](options.channels)):
                    row["processor"][axis][kind] = processor(store, stage, chosen, axis, options.repeats)
        features.prepare(store, chosen)
        (files := Path(folder, "bound")).mkdir()
        row["bound"] = round(bound(files, 100_000, options.channels, chosen.ratios, options.repeats), 2)
        row["ratio"] = {
            axis: {kind: round(steps["total"] / row["bound"], 2) for kind, steps in kinds.items()}
            for axis, kinds in row["processor"].items()
        }
        row["device"] = device(store, stage, chosen, options)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
