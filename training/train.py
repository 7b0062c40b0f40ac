"""Trains the network of the built-in models: `python training/train.py TOMOGRAMS OUT`, again until it is done.

TOMOGRAMS is the folder of `training/tomograms.py`. OUT gets `checkpoint.pt`, from which the next call goes on.
A step looks at a few boxes of each of two tomograms. What is learned, each with a loss of its own:

- classes : what each voxel belongs to (cross entropy)
- centre : where instances have their centres (binary cross entropy to a Gaussian, hard places weighted up)
- mask, quality : the mask of what is clicked, anywhere on it (Dice and cross entropy), and how good that mask is
- kind : descriptors averaged over a mask, alike for instances of a kind of one tomogram and unlike for all others
  (supervised contrast; Khosla et al., NeurIPS 2020); places that are no particle are kinds of their own
- place : the same for descriptors of single cells, of particles, structures and solvent
"""

from __future__ import annotations

import argparse
import json
import math
import queue
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cryosam_dask.models.particle_net import CLASSES, STRIDE, ParticleNet, Seen, load_weights, mask_logits
from cryosam_dask.simulate.structures import CLASSES as STRUCTURES

BOX = (32, 96, 96)
BOXES = 3  # of each tomogram
TOMOGRAMS = 2  # a step
CLICKS = 20  # a box, at most
DECOYS = 4  # clicks a box on what is no instance
REACH = 20  # voxels around a click in which its mask is looked for
SAMPLES = 3000  # voxels of a mask that a step looks at
PIECE = 10.0  # voxels around a click that are one piece of a structure
TEMPERATURE = 0.1
POOLED = 300  # cells of a mask, at most
CELLS = 160  # of a box, whose descriptors are compared


class Box(NamedTuple):
    """A box of a tomogram with its truth.

    density : (z, y, x) float32; labels : int64; cytosol : bool; kinds : (labels,) number of each label's kind, 0 first
    species : kinds up to this are particles
    """

    density: np.ndarray
    labels: np.ndarray
    cytosol: np.ndarray
    kinds: np.ndarray
    species: int


def boxes_of(path: Path, rng: np.random.Generator) -> list[Box]:
    """Random boxes of a tomogram, turned and changed as other microscopes would have it."""
    with np.load(path) as file:
        density, labels = file["density"].astype(np.float32), file["labels"].astype(np.int64)
        cytosol = np.unpackbits(file["cytosol"], count=labels.size).reshape(labels.shape).astype(bool)
        kinds, species = np.concatenate([[0], file["kinds"]]).astype(np.int64), int(file["species"])
    if rng.uniform() < 0.2 and min(density.shape) >= 2 * BOX[0] and density.shape[1] >= 2 * 72:
        density, labels, cytosol = _halved(density), labels[::2, ::2, ::2], cytosol[::2, ::2, ::2]
    flips = tuple(slice(None, None, int(s)) for s in rng.choice([-1, 1], 3))
    density, labels, cytosol = density[flips], labels[flips], cytosol[flips]
    if rng.uniform() < 0.5:
        density, labels, cytosol = (a.swapaxes(1, 2) for a in (density, labels, cytosol))
    if rng.uniform() < 0.4:
        density = density + rng.uniform(0, 0.6) * rng.standard_normal(density.shape, np.float32)
    density = (density - density.mean()) / density.std()
    density = np.clip(density, -8, 8) * np.float32(rng.uniform(0.9, 1.1)) + np.float32(rng.normal(0, 0.05))
    size = tuple(min(b, n // 16 * 16) for b, n in zip(BOX, density.shape, strict=True))
    made = []
    for _ in range(BOXES):
        best: tuple[slice, ...] | None = None
        most = -1
        for _ in range(3):  # the fullest of three
            low = [int(rng.integers(0, n - s + 1)) for n, s in zip(density.shape, size, strict=True)]
            box = tuple(slice(a, a + s) for a, s in zip(low, size, strict=True))
            count = len(np.unique(labels[box]))
            if count > most:
                best, most = box, count
        assert best is not None
        made.append(Box(*(np.ascontiguousarray(a[best]) for a in (density, labels, cytosol)), kinds, species))
    return made


def _halved(volume: np.ndarray) -> np.ndarray:
    z, y, x = (n // 2 for n in volume.shape)
    return volume[: 2 * z, : 2 * y, : 2 * x].reshape(z, 2, y, 2, x, 2).mean((1, 3, 5))


class Clicks(NamedTuple):
    """Clicks on the boxes of one tomogram.

    box : (P,); point : (P, 3) voxels; truth : P masks of the box, None for a decoy; kind : (P,), a negative number of
    its own for each decoy
    """

    box: np.ndarray
    point: np.ndarray
    label: np.ndarray
    kind: np.ndarray


class Targets(NamedTuple):
    """What a box's trunk should give: classes (z, y, x) int64, weights of them; centre (z', y', x') float32."""

    classes: np.ndarray
    centre: np.ndarray


def targets_of(box: Box) -> tuple[Targets, dict[int, tuple[np.ndarray, int]]]:
    """The targets, and for each instance in the box its centre and how many voxels it has there."""
    from scipy import ndimage

    classes = np.zeros(len(box.kinds), np.int64)
    for label in range(1, len(box.kinds)):
        kind = box.kinds[label]
        name = "particle" if kind <= box.species else STRUCTURES[kind - box.species - 1]
        classes[label] = CLASSES.index(name)
    centre = np.zeros(tuple(n // STRIDE for n in box.labels.shape), np.float32)
    seen: dict[int, tuple[np.ndarray, int]] = {}
    shape = np.array(box.labels.shape)
    for label, where in enumerate(ndimage.find_objects(box.labels), 1):
        if where is None:
            continue
        voxels = np.argwhere(box.labels[where] == label) + [s.start for s in where]
        middle = voxels.mean(0)
        low, high = voxels.min(0), voxels.max(0)
        cut = bool((low == 0).any() or (high == shape - 1).any())
        seen[label] = (middle, len(voxels))
        if classes[label] != 1 or (cut and (np.minimum(middle, shape - 1 - middle) < 3).any()):
            continue
        sigma = max(0.7, 0.16 * (6 * len(voxels) / math.pi) ** (1 / 3) / STRIDE)
        cell = (middle - 0.5) / STRIDE
        reach = math.ceil(3 * sigma)
        box_of = [
            slice(max(0, round(c) - reach), min(n, round(c) + reach + 1))
            for c, n in zip(cell, centre.shape, strict=True)
        ]
        axes = np.ogrid[tuple(box_of)]
        squared = sum((a - c) ** 2 for a, c in zip(axes, cell, strict=True))
        part = centre[tuple(box_of)]
        np.maximum(part, np.exp(-squared / (2 * sigma**2)).astype(np.float32), out=part)
    return Targets(classes[box.labels], centre), seen


def clicks_of(boxes: list[Box], seen: list[dict[int, tuple[np.ndarray, int]]], rng: np.random.Generator) -> Clicks:
    """Clicks anywhere on the instances of the boxes, and on what is none."""
    rows: list[tuple[int, np.ndarray, int, int]] = []
    decoy = 0
    for b, (box, known) in enumerate(zip(boxes, seen, strict=True)):
        labels = [k for k, (_, count) in known.items() if count >= 60]
        for label in rng.permutation(labels)[:CLICKS].tolist():
            middle, _ = known[label]
            kind = int(box.kinds[label])
            if kind > box.species and STRUCTURES[kind - box.species - 1] == "gold":
                continue
            voxels = np.argwhere(box.labels == label)
            for _ in range(1 if kind <= box.species else 3):
                point = voxels[rng.integers(len(voxels))]
                if kind <= box.species and rng.uniform() < 0.5:  # near the middle, as proposals are
                    near = voxels[np.argsort(((voxels - middle) ** 2).sum(1))[: max(8, len(voxels) // 8)]]
                    point = near[rng.integers(len(near))]
                rows.append((b, point, label, kind))
        for _ in range(DECOYS):
            point = np.array([rng.integers(n) for n in box.labels.shape])
            if box.labels[tuple(point)] == 0:
                decoy += 1
                rows.append((b, point, 0, -decoy))
    return Clicks(
        np.array([r[0] for r in rows], np.int64),
        np.array([r[1] for r in rows], np.int64).reshape(-1, 3),
        np.array([r[2] for r in rows], np.int64),
        np.array([r[3] for r in rows], np.int64),
    )


class Batch(NamedTuple):
    """The boxes of one tomogram, and what is asked about them."""

    boxes: list[Box]
    targets: list[Targets]
    clicks: Clicks


def batch_of(path: Path, rng: np.random.Generator) -> Batch:
    boxes = boxes_of(path, rng)
    made = [targets_of(box) for box in boxes]
    return Batch(boxes, [t for t, _ in made], clicks_of(boxes, [s for _, s in made], rng))


def samples_of(batch: Batch, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (P, V, 3) near each click, half of them nearer, and whether they are in its mask (P, V)."""
    shape = np.array(batch.boxes[0].labels.shape)
    places, truths = [], []
    for b, point, label, kind in zip(*batch.clicks, strict=True):
        reach = np.where(np.arange(SAMPLES) < SAMPLES // 2, REACH, REACH // 2)[:, None]
        voxels = point + rng.integers(-reach, reach + 1, (SAMPLES, 3))
        voxels = np.clip(voxels, 0, shape - 1)
        box = batch.boxes[b]
        truth = box.labels[tuple(voxels.T)] == label if label else np.zeros(SAMPLES, bool)
        if kind > box.species:
            truth &= ((voxels - point) ** 2).sum(1) <= PIECE**2
        places.append(voxels)
        truths.append(truth)
    return np.stack(places), np.stack(truths)


def contrast(descriptors: Tensor, kinds: Tensor) -> Tensor:
    """Supervised contrast of (P, D) unit descriptors; those of kinds below 0 are like nothing."""
    logits = descriptors @ descriptors.T / TEMPERATURE
    itself = torch.eye(len(kinds), dtype=torch.bool)
    logits = logits.masked_fill(itself, -1e9)
    alike = (kinds[:, None] == kinds[None]) & ~itself & (kinds[:, None] >= 0)
    count = alike.sum(1)
    if not bool((count > 0).any()):
        return descriptors.sum() * 0
    logged = logits - torch.logsumexp(logits, 1, keepdim=True)
    each = -(logged * alike).sum(1)[count > 0] / count[count > 0]
    return each.mean()


def cell_features(seen: Seen, box: Tensor, point: Tensor) -> Tensor:
    """(P, F) features of the cells that clicks lie in."""
    cell = point // STRIDE
    return seen.features[box, :, cell[:, 0], cell[:, 1], cell[:, 2]].float()


def pooled(net: ParticleNet, seen: Seen, batch: Batch, filters: Tensor, first: int, rng: np.random.Generator) -> Tensor:
    """(P, D) descriptors averaged over the cells of each click's mask: half the true one, half the predicted one."""
    shape = np.array(seen.descriptors.shape[2:])
    offsets = np.stack(np.meshgrid(*[np.arange(-REACH // STRIDE, REACH // STRIDE + 1)] * 3, indexing="ij"), -1).reshape(
        -1, 3
    )
    rows, columns, weights = [], [], []
    table = seen.masks.detach().permute(0, 2, 3, 4, 1)
    for i, (b, point, label, kind) in enumerate(zip(*batch.clicks, strict=True)):
        cells = point // STRIDE + offsets
        cells = cells[((cells >= 0) & (cells < shape)).all(1)]
        voxels = cells * STRIDE
        if label and rng.uniform() < 0.5:
            weight = (batch.boxes[b].labels[tuple(voxels.T)] == label).astype(np.float32)
            if kind > batch.boxes[b].species:
                weight *= ((voxels - point) ** 2).sum(1) <= PIECE**2
        else:
            with torch.no_grad():
                z, y, x = torch.from_numpy(voxels).unbind(1)
                values = table[first + b, z, y, x].float()
                relative = torch.from_numpy(voxels - point).float()
                weight = torch.sigmoid(
                    mask_logits(filters[i : i + 1].detach(), values[None], relative[None])[0]
                ).numpy()
        chosen = np.flatnonzero(weight > 0.1)
        if len(chosen) > POOLED:
            chosen = rng.choice(chosen, POOLED, replace=False)
        if not len(chosen):
            chosen, weight = np.array([len(cells) // 2]), np.ones(len(cells), np.float32)
        rows.append(np.full(len(chosen), i))
        columns.append(np.ravel_multi_index(tuple(cells[chosen].T), tuple(shape)) + b * int(shape.prod()))
        weights.append(weight[chosen] / weight[chosen].sum())
    grid = seen.descriptors[first : first + BOXES].flatten(2).transpose(1, 2).reshape(-1, seen.descriptors.shape[1])
    where = torch.from_numpy(np.stack([np.concatenate(rows), np.concatenate(columns)]))
    size = (len(rows), len(grid))
    matrix = torch.sparse_coo_tensor(where, torch.from_numpy(np.concatenate(weights)), size, check_invariants=False)
    return functional.normalize(torch.sparse.mm(matrix, grid), dim=1, eps=1e-4)


def losses_of(net: ParticleNet, seen: Seen, batches: list[Batch], rng: np.random.Generator) -> dict[str, Tensor]:
    """The losses of a step by name."""
    classes = torch.from_numpy(np.stack([t.classes for b in batches for t in b.targets]))
    weight = torch.tensor([0.3, 1.0, 1.5, 2.0, 1.5, 1.0])
    result = {"classes": functional.cross_entropy(seen.classes.float(), classes, weight)}
    heat = torch.from_numpy(np.stack([t.centre for b in batches for t in b.targets]))
    logits = seen.centre.float()[:, 0]
    probability = torch.sigmoid(logits)
    hard = torch.where(heat > 0.3, 20.0 * heat, 20.0 * probability.detach() ** 2 + 0.05)
    entropy = functional.binary_cross_entropy_with_logits(logits, heat, reduction="none")
    result["centre"] = (entropy * hard).sum() / (20.0 * heat.sum() + 50)
    masks, quality, kinds, places, ious = [], [], [], [], []
    for n, batch in enumerate(batches):
        first = n * BOXES
        box, point = torch.from_numpy(batch.clicks.box), torch.from_numpy(batch.clicks.point)
        voxels, truth_np = samples_of(batch, rng)
        truth = torch.from_numpy(truth_np).float()
        filters, guessed = net.at(cell_features(seen, first + box, point))
        at = torch.from_numpy(voxels)
        values = seen.masks.permute(0, 2, 3, 4, 1)[first + box[:, None], at[..., 0], at[..., 1], at[..., 2]].float()
        logit = mask_logits(filters, values, (at - point[:, None]).float())
        soft = torch.sigmoid(logit)
        real = torch.from_numpy(batch.clicks.label > 0)
        dice = 1 - (2 * (soft * truth).sum(1) + 1) / (soft.sum(1) + truth.sum(1) + 1)
        entropy = functional.binary_cross_entropy_with_logits(logit, truth, reduction="none").mean(1)
        masks.append((dice + entropy)[real])
        with torch.no_grad():
            hit = logit > 0
            iou = (hit & (truth > 0.5)).sum(1) / ((hit | (truth > 0.5)).sum(1) + 1e-3)
        ious.append(iou[real])
        quality.append(functional.binary_cross_entropy_with_logits(guessed, iou, reduction="none"))
        kinds.append(contrast(pooled(net, seen, batch, filters, first, rng), torch.from_numpy(batch.clicks.kind)))
        places.append(_places(seen, batch, first, rng))
    result["mask"] = torch.cat(masks).mean()
    result["quality"] = torch.cat(quality).mean()
    result["kind"] = torch.stack(kinds).mean()
    result["place"] = torch.stack(places).mean()
    result["(iou)"] = torch.cat(ious).mean()
    return result


def _places(seen: Seen, batch: Batch, first: int, rng: np.random.Generator) -> Tensor:
    """The contrast of descriptors of single cells."""
    boxes, chosen, kinds = [], [], []
    for b, box in enumerate(batch.boxes):
        labels = box.labels[::STRIDE, ::STRIDE, ::STRIDE].ravel()
        full = np.flatnonzero(labels)
        picked = rng.choice(full, min(len(full), CELLS), replace=False) if len(full) else full
        empty = rng.integers(0, labels.size, CELLS // 3)
        cells = np.concatenate([picked, empty])
        boxes.append(np.full(len(cells), first + b))
        chosen.append(cells)
        kinds.append(box.kinds[labels[cells]])
    flat = seen.descriptors.flatten(2)
    values = flat[torch.from_numpy(np.concatenate(boxes)), :, torch.from_numpy(np.concatenate(chosen))]
    return contrast(values, torch.from_numpy(np.concatenate(kinds)))


WEIGHTS = {"classes": 1.0, "centre": 0.5, "mask": 1.0, "quality": 0.3, "kind": 0.7, "place": 0.2}


class Feed:
    """Prepares steps on a thread, so that the network does not wait."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._rng = folder, np.random.default_rng(seed)
        self._queue: queue.Queue[list[Batch]] = queue.Queue(4)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            paths = sorted(self._folder.glob("*.npz"))
            batches: list[Batch] = []
            while len(batches) < TOMOGRAMS:
                batch = batch_of(paths[self._rng.integers(len(paths))], self._rng)
                alike = {b.density.shape for x in batches for b in x.boxes}
                if (batch.clicks.label > 0).sum() >= 4 and (not alike or alike == {batch.boxes[0].density.shape}):
                    batches.append(batch)
            self._queue.put(batches)

    def take(self) -> list[Batch]:
        return self._queue.get()


def rate(step: int, steps: int, highest: float) -> float:
    """Warm up over 100 steps, stay, and go down to nothing over the last fifth."""
    return highest * min(1.0, (step + 1) / 100, max(0.01, 5 * (1 - step / steps)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tomograms", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--hours", type=float, default=2.0, help="stop after so long")
    parser.add_argument("--steps", type=int, default=6000, help="in all")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--start", type=Path, help="weights (safetensors) to begin from, where there is no checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    chosen.out.mkdir(parents=True, exist_ok=True)
    net = ParticleNet().to(memory_format=torch.channels_last_3d)
    if chosen.start is not None:
        load_weights(net, chosen.start)
    optimizer = torch.optim.AdamW(net.parameters(), chosen.rate, weight_decay=0.02)
    averaged = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    step, path = 0, chosen.out / "checkpoint.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        net.load_state_dict(state["net"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    feed, rng = Feed(chosen.tomograms, step), np.random.default_rng([step, 1])
    begun, told, sums = time.monotonic(), time.monotonic(), {}
    net.train()
    while step < chosen.steps and time.monotonic() - begun < 3600 * chosen.hours:
        batches = feed.take()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, chosen.steps, chosen.rate)
        density = torch.from_numpy(np.stack([box.density for b in batches for box in b.boxes]))[:, None]
        with torch.autocast("cpu", torch.bfloat16):
            seen = net(density.to(memory_format=torch.channels_last_3d))
        losses = losses_of(net, seen, batches, rng)
        total = sum(WEIGHTS[name] * loss for name, loss in losses.items() if name in WEIGHTS)
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        if not bool(torch.isfinite(norm)):
            print(step, "left out:", {name: float(loss.detach()) for name, loss in losses.items()}, flush=True)
            continue
        optimizer.step()
        averaged.update_parameters(net)
        step += 1
        for name, loss in losses.items():
            sums.setdefault(name, []).append(float(loss.detach()))
        if step % 20 == 0:
            means = {name: round(float(np.mean(v)), 3) for name, v in sums.items()}
            print(step, f"{(time.monotonic() - told) / 20:.2f} s", json.dumps(means), flush=True)
            told, sums = time.monotonic(), {}
        if step % 100 == 0 or step == chosen.steps or time.monotonic() - begun >= 3600 * chosen.hours:
            state = {
                "net": net.state_dict(),
                "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
            }
            torch.save(state, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)


if __name__ == "__main__":
    main()
