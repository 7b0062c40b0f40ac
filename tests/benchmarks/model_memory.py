"""What the catalog projects for a model's memory beside what it takes, each case in a fresh process.

    python tests/benchmarks/model_memory.py [--models sam-vitb,…] [--planes 518x518,224x952] [--dtype float32]

Weights are random. Prints one JSON line with a row for each case, in MiB: `first` is the most resident memory that the
first call added, `again` the second one (torch's libraries keep what they took in the first), `projected` the catalog's
figure, and `ratio` projected to the larger of the two. A call is one `encode` of `--batch` slices, one `embed` of a
plane, or one step of `--prompts` prompts on a plane with logits of the plane before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from cryosam_dask import models
from cryosam_dask.executors.memory import PeakMemory

CASES = ("encode", "embed", "predict")
Plane = tuple[int, int]


def encoding(name: str, plane: Plane, options: argparse.Namespace) -> tuple[int, Callable[[], Any]]:
    from cryosam_dask.models import vit
    from cryosam_dask.models.vit_catalog import VITS

    module = vit.build(VITS[name].architecture)
    encoder = vit.TimmEncoder(module, name, "random", dtype=options.dtype)
    size = (-(-plane[0] // encoder.patch) * encoder.patch, -(-plane[1] // encoder.patch) * encoder.patch)
    slices = np.random.default_rng(0).normal(size=(options.batch, *size)).astype(np.float32)
    info = models.encoder_info(name)
    tokens = 4 * options.batch * size[0] * size[1] // info.patch**2 * info.channels
    return info.encode_bytes(size, options.batch) + tokens, lambda: encoder.encode(slices)


def segmenting(case: str, name: str, plane: Plane, options: argparse.Namespace) -> tuple[int, Callable[[], Any]]:
    from segmenters import random_segmenter

    from cryosam_dask.types import Window

    segmenter = random_segmenter(name, options.dtype)
    info = models.segmenter_info(name)
    rng = np.random.default_rng(0)
    if case == "embed":
        image = rng.integers(0, 256, (1, *plane), np.uint8)
        return info.embed_bytes(plane), lambda: segmenter.embed(image)
    embedding = rng.normal(size=info.embedding_shape(plane)).astype(np.float16)
    points = rng.uniform(0, np.array(plane) - 1, (options.prompts, 2)).astype(np.float32)
    frame = info.logits_shape(plane)
    before = [Window(frame, 0, 0, rng.normal(size=frame).astype(np.float32)) for _ in points]

    def step() -> list[Any]:
        found = segmenter.candidates(embedding, plane, points, before)
        return [found, [one.mask(0) for one in found]]

    return info.predict_bytes(plane, options.prompts), step


def measure(case: str, name: str, plane: Plane, options: argparse.Namespace) -> dict[str, Any]:
    make = encoding(name, plane, options) if case == "encode" else segmenting(case, name, plane, options)
    projected, call = make
    added = []
    for _ in range(2):
        with PeakMemory() as watch:
            result = call()
        added.append((watch.peak - watch.before) >> 20)
        del result
    return {
        "case": case,
        "model": name,
        "plane": plane,
        "first": added[0],
        "again": added[1],
        "projected": projected >> 20,
        "ratio": round((projected >> 20) / max(added), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="dinov2-vits14,dinov2-vitb14,sam-vitb")
    parser.add_argument("--planes", default="518x518,224x952")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--batch", default=4, type=int)
    parser.add_argument("--prompts", default=8, type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--here", action="store_true", help="one case, measured in this process")
    options = parser.parse_args()
    if options.here:
        rows, columns = (int(n) for n in options.planes.split("x"))
        print(json.dumps(measure(options.cases, options.models, (rows, columns), options)))
        return
    found = []
    for name in options.models.split(","):
        for case in options.cases.split(","):
            if case != "encode" and "sam" not in name:
                continue
            for plane in options.planes.split(","):
                values = {"models": name, "cases": case, "planes": plane, "batch": options.batch}
                values |= {"prompts": options.prompts, "dtype": options.dtype}
                command = [sys.executable, __file__, "--here", *(f"--{key}={value}" for key, value in values.items())]
                found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
                print(found[-1], file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
