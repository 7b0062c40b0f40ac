"""What matching costs on stored features, against only reading the same chunks and against dense evaluation.

    python tests/benchmarks/matching.py --shape 128,256,256 --channels 384 [--patch 14] [--store FOLDER]

Features are random float16 latents with a blob of similar tokens. Prints one JSON line: seconds and peak memory of
hierarchical (16, 8, 4) and naive matching, the time of only reading the latents that each needs, and the time of dense
evaluation on a part (checked against ours), extrapolated to all cells of the last ratio.
A store made before is used again.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cryosam_dask import geometry
from cryosam_dask.executors.memory import PeakMemory
from cryosam_dask.kernels import tokens as kernel
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages import match, project
from cryosam_dask.stages.base import Context, Stage
from cryosam_dask.store import feature_volume, layout
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Shape3

RATIOS = (4, 8, 16)
NAME = "benchmark"
DENSE_SIDE = 40
"""Side in cells of the part that is evaluated densely."""


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
            maps = layout.gram_chunks(chunks, (rows, columns))
            for path, cut, dtype in (
                (layout.latents(ratio, axis), chunks, "f2"),
                (layout.gram(ratio, axis), maps, "f4"),
            ):
                store.new_array(path, shape=(*size, cut[3]), dtype=dtype, chunks=cut, dims="abcd")
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
    """Run the stages' units as the serial executor does; cells that reach the threshold on the last ratio."""
    volume = FeatureVolume(store)
    for this in match.passes(NAME, MatchSettings.model_validate({"ratios": ratios, "tau_sim": tau})):
        products = project.plan(store.shape, volume.token_grids, volume.view_channels, this, "")
        project.prepare(store, this)
        run(store, products)
        match.prepare(store, this)
        run(store, match.plan(store.shape, volume.token_grids, this, ""))
        found = match.survey(store, this, tau)
    return {"evaluated": found.evaluated, "kept": found.reached}


def run(store: RunStore, stage: Stage) -> None:
    with threadpool_limits(limits=1, user_api="blas"):  # as `executors.base.run_unit` does
        for unit in stage.units:
            stage.work(Context(store.url), stage.settings, unit)


def read_all(store: RunStore, ratios: tuple[int, ...], tau: float) -> float:
    """Only read the latents that the matching needs: the chunks with a token that a cell to be evaluated touches.

    For naive matching that is every native latent, slab by slab. Returns the bytes read.
    """
    store = RunStore.open(store.url)
    volume, total = FeatureVolume(store), 0.0
    for this in match.passes(NAME, MatchSettings.model_validate({"ratios": ratios, "tau_sim": tau})):
        for unit in project.plan(store.shape, volume.token_grids, volume.view_channels, this, "").units:
            axis, first = unit.params["axis"], unit.params["start"]
            latents = store.array(layout.latents(this.ratio, axis))
            for start, stop in geometry.slabs(unit.params["stop"] - first, latents.chunks[0]):
                slices = first + start, first + stop
                touched = project.touched_tokens(store, this, axis, slices)
                side = (latents.chunks[1], latents.chunks[2])
                for rows, columns in feature_volume.runs(touched, side, 1 << 62):
                    total += np.asarray(latents[slice(*slices), rows, columns]).nbytes
    return total


def dense(store: RunStore, ratio: int) -> float:
    """Seconds for evaluating a ratio densely, from a part: assemble F block by block, then the cosine."""
    volume = FeatureVolume(store)
    query = store.read(f"{layout.query(NAME)}/feature")
    z, y, x = ((n // 3, min(n // 3 + DENSE_SIDE, n)) for n in volume.grid(ratio))
    start = time.perf_counter()
    block = volume.dense_block(ratio, (z, y, x))
    cosine = block @ query / (np.linalg.norm(block, axis=-1) * np.linalg.norm(query))
    seconds = time.perf_counter() - start
    ours = store.read(layout.similarity(NAME, ratio), geometry.box_slices((z, y, x)))
    known = np.isfinite(ours)
    assert known.any()
    assert np.abs(ours - cosine)[known].max() < 2e-3
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
            with PeakMemory() as memory:
                seconds, found = timed(lambda r=ratios: match_all(store, r, options.tau))  # type: ignore[misc]
            again, _ = timed(lambda r=ratios: match_all(store, r, options.tau))  # type: ignore[misc]
            reading, read = timed(lambda r=ratios: read_all(store, r, options.tau))  # type: ignore[misc]
            densely = dense(store, ratios[-1])
            row[label] = {
                "seconds": round(seconds, 3),
                "second_query": round(again, 3),
                "reading": round(reading, 3),
                "read_mb": round(read / 1e6),
                "ratio_to_reading": round(again / reading, 2),
                "peak_memory_mb": round(memory.peak / 1e6),
                "dense": round(densely, 1),
                "dense_ratio": round(densely / again, 1),
                **found,
            }
        print(json.dumps(row))


if __name__ == "__main__":
    main()
