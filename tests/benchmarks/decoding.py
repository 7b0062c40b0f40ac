"""What the program itself takes for a prompt on a plane, with models of SAM's shapes that cost nothing.

    python tests/benchmarks/decoding.py [--device cpu] [--plane 928,960] [--planes 9] [--prompts 32] [--repeats 3]

Prints one JSON line. `decode`: milliseconds of processor time (of all threads) per prompt and plane of a propagation
along z, embeddings in memory, with a decoder that hands out logits of 256 × 256 cells (three discs a prompt: a part,
the object, a leak) that were made before; the bound that it is held to, and the ratio of both. `embed`: the same for a
plane, with an image encoder that hands out one embedding; what is left is resizing, normalising, padding and float16.
On a CPU the device's own work counts as the processor's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sam import sam_with  # the benchmark beside this one

from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.models.sam import SamSegmenter, resized_shape
from cryosam_dask.settings import PropagationRules
from cryosam_dask.types import Array

BOUND = 0.3
"""Milliseconds of processor time per prompt and plane."""

RADII = (6.0, 12.0, 60.0)
"""Radii in pixels of what a prompt's candidates show; the second scores best."""


class FreeEncoder(torch.nn.Module):
    """An image encoder that hands out one embedding for every image."""

    img_size = 1024
    blocks: tuple[Any, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("embedding", torch.randn(1, 256, 64, 64), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.embedding.expand(len(image), -1, -1, -1)


class FreeDecoder:
    """A decoder that hands out logits and scores that were made before, by the first prompt of a batch.

    points : (n, 2) the prompts in pixels of the plane, in the order that they come in
    """

    def __init__(self, points: Array, plane: tuple[int, int], device: str) -> None:
        scale = 256 / 1024 * resized_shape(plane, 1024)[0] / plane[0]
        centres = torch.tensor((points + 0.5) * scale - 0.5, dtype=torch.float32)
        cells = torch.arange(256.0)
        away = (
            (cells[None, :, None] - centres[:, 0, None, None]) ** 2
            + (cells[None, None, :] - centres[:, 1, None, None]) ** 2
        ).sqrt()
        radii = torch.tensor(RADII)[None, :, None, None] * scale
        self.logits = ((radii - away[:, None]) * 2).clamp(-20, 20).to(device)
        self.scores = torch.tensor([[0.6, 0.9, 0.7]]).expand(len(points), -1).contiguous().to(device)
        self._x = [float(v) for v in (points[:, 1] + 0.5) * scale * 4]

    def decode(self, image: Any, coordinates: torch.Tensor, labels: Any, previous: Any) -> Any:
        """As `MaskDecoder.decode`, with views."""
        first = int(np.abs(np.array(self._x) - float(coordinates[0, 0, 0])).argmin())
        there = slice(first, first + len(coordinates))
        return self.logits[there], self.scores[there]


def processor_seconds(device: str, repeats: int, run: Callable[[], Any]) -> float:
    """The least processor time of a run, the first one left out."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.process_time() - start)
    return min(seconds)


def decode(options: argparse.Namespace) -> dict[str, Any]:
    """Propagation along z through planes that are all alike."""
    rng = np.random.default_rng(0)
    edges = np.linspace(40, options.plane[1] - 40, options.prompts)
    points = np.stack([rng.uniform(40, options.plane[0] - 40, options.prompts), edges], 1).round()
    segmenter = SamSegmenter(sam_with(FreeEncoder()), "sam", "none", options.device, batch=options.batch)
    segmenter._decoder = FreeDecoder(points, options.plane, options.device)  # type: ignore[assignment]
    embedding = rng.standard_normal((256, 64, 64)).astype(np.float16)
    image = rng.integers(0, 256, options.plane, np.uint8)
    middle = options.planes // 2
    starts = [(float(middle), float(row), float(col)) for row, col in points]
    rules = PropagationRules(rule="plain", merge="union", max_area=1024)

    def propagate() -> int:
        work = Propagation.start(starts, (options.planes, *options.plane), rules)
        work.walkers = [walker for walker in work.walkers if walker.axis == "z"]
        while need := work.needed():
            for axis, plane in sorted(need):
                work.step(segmenter, axis, plane, embedding, image)
        return sum(len(walker.patches) for walker in work.walkers)

    visits = propagate()
    assert visits == options.prompts * options.planes
    each = 1e3 * processor_seconds(options.device, options.repeats, propagate) / visits
    return {"visits": visits, "batch": segmenter.batch} | held_to(each, BOUND)


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """Planes, one after the other, through an encoder that costs nothing."""
    segmenter = SamSegmenter(sam_with(FreeEncoder()), "sam", "none", options.device)
    planes = np.random.default_rng(0).integers(0, 256, (4, *options.plane), np.uint8)
    each = 1e3 * processor_seconds(options.device, options.repeats, partial(segmenter.embed, planes)) / len(planes)
    return {"processor_ms": round(each, 3)}


def held_to(milliseconds: float, bound: float) -> dict[str, float]:
    return {"processor_ms": round(milliseconds, 3), "bound_ms": bound, "ratio": round(milliseconds / bound, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plane", default="928,960", type=lambda v: tuple(int(n) for n in v.split(",")))
    parser.add_argument("--planes", default=9, type=int)
    parser.add_argument("--prompts", default=32, type=int)
    parser.add_argument("--batch", default=None, type=int, help="prompts decoded together; by default the device's")
    parser.add_argument("--repeats", default=3, type=int)
    options = parser.parse_args()
    row: dict[str, Any] = {"device": options.device, "plane": options.plane, "prompts": options.prompts}
    print(json.dumps(row | {"decode": decode(options), "embed": embed(options)}))


if __name__ == "__main__":
    main()
