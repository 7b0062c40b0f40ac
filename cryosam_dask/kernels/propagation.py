"""Cross-plane self-prompting: from points to instance masks, for any prompted segmenter.

For each prompt and each axis the plane through the point is prompted with the point. From there two walkers leave,
one each way; on every next plane a walker prompts with the peak and the logits of the plane before, and stops by a
rule. The masks of all planes of a prompt are then merged into one instance. The state is plain data: a caller may
serve the planes in any order, a few at a time, store the state in between and go on elsewhere; the result is the same.

    work = Propagation.start(points, shape, settings)
    while need := work.needed():                        # {(axis, plane): walkers that wait for it}
        for (axis, plane) in sorted(need):
            work.step(segmenter, axis, plane, embedding, image)
    instances = work.instances()                        # one per prompt, or None
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

from cryosam_dask.kernels.instance import Instance, Patch, merge_patches
from cryosam_dask.types import AXES, Array, Axis, Bool, Float32, Point, Prediction, PromptedSegmenter, Shape3


class PropagationSettings(BaseModel):
    """How walkers stop and how planes are merged.

    `rule="plain"` with `merge="union"` is the method as published. `rule="guarded"` also stops a walker where the mask
    is no longer like the one on the start plane: where its contrast with the pixels around it has fallen below
    `min_contrast` of the start plane's (half is the same criterion along the walk as a threshold between two
    classes is in the plane), where its area leaves `min_area_ratio`…`max_area_ratio` of the start plane's, where its
    centre has moved more than `max_drift` of the start mask's radius, or after `max_reach` of its diameters.
    `merge="agreement"` keeps the voxels that the stacks of at least `min_votes` axes hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tau_iou: float = Field(0.5, ge=0, le=1)
    max_area: int | None = Field(None, ge=1)
    rule: Literal["plain", "guarded"] = "guarded"
    merge: Literal["union", "agreement"] = "agreement"
    min_contrast: float = Field(0.5, ge=0, le=1)
    min_area_ratio: float = Field(0.1, ge=0, le=1)
    max_area_ratio: float = Field(2.0, ge=1)
    max_drift: float = Field(1.0, gt=0)
    max_reach: float = Field(2.0, gt=0)
    min_votes: int = Field(2, ge=1, le=3)


REASONS = ("", "started", "no candidate", "volume ends", "contrast", "area", "drift", "reach")
"""Why a walker has finished; empty while it is active. "started": a start plane's walker, gone on as two."""


class Reference(NamedTuple):
    """What the start plane's mask looked like: area (pixels), contrast (grey levels), centre (row, column)."""

    area: float
    contrast: float
    row: float
    col: float


@dataclass
class Walker:
    """One prompt on one axis, going one way.

    plane : the plane it needs next, or where it stopped; direction : 0 on the start plane, then −1 or +1
    point : where to prompt (row, column); logits : (h, w) of the plane before, None on the start plane
    patches : the masks so far; finished : one of REASONS
    """

    prompt: int
    axis: Axis
    direction: int
    plane: int
    point: tuple[float, float]
    logits: Float32 | None = None
    reference: Reference | None = None
    patches: list[Patch] = field(default_factory=list)
    last: Patch | None = None
    finished: str = ""


def plane_shape(shape: Shape3, axis: Axis) -> tuple[int, int]:
    """Rows and columns of a plane normal to `axis`."""
    rows, cols = (n for a, n in zip(AXES, shape, strict=True) if a != axis)
    return rows, cols


def contrast(image: Array, patch: Patch) -> float:
    """Mean of the image in the mask less its mean in the ring 2 to 5 pixels around it; 0 where there is no ring."""
    margin = 6
    h, w = patch.mask.shape
    r0, c0 = max(patch.row - margin, 0), max(patch.col - margin, 0)
    window = image[r0 : patch.row + h + margin, c0 : patch.col + w + margin].astype(np.float32)
    mask = np.zeros(window.shape, bool)
    mask[patch.row - r0 : patch.row - r0 + h, patch.col - c0 : patch.col - c0 + w] = patch.mask
    distance = ndimage.distance_transform_edt(~mask)
    ring = window[(distance >= 2) & (distance <= 5)]
    return float(window[mask].mean() - np.median(ring)) if ring.size else 0.0


def _iou(a: Patch, b: Patch) -> float:
    r0, c0 = max(a.row, b.row), max(a.col, b.col)
    r1 = min(a.row + a.mask.shape[0], b.row + b.mask.shape[0])
    c1 = min(a.col + a.mask.shape[1], b.col + b.mask.shape[1])
    if r1 <= r0 or c1 <= c0:
        return 0.0
    one = a.mask[r0 - a.row : r1 - a.row, c0 - a.col : c1 - a.col]
    two = b.mask[r0 - b.row : r1 - b.row, c0 - b.col : c1 - b.col]
    both = int((one & two).sum())
    return both / (a.area + b.area - both)


@dataclass
class Propagation:
    """The propagation of a group of prompts through a volume of `shape`."""

    points: list[Point]
    shape: Shape3
    settings: PropagationSettings
    walkers: list[Walker]

    @classmethod
    def start(cls, points: list[Point], shape: Shape3, settings: PropagationSettings) -> Propagation:
        """Three walkers per point, each on its start plane."""
        walkers = []
        for prompt, point in enumerate(points):
            for a, axis in enumerate(AXES):
                plane = min(max(round(point[a]), 0), shape[a] - 1)
                row, col = (v for i, v in enumerate(point) if i != a)
                walkers.append(Walker(prompt, axis, 0, plane, (float(row), float(col))))
        return cls([(float(z), float(y), float(x)) for z, y, x in points], shape, settings, walkers)

    def needed(self) -> dict[tuple[Axis, int], list[Walker]]:
        """The planes that active walkers wait for; empty when all have finished."""
        need: dict[tuple[Axis, int], list[Walker]] = {}
        for walker in self.walkers:
            if not walker.finished:
                need.setdefault((walker.axis, walker.plane), []).append(walker)
        return need

    def step(
        self, segmenter: PromptedSegmenter, axis: Axis, plane: int, embedding: Array, image: NDArray[np.uint8]
    ) -> None:
        """Decode all walkers that wait for this plane, and move each one on or finish it.

        embedding : the plane's embedding; image : the plane (rows, columns) that it was made from
        """
        waiting = self.needed().get((axis, plane), [])
        size = plane_shape(self.shape, axis)
        for fresh in (True, False):
            group = [w for w in waiting if (w.logits is None) == fresh]
            for i in range(0, len(group), max(1, segmenter.batch)):
                batch = group[i : i + max(1, segmenter.batch)]
                points = np.array([w.point for w in batch], np.float32)
                logits = None if fresh else np.stack([w.logits for w in batch if w.logits is not None])
                prediction = segmenter.predict(embedding, size, points, logits)
                for b, walker in enumerate(batch):
                    self._advance(walker, prediction, b, segmenter, image)

    def _advance(
        self, walker: Walker, prediction: Prediction, b: int, segmenter: PromptedSegmenter, image: NDArray[np.uint8]
    ) -> None:
        chosen, reason = _choose(walker, prediction, b, image, self.settings)
        if chosen is None:
            walker.finished, walker.logits = reason, None
            return
        m, patch, reference = chosen
        logits = prediction.logits[b, m].copy()
        peak = segmenter.peak(logits[None], (image.shape[0], image.shape[1]))[0]
        point = (float(peak[0]), float(peak[1]))
        walker.patches.append(patch)
        last = self.shape[AXES.index(walker.axis)] - 1
        if walker.direction == 0:
            walker.finished = "started"
            for direction in (-1, 1):
                follower = Walker(walker.prompt, walker.axis, direction, walker.plane + direction, point)
                follower.logits, follower.reference, follower.last = logits, reference, patch
                self.walkers.append(follower)
                _end_at_border(follower, last)
            return
        walker.plane += walker.direction
        walker.point, walker.logits, walker.last = point, logits, patch
        _end_at_border(walker, last)
        if not walker.finished and self.settings.rule == "guarded" and walker.reference is not None:
            diameter = 2 * np.sqrt(walker.reference.area / np.pi)
            if len(walker.patches) >= max(4.0, self.settings.max_reach * diameter):
                walker.finished, walker.logits = "reach", None

    def instances(self) -> list[Instance | None]:
        """One instance per prompt, None where no plane was segmented or, under "agreement", no two axes agree."""
        found: list[Instance | None] = []
        for prompt, point in enumerate(self.points):
            own = [w for w in self.walkers if w.prompt == prompt]
            patches = {a: [p for w in own if w.axis == a for p in w.patches] for a in AXES}
            votes = 1 if self.settings.merge == "union" else self.settings.min_votes
            found.append(merge_patches(prompt, point, patches, self.shape, votes))
        return found


def _end_at_border(walker: Walker, last: int) -> None:
    if not 0 <= walker.plane <= last:
        walker.finished, walker.logits = "volume ends", None


def _choose(
    walker: Walker, prediction: Prediction, b: int, image: NDArray[np.uint8], settings: PropagationSettings
) -> tuple[tuple[int, Patch, Reference] | None, str]:
    """The best candidate that the rule allows: (its number, mask, reference), or None and why none was allowed."""
    reason = "no candidate"
    for m in np.argsort(-prediction.scores[b], kind="stable"):
        patch = Patch.crop(prediction.masks[b, m], walker.plane, float(prediction.scores[b, m]))
        if patch is None or (settings.max_area is not None and patch.area >= settings.max_area):
            continue
        if walker.last is not None and _iou(patch, walker.last) <= settings.tau_iou:
            continue
        row, col = patch.centre()
        seen = Reference(patch.area, contrast(image, patch), row, col)
        if settings.rule == "guarded" and (failed := _guard(seen, walker.reference, settings)):
            reason = failed
            continue
        return (int(m), patch, walker.reference or seen), ""
    return None, reason


def _guard(seen: Reference, start: Reference | None, settings: PropagationSettings) -> str:
    """Why a mask is no longer like the start plane's; empty while it is."""
    if start is None:
        return ""
    if not settings.min_area_ratio * start.area <= seen.area <= settings.max_area_ratio * start.area:
        return "area"
    if seen.contrast * np.sign(start.contrast) < settings.min_contrast * abs(start.contrast):
        return "contrast"
    drift = np.hypot(seen.row - start.row, seen.col - start.col)
    if drift > settings.max_drift * np.sqrt(start.area / np.pi) + 1:
        return "drift"
    return ""
