"""What a prompt costs the random walker: on a fresh point, and with the logits of the plane before.

    python tests/benchmarks/walker.py [--planes 256,256 928,960] [--prompts 24]

Discs of radius 4 to 16 in noise, prompted near their centres, with one BLAS thread. Prints one JSON line: for each size
of plane, milliseconds of CPU time per prompt (the mean over prompts of the best of `--repeats`) of `candidates`, as
propagation calls it, and of `predict`, which makes whole planes of the same.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage
from threadpoolctl import threadpool_limits

from cryosam_dask.models.random_walker import RandomWalkerSegmenter
from cryosam_dask.types import Array, Float32


def scene(plane: tuple[int, int], count: int) -> tuple[Array, Float32]:
    """A noisy plane (uint8) of discs, and points (count, 2) up to two pixels from the centres of some."""
    rng = np.random.default_rng(0)
    rows, cols = np.indices(plane, np.float32)
    centres = rng.uniform(0, plane, (max(count, plane[0] * plane[1] // 4000), 2))
    truth = np.zeros(plane, bool)
    for row, col in centres:
        around = (slice(max(int(row) - 17, 0), int(row) + 18), slice(max(int(col) - 17, 0), int(col) + 18))
        truth[around] |= np.hypot(rows[around] - row, cols[around] - col) <= rng.uniform(4, 16)
    grey = ndimage.gaussian_filter(128 + 60 * truth + rng.normal(0, 80, plane), 0.5)
    points = centres[:count] + rng.uniform(-2, 2, (count, 2))
    return grey.clip(0, 255).astype(np.uint8), points.clip(0, np.array(plane) - 1).astype(np.float32)


def milliseconds(repeats: int, calls: list[Callable[[], Any]]) -> float:
    """Mean over the calls of the best of each."""
    best = []
    for call in calls:
        times = []
        for _ in range(repeats):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
        best.append(min(times))
    return round(1e3 * float(np.mean(best)), 2)


def row(plane: tuple[int, int], options: argparse.Namespace) -> dict[str, Any]:
    segmenter = RandomWalkerSegmenter()
    grey, points = scene(plane, options.prompts)
    embedding = segmenter.embed(grey[None])[0]
    calls: dict[str, list[Callable[[], Any]]] = {}
    for point in points[:, None]:
        (found,) = segmenter.candidates(embedding, plane, point, None)
        m = int(found.scores.argmax())
        if not found.mask(m).block.any():
            continue
        before, peak = found.logits(m), np.array([found.peak(m)], np.float32)
        each: dict[str, Callable[[], Any]] = {
            "fresh": partial(segmenter.candidates, embedding, plane, point, None),
            "following": partial(segmenter.candidates, embedding, plane, peak, [before]),
            "fresh_predict": partial(segmenter.predict, embedding, plane, point, None),
            "following_predict": partial(segmenter.predict, embedding, plane, peak, before.full()[None]),
        }
        for name, call in each.items():
            calls.setdefault(name, []).append(call)
    figures = {f"{name}_ms": milliseconds(options.repeats, of_name) for name, of_name in calls.items()}
    return {"plane": plane, "prompts": len(calls["fresh"]), **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [(256, 256), (928, 960)]
    parser.add_argument("--planes", default=sizes, nargs="+", type=lambda v: tuple(int(n) for n in v.split(",")))
    parser.add_argument("--prompts", default=24, type=int)
    parser.add_argument("--repeats", default=5, type=int)
    options = parser.parse_args()
    with threadpool_limits(1, "blas"):
        print(json.dumps([row(plane, options) for plane in options.planes]))


if __name__ == "__main__":
    main()
