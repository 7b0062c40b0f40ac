"""Walkers of a propagation, and the rules by which a mask is chosen for them or they stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels.instance import Patch, iou, squared_distance
from cryosam_dask.settings import PropagationRules
from cryosam_dask.types import Array, Axis, Candidates, Logits, MadeTogether

Reason = Literal["", "forked", "no candidate", "volume ends", "contrast", "area", "drift", "reach"]
REASONS: tuple[Reason, ...] = (
    "", "forked", "no candidate", "volume ends", "contrast", "area", "drift", "reach",
)  # fmt: skip
"""Why a walker has finished: "" while it is active; "forked" for a start plane's walker, which two others replace."""


Image = NDArray[np.uint8]
"""A plane of the tomogram in grey levels (rows, columns)."""


class Reference(NamedTuple):
    """Measures of a mask on its plane: area (pixels), contrast (grey levels), centre (row, column)."""

    area: float
    contrast: float
    row: float
    col: float


class Choice(NamedTuple):
    """A candidate's number, its mask, and what the start mask looks like; None under a rule that does not ask."""

    m: int
    patch: Patch
    start: Reference | None


@dataclass
class Walker:
    """One prompt on one axis, going one way.

    plane : the plane it needs next, or where it stopped; direction : 0 on the start plane, then −1 or +1
    point : where to prompt (row, column); logits, last : of the plane before, None on the start plane
    reference : what the start mask looks like, None where the rule does not ask
    patches : the masks so far; finished : why it has, or ""
    """

    prompt: int
    axis: Axis
    direction: int
    plane: int
    point: tuple[float, float]
    logits: Logits | None = None
    reference: Reference | None = None
    last: Patch | None = None
    patches: list[Patch] = field(default_factory=list)
    finished: Reason = ""

    def finish(self, reason: Reason) -> None:
        """Stop for good."""
        self.finished, self.logits = reason, None


class Seen:
    """The image of a plane, which is had when it is first looked at."""

    def __init__(self, image: Image | Callable[[], Image], plane: tuple[Axis, int], size: tuple[int, int]) -> None:
        self._image, self._plane, self._size = image, plane, size
        if not callable(image):
            self._check(image)

    @property
    def image(self) -> Image:
        if callable(self._image):
            self._image = self._image()
            self._check(self._image)
        return self._image

    def _check(self, image: Image) -> None:
        axis, plane = self._plane
        if image.shape != self._size:
            raise ValueError(f"plane {axis} = {plane}: expected an image of shape {self._size}, found {image.shape}")


def choose(
    batch: Sequence[Walker], proposed: Sequence[Candidates], seen: Seen, settings: PropagationRules
) -> list[Choice | Reason]:
    """For each walker the best candidate that the rule allows, or why none was.

    The best ones of all walkers are looked at together, then the second ones of those whose first was not allowed, …
    """
    ranked = [np.argsort(-candidate.scores, kind="stable").tolist() for candidate in proposed]
    choices: list[Choice | Reason] = ["no candidate"] * len(batch)
    undecided = list(range(len(batch)))
    rank = 0
    while undecided := [b for b in undecided if rank < len(ranked[b])]:
        if isinstance(proposed, MadeTogether):
            proposed.make([(b, ranked[b][rank]) for b in undecided], settings.max_area)
        for b in undecided:
            choices[b] = _allowed(batch[b], proposed[b], ranked[b][rank], seen, settings) or choices[b]
        undecided = [b for b in undecided if isinstance(choices[b], str)]
        rank += 1
    return choices


def _allowed(walker: Walker, proposed: Candidates, m: int, seen: Seen, settings: PropagationRules) -> Choice | Reason:
    """Candidate m if the rule allows it, or by which measure it does not; "" if by none of the guards'."""
    _, row, col, mask = proposed.mask(m)
    patch = Patch.crop(mask, walker.plane, float(proposed.scores[m]), row, col)
    if patch is None or (settings.max_area is not None and patch.area >= settings.max_area):
        return ""
    if walker.last is not None and iou(patch, walker.last) <= settings.tau_iou:
        return ""
    if settings.rule == "plain":
        return Choice(m, patch, None)
    look = Reference(patch.area, contrast(seen.image, patch), *patch.centre())
    start = walker.reference or look
    return _unlike(look, start, settings) or Choice(m, patch, start)


def _unlike(seen: Reference, start: Reference, settings: PropagationRules) -> Reason:
    """The measure by which a mask differs too much from the start plane's; "" if none does."""
    if not settings.min_area_ratio * start.area <= seen.area <= settings.max_area_ratio * start.area:
        return "area"
    if seen.contrast * np.sign(start.contrast) < settings.min_contrast * abs(start.contrast):
        return "contrast"
    radius = np.sqrt(start.area / np.pi)
    if np.hypot(seen.row - start.row, seen.col - start.col) > settings.max_drift * radius + 1:
        return "drift"
    return ""


def contrast(image: Array, patch: Patch) -> float:
    """Mean of the image in the mask less the median of the ring 2 to 5 pixels around it; 0 where there is none."""
    margin = 6
    h, w = patch.mask.shape
    r0, c0 = max(patch.row - margin, 0), max(patch.col - margin, 0)
    window = image[r0 : patch.row + h + margin, c0 : patch.col + w + margin].astype(np.float32)
    mask = np.zeros(window.shape, bool)
    mask[patch.row - r0 : patch.row - r0 + h, patch.col - c0 : patch.col - c0 + w] = patch.mask
    squared = squared_distance(mask, 5)
    ring = window[(squared >= 4) & (squared <= 25)]
    return float(window[mask].mean() - np.median(ring)) if ring.size else 0.0
