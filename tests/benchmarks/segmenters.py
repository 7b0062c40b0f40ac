"""Planes per second and seconds per prompt of each SAM of the catalog, with random weights.

    python tests/benchmarks/segmenters.py [--models mobile-sam,…] [--dtypes float32,bfloat16] [--plane 928,960]

Prints one JSON line with a row for each model: parameters and operations as the catalog has them, and for each type
`planes` embedded per second of the best of `--repeats`, `cpu` processor seconds of one, and `rate`, 10¹² operations per
second; `prompt` is the seconds of a prompt with logits of the plane before, and `prompt_cpu` its processor seconds.
Where others use the machine, give `--threads 1`: processor seconds of one thread are what least depends on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cryosam_dask import models
from cryosam_dask.models.sam2_catalog import SAM2S
from cryosam_dask.models.sam_catalog import SAMS

PROMPTS = 4


def random_segmenter(name: str, dtype: str, device: str = "cpu") -> Any:
    """A SAM, MobileSAM or SAM 2.1 of the catalog with random weights."""
    from segment_anything import sam_model_registry

    from cryosam_dask.models import mobile_sam, sam, sam2, sam2_encoder

    if name in SAM2S:
        model = sam2_encoder.build(SAM2S[name].architecture)
        return sam2.Sam2Segmenter(model, name, "random", device, dtype)
    kind = SAMS[name].kind
    model = sam_model_registry["vit_b" if kind == "vit_t" else kind]()
    if kind == "vit_t":
        model.image_encoder = mobile_sam.build().image_encoder
    return sam.SamSegmenter(model, name, "random", device, dtype)


def best(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """(seconds, processor seconds) of the best of some calls after a first one."""
    call()
    found = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        call()
        found.append((time.perf_counter() - wall, time.process_time() - processor))
    return min(wall for wall, _ in found), min(processor for _, processor in found)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    plane: tuple[int, int] = options.plane
    info = models.segmenter_info(name)
    operations = info.embed_cost(plane).operations
    row: dict[str, Any] = {"model": name, "parameters": info.weights_bytes // 4, "giga": round(operations / 1e9)}
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (1, *plane), np.uint8)
    for dtype in options.dtypes:
        segmenter = random_segmenter(name, dtype, options.device)
        wall, processor = best(partial(segmenter.embed, grey), options.repeats)
        row[dtype] = {
            "planes": round(1 / wall, 3),
            "cpu": round(processor, 2),
            "rate": round(operations / wall / 1e12, 3),
        }
    embedding = segmenter.embed(grey)[0]
    points = rng.uniform(0, np.array(plane) - 1, (PROMPTS, 2)).astype(np.float32)
    before = rng.normal(size=(PROMPTS, *segmenter.logits_shape(plane))).astype(np.float32)
    wall, processor = best(lambda: segmenter.predict(embedding, plane, points, before), options.repeats)
    return row | {"prompt": round(wall / PROMPTS, 4), "prompt_cpu": round(processor / PROMPTS, 4)}


def main() -> None:
    import torch

    known = [
        name for name in (*SAMS, *SAM2S) if not name.endswith("organelles")
    ]  # those are the same with other weights
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=known, type=lambda text: text.split(","))
    parser.add_argument("--dtypes", default=["float32", "bfloat16"], type=lambda text: text.split(","))
    parser.add_argument("--plane", default=(928, 960), type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--repeats", default=3, type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.models:
        rows.append(measure(name, options))
        print(rows[-1], file=sys.stderr)
    print(json.dumps({"threads": options.threads, "plane": options.plane, "models": rows}))


if __name__ == "__main__":
    main()
