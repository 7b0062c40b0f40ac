"""What SAM costs here against the public code with the same (random) weights: embedding planes, and decoding prompts.

    python tests/benchmarks/sam.py [--kind vit_b] [--device cpu] [--dtypes float32,bfloat16] [--plane 928,960]

Prints one JSON line. `embed`, for each type: planes per second of the published image encoder and of ours, run in turn
(the best of each counts), their ratio, the peak memory each adds (MiB), what the catalog projects, and the relative
distance of each embedding from the published one in float32. `predict`: seconds per prompt of a loop over
`SamPredictor` with a cached embedding, one prompt at a time, and of ours, without and with logits of a previous plane,
their ratio, and the largest difference of logits relative to their spread.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamPredictor, sam_model_registry

from cryosam_dask import models
from cryosam_dask.models import sam

TINY = "tiny"
"""A kind with two narrow blocks in the encoder, to see that all of this runs."""


def sam_with(encoder: Any) -> Any:
    """A Sam of the published shapes around an image encoder."""
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )


def tiny() -> Any:
    from segment_anything.modeling import ImageEncoderViT

    return sam_with(
        ImageEncoderViT(depth=2, embed_dim=32, num_heads=2, use_rel_pos=True, window_size=14, global_attn_indexes=(1,))
    )


def published(kind: str, device: str) -> Any:
    """The public model with random weights everywhere (its relative positions start at zero)."""
    torch.manual_seed(0)
    model = (tiny() if kind == TINY else sam_model_registry[kind]()).to(device).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


class Peak:
    """The most memory that was added within a `with`, in MiB: resident memory, or the GPU's."""

    def __init__(self, device: str) -> None:
        self.cuda = device != "cpu"
        self.mib = 0

    def __enter__(self) -> Peak:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
            self.start = self.status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        top = torch.cuda.max_memory_allocated() if self.cuda else self.status("VmHWM")
        self.mib = (top - self.start) >> 20

    @staticmethod
    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) << 10


def in_turn(device: str, repeats: int, *runs: Callable[[], Any]) -> list[float]:
    """Best seconds of each function, run A B A B …"""
    seconds = [[np.inf] for _ in runs]
    for _ in range(repeats):
        for run, times in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return [min(times) for times in seconds]


def embed(plain: Any, ours: Any, options: argparse.Namespace) -> dict[str, Any]:
    plane = np.random.default_rng(0).integers(0, 256, options.plane, np.uint8)
    known = "vit_b" if options.kind == TINY else options.kind
    projected = models.segmenter_info(f"sam-{known.replace('_', '')}").embed_bytes(options.plane) >> 20
    exact: Any = None
    rows = {}
    for dtype in options.dtypes:
        adapters = [make(plain, options, dtype, fused=False), make(ours, options, dtype, fused=True)]
        peaks = [Peak(options.device) for _ in adapters]
        found = []
        for adapter, peak in zip(adapters, peaks, strict=True):
            with peak:
                found.append(adapter._embed_one(plane))
        exact = found[0] if exact is None else exact
        runs = [partial(adapter._embed_one, plane) for adapter in adapters]
        before, after = in_turn(options.device, options.repeats, *runs)
        distances = [float(np.linalg.norm(f - exact) / np.linalg.norm(exact)) for f in found]
        rows[dtype] = {
            "published_per_second": round(1 / before, 3),
            "per_second": round(1 / after, 3),
            "ratio": round(before / after, 2),
            "published_mib": peaks[0].mib,
            "mib": peaks[1].mib,
            "projected_mib": projected,
            "published_distance": float(f"{distances[0]:.2g}"),
            "distance": float(f"{distances[1]:.2g}"),
        }
    return rows


def make(model: Any, options: argparse.Namespace, dtype: str, fused: bool) -> sam.SamSegmenter:
    """An adapter, with the public code's attention unless `fused`."""
    adapter = sam.SamSegmenter(model, "sam", "random", options.device, dtype)
    for block in model.image_encoder.blocks if not fused else ():
        del block.attn.forward
    return adapter


def predict(plain: Any, ours: Any, options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    segmenter = sam.SamSegmenter(ours, "sam", "random", options.device)
    embedding = rng.standard_normal(segmenter.embedding_shape(options.plane)).astype(np.float32)
    points = rng.uniform(0, np.array(options.plane) - 1, (options.prompts, 2)).astype(np.float32)
    previous = rng.standard_normal((options.prompts, *segmenter.logits_shape(options.plane))).astype(np.float32) * 4
    predictor = SamPredictor(plain)
    predictor.features = torch.tensor(embedding, device=options.device)[None]
    predictor.original_size = options.plane
    predictor.input_size = sam.resized_shape(options.plane, 1024)
    predictor.is_image_set = True

    def loop(logits: Any) -> Any:
        return [
            predictor.predict(point[None, ::-1], np.array([1]), mask_input=None if logits is None else logits[b][None])
            for b, point in enumerate(points)
        ]

    rows = {}
    for name, logits in (("fresh", None), ("with_logits", previous)):
        found, expected = segmenter.predict(embedding, options.plane, points, logits), loop(logits)
        low = np.stack([e[2] for e in expected])
        agree = np.mean([(found.masks[b] == e[0]).mean() for b, e in enumerate(expected)])
        before, after = in_turn(
            options.device,
            options.repeats,
            partial(loop, logits),
            partial(segmenter.predict, embedding, options.plane, points, logits),
        )
        rows[name] = {
            "published_seconds": round(before / options.prompts, 4),
            "seconds": round(after / options.prompts, 4),
            "ratio": round(before / after, 2),
            "difference": float(f"{np.abs(found.logits - low).max() / low.std():.2g}"),
            "equal_mask_pixels": round(float(agree), 6),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="vit_b", choices=("vit_b", "vit_l", "vit_h", TINY))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtypes", default="float32,bfloat16", type=lambda v: v.split(","))
    parser.add_argument("--plane", default="928,960", type=lambda v: tuple(int(n) for n in v.split(",")))
    parser.add_argument("--prompts", default=8, type=int)
    parser.add_argument("--repeats", default=2, type=int)
    parser.add_argument("--only", default="embed,predict", type=lambda v: v.split(","))
    options = parser.parse_args()
    plain = published(options.kind, options.device)
    ours = copy.deepcopy(plain)
    cuda = options.device != "cpu"
    row: dict[str, Any] = {
        "kind": options.kind,
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
        "plane": options.plane,
    }
    for name, part in (("embed", embed), ("predict", predict)):
        if name in options.only:
            row[name] = part(plain, ours, options)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
