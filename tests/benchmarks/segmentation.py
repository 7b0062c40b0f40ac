"""Propagation with SAM against a plain loop over `SamPredictor`, the same random weights and cached embeddings.

    python tests/benchmarks/segmentation.py [--kind vit_b] [--device cpu] [--plane 928,960] [--planes 7] [--prompts 4]

The loop takes one prompt and one plane at a time, brings every candidate to the plane's full size, and follows the same
rule (plain, IoU above 0.5). Embeddings are random, and turn slowly from plane to plane so that masks go on; with random
weights a mask is scattered over the whole plane, which is the largest that masks can be. The walk is along z alone; the
other axes cost the same. Prints one JSON line: seconds of each for one plane of one prompt, run in turn (the best of
each counts), their ratio, whether both went the same way, and the share of equal mask pixels.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

import numpy as np
import torch
from sam import in_turn, published
from segment_anything import SamPredictor
from threadpoolctl import threadpool_limits

from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.models.sam import SamSegmenter, resized_shape
from cryosam_dask.settings import PropagationRules
from cryosam_dask.types import Array, Bool, Float32

Masks = dict[tuple[int, int], Bool]
"""The mask of each (prompt, plane), at full size."""


class Planes:
    """Planes with their embeddings, and the points to start from."""

    def __init__(self, segmenter: SamSegmenter, options: argparse.Namespace) -> None:
        rng = np.random.default_rng(0)
        self.plane: tuple[int, int] = options.plane
        self.images = rng.integers(0, 256, (options.planes, *self.plane), np.uint8)
        one, other = rng.standard_normal((2, *segmenter.embedding_shape(self.plane)), np.float32)
        angles = np.arange(options.planes) * options.turn
        self.embeddings = [(np.cos(a) * one + np.sin(a) * other).astype(np.float16) for a in angles]
        places = rng.uniform(0, np.array(self.plane) - 1, (options.prompts, 2))
        self.points = [(float(options.planes // 2), float(row), float(col)) for row, col in places]

    def __len__(self) -> int:
        return len(self.images)


def loop(model: Any, ours: SamSegmenter, planes: Planes, rules: PropagationRules) -> Masks:
    """One prompt, one plane at a time."""
    predictor = SamPredictor(model)
    predictor.original_size = planes.plane
    predictor.input_size = resized_shape(planes.plane, model.image_encoder.img_size)
    predictor.is_image_set = True

    def best(plane: int, point: Array, low: Float32 | None, last: Bool | None) -> tuple[Bool, Float32] | None:
        embedding = planes.embeddings[plane].astype(np.float32)
        predictor.features = torch.as_tensor(embedding, device=predictor.device)[None]
        masks, scores, logits = predictor.predict(
            point[None, ::-1], np.array([1]), mask_input=None if low is None else low[None]
        )
        for m in np.argsort(-scores, kind="stable"):
            if masks[m].any() and (last is None or (masks[m] & last).sum() > rules.tau_iou * (masks[m] | last).sum()):
                return masks[m], logits[m]
        return None

    found: Masks = {}
    for prompt, (z, row, col) in enumerate(planes.points):
        start = best(int(z), np.array([row, col], np.float32), None, None)
        if start is None:
            continue
        found[prompt, int(z)] = start[0]
        for direction in (-1, 1):
            plane, here = int(z) + direction, start
            while 0 <= plane < len(planes):
                following = best(plane, ours.peak(here[1][None], planes.plane)[0], here[1], here[0])
                if following is None:
                    break
                found[prompt, plane], here = following[0], following
                plane += direction
    return found


def propagate(segmenter: Any, planes: Planes, rules: PropagationRules) -> Propagation:
    """As the program does it, with all prompts at once."""
    work = Propagation.start(planes.points, (len(planes), *planes.plane), rules)
    work.walkers = [walker for walker in work.walkers if walker.axis == "z"]
    while need := work.needed():
        for axis, plane in sorted(need):
            work.step(segmenter, axis, plane, planes.embeddings[plane], planes.images[plane])
    return work


def masks_of(work: Propagation, plane: tuple[int, int]) -> Masks:
    found: Masks = {}
    for walker in work.walkers:
        for patch in walker.patches:
            full = found[walker.prompt, patch.plane] = np.zeros(plane, bool)
            h, w = patch.mask.shape
            full[patch.row : patch.row + h, patch.col : patch.col + w] = patch.mask
    return found


class FullSize:
    """A segmenter without its windows: every candidate at full size."""

    def __init__(self, segmenter: SamSegmenter) -> None:
        self.batch = segmenter.batch
        self.predict = segmenter.predict
        self.peak = segmenter.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="vit_b", choices=("vit_b", "vit_l", "vit_h"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plane", default="928,960", type=lambda v: tuple(int(n) for n in v.split(",")))
    parser.add_argument("--planes", default=7, type=int)
    parser.add_argument("--prompts", default=4, type=int)
    parser.add_argument("--batch", default=None, type=int, help="prompts decoded together; by default the device's")
    parser.add_argument("--turn", default=0.02, type=float, help="of the embeddings between planes, in radians")
    parser.add_argument("--repeats", default=5, type=int)
    options = parser.parse_args()
    model = published(options.kind, options.device)
    segmenter = SamSegmenter(model, "sam", "random", options.device, batch=options.batch)
    planes, rules = Planes(segmenter, options), PropagationRules(rule="plain", merge="union")

    expected, found = loop(model, segmenter, planes, rules), masks_of(propagate(segmenter, planes, rules), planes.plane)
    same = [(found[key] == mask).mean() for key, mask in expected.items() if key in found]
    runs = (
        partial(loop, model, segmenter, planes, rules),
        partial(propagate, segmenter, planes, rules),
        partial(propagate, FullSize(segmenter), planes, rules),
    )
    with threadpool_limits(1, "blas"):  # as units of the program have it; torch keeps its own threads
        before, after, full = in_turn(options.device, options.repeats, *runs)
    row = {
        "kind": options.kind,
        "device": f"cpu, {torch.get_num_threads()} threads"
        if options.device == "cpu"
        else torch.cuda.get_device_name(options.device),
        "plane": options.plane,
        "prompts": options.prompts,
        "batch": segmenter.batch,
        "planes_segmented": len(expected),
        "mask_share_of_plane": round(float(np.mean([mask.mean() for mask in expected.values()])), 3),
        "loop_seconds": round(before / len(expected), 4),
        "seconds": round(after / len(expected), 4),
        "seconds_with_full_size_masks": round(full / len(expected), 4),
        "ratio": round(before / after, 2),
        "same_planes": expected.keys() == found.keys(),
        "equal_mask_pixels": round(float(np.mean(same)), 7),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()
