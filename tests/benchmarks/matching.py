"""What matching costs on stored features, against only reading the same chunks and against dense evaluation.

    python tests/benchmarks/matching.py --shape 128,256,256 --channels 384 [--patch 14] [--store FOLDER]

Features are random float16 latents with a blob of similar tokens. Prints one JSON line: seconds and peak memory of
hierarchical (16, 8, 4) and naive matching, the time of reading the chunks that each touches, and the time of dense
evaluation on a part, extrapolated. A store made before is used again.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.kernels import features as kernel
from cryosam_dask.stages import match
from cryosam_dask.stages.base import Context
from cryosam_dask.store import layout
from cryosam_dask.store.features import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Shape3

RATIOS = (4, 8, 16)
NAME = "benchmark"


def make(url: str, shape: Shape3, channels: int, patch: int) -> RunStore:
    """A store with latents and Gram maps of all ratios, written slab by slab as the feature stage does."""
    store = RunStore.create(url, {"shape": list(shape), "voxel_size": [10.0] * 3, "origin": [0.0] * 3})
    rng = np.random.default_rng(0)
    kind = rng.normal(size=channels).astype(np.float32)
    for axis in AXES:
        rows, columns = (geometry.token_count(n, patch, None) for n in geometry.plane_shape(shape, axis))
        length = shape[geometry.axis_index(axis)]
        for ratio in (1, *RATIOS):
            size = (geometry.cell_count(length, ratio), rows, columns)
            chunks = layout.latent_chunks(layout.SLAB // ratio, (rows, columns), channels)
            arrays = ((layout.latents(ratio, axis), channels, "f2"), (layout.gram(ratio, axis), 4, "f4"))
            for path, last, dtype in arrays:
                store.new_array(path, shape=(*size, last), dtype=dtype, chunks=(*chunks[:3], last), dims="abcd")
        for start, stop in geometry.slabs(length, layout.SLAB):
            tokens = rng.standard_normal((stop - start, rows, columns, channels), np.float32)
            tokens[:, rows // 3 : rows // 2, columns // 3 : columns // 2] += 2 * kind
            for ratio in (1, *RATIOS):
                latents = kernel.average_slices(tokens, ratio).astype(np.float16)
                where = slice(start // ratio, start // ratio + len(latents))
                store.array(layout.latents(ratio, axis))[where] = latents
                store.array(layout.gram(ratio, axis))[where] = kernel.gram_maps(latents.astype(np.float32))
        store.put(layout.feature_sums(axis), np.zeros((1, channels)), (f"slab_{axis}", "channel"))
    store.update_info(features={"ratios": list(RATIOS), "channels": channels, "encoder": "random", "weights": "none"})
    store.put(f"{layout.query(NAME)}/feature", np.tile(kind, 3), ("channel",))
    store.put(f"{layout.query(NAME)}/mean", np.zeros(3 * channels, np.float32), ("channel",))
    return store


def match_all(store: RunStore, ratios: tuple[int, ...], tau: float) -> dict[str, Any]:
    """Run the stage's units as the serial executor does; cells that reach the threshold on the last ratio."""
    coarser = None
    for ratio in ratios:
        stage = match.plan(store, NAME, ratio, coarser, tau, "")
        match.prepare(store, NAME, ratio)
        for unit in stage.units:
            match.work(Context(store.url), stage.settings, unit)
        coarser = ratio
    found = match.candidates(store, NAME, ratios[-1], tau)
    return {"evaluated": found.evaluated, "kept": len(found.scores)}


def read_all(store: RunStore, ratios: tuple[int, ...], tau: float) -> None:
    """Read what the matching reads: the same boxes of the same arrays."""
    volume = FeatureVolume(RunStore.open(store.url))
    read = volume._view
    coarser = None
    for ratio in ratios:
        for box in geometry.boxes(volume.grid(ratio), match.unit_cells(volume, ratio)):
            wanted = match._wanted(store, {"coarser": coarser, "ratio": ratio, "name": NAME, "tau_sim": tau}, box)
            if wanted.any():
                tight = match._bounds(wanted)
                z, y, x = ((a + o[0], b + o[0]) for (a, b), o in zip(tight, box, strict=True))
                for axis in AXES:
                    read(ratio, axis, (z, y, x), gram=True)
        coarser = ratio


def dense(store: RunStore, ratio: int) -> float:
    """Seconds for evaluating a ratio densely, from a part: assemble F block by block, then the cosine."""
    volume = FeatureVolume(store)
    query = store.read(f"{layout.query(NAME)}/feature")
    side = 16
    z, y, x = ((0, min(side, n)) for n in volume.grid(ratio))
    start = time.perf_counter()
    block = volume.dense_block(ratio, (z, y, x))
    cosine = block @ query / (np.linalg.norm(block, axis=-1) * np.linalg.norm(query))
    seconds = time.perf_counter() - start
    ours = volume.similarity_block(query, ratio, (z, y, x))
    assert np.abs(ours - cosine).max() < 2e-3
    return seconds * math.prod(volume.grid(ratio)) / ours.size


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="128,256,256")
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--patch", type=int, default=14)
    parser.add_argument("--tau", type=float, default=0.5)
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--naive", action="store_true")
    options = parser.parse_args()
    z, y, x = (int(v) for v in options.shape.split(","))
    with tempfile.TemporaryDirectory() as scratch:
        url = str(options.store or Path(scratch) / "features.zarr")
        if RunStore.exists(url):
            store = RunStore.open(url, "r+")
        else:
            store = make(url, (z, y, x), options.channels, options.patch)
        row: dict[str, Any] = {"shape": [z, y, x], "channels": options.channels}
        for label, ratios in (("hierarchical", (16, 8, 4)), ("naive", (1,)))[: 2 if options.naive else 1]:
            seconds, found = timed(lambda r=ratios: match_all(store, r, options.tau))  # type: ignore[misc]
            again, _ = timed(lambda r=ratios: match_all(store, r, options.tau))  # type: ignore[misc]
            reading, _ = timed(lambda r=ratios: read_all(store, r, options.tau))  # type: ignore[misc]
            row[label] = {
                "seconds": round(seconds, 3),
                "second_query": round(again, 3),
                "reading": round(reading, 3),
                "ratio_to_reading": round(again / reading, 2),
                "dense": round(dense(store, ratios[-1]), 1),
                **found,
            }
        row["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(row))


if __name__ == "__main__":
    main()
