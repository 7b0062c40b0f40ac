"""What was clicked: the mask at each resolution and contrast is a hypothesis; one is chosen, and doubts are said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SMALLEST, LARGEST = 6.0, 26.0
"""Diameters in voxels of its level that a particle is segmented well at."""

UNSURE = 0.5
"""Quality below which a mask is doubtful."""

RIVAL = 0.85
"""Share of the best score from which another hypothesis is a rival, if it means another body."""

FINER = 0.8
"""What the score of each coarser level is multiplied by."""

UNLIKELY = 0.1
"""Weight of the contrast in which less is clear."""

BORDERLESS = "it has no clear border"
"""What is said of a mask whose quality is doubtful."""

PARTICLE = 1
"""The class of particles."""

BODIES = (PARTICLE, 5)
"""Classes of what has a size: particles, and beads of gold, which a dense particle in clear ice may be taken for."""


@dataclass(frozen=True)
class Hypothesis:
    """A mask of what was clicked.

    level, bright : the resolution and contrast at which it was seen
    quality : 0 to 1, the segmenter's estimate of its IoU; classes : (K,) mean probabilities over it
    diameter : of a sphere of its volume, in voxels of the level
    clarity : of all that was seen around the click, at this level and contrast; see `Look.clarity`
    likely : weight of the contrast among all, from `weighed`
    """

    level: int
    bright: bool
    quality: float
    classes: tuple[float, ...]
    diameter: float
    clarity: float = 1.0
    likely: float = 1.0

    @property
    def kind(self) -> int:
        """The class that it most likely is of, solvent excluded."""
        return 1 + int(np.argmax(self.classes[1:]))

    @property
    def score(self) -> float:
        """How well it explains the click: quality × probability that there is something × how its size suits.

        A finer level is believed more: what is a body at a coarse one may be several.
        """
        something = (1 - self.classes[0]) * self.likely * FINER**self.level
        if self.kind not in BODIES or SMALLEST <= self.diameter <= LARGEST:
            return float(self.quality * something)
        off = max(SMALLEST / max(self.diameter, 1e-3), self.diameter / LARGEST)
        return float(self.quality * something / off**2)

    @property
    def size(self) -> float:
        """The diameter in voxels of the tomogram."""
        return float(self.diameter * 2**self.level)


def weighed(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """The hypotheses, with weights by contrast: in the right one more is clear, on all levels together."""
    evidence = dict.fromkeys((True, False), 0.0)
    for h in hypotheses:
        evidence[h.bright] += math.log(max(h.clarity, 1e-6))
    bright = evidence[True] >= evidence[False]
    return [replace(h, likely=1.0 if h.bright == bright else UNLIKELY) for h in hypotheses]


def best(hypotheses: Sequence[Hypothesis]) -> int:
    """The number of the best of them; of equals the finest."""
    return int(np.argmax([h.score for h in hypotheses]))


def doubts(hypotheses: Sequence[Hypothesis], chosen: int) -> list[str]:
    """Why the chosen mask may not be what was meant, each in a few words; none if it is clear."""
    own = hypotheses[chosen]
    said = []
    if own.quality * (1 - own.classes[0]) < UNSURE:
        said.append(BORDERLESS)
    rivals = [h for h in hypotheses if h.score > RIVAL * own.score and h.kind in BODIES and own.kind in BODIES]
    sizes = [h.size for h in rivals if not 2 / 3 < h.size / max(own.size, 1e-3) < 3 / 2]
    if sizes:
        said.append(f"a body of {sizes[0] / max(own.size, 1e-3):.1g} times the diameter fits about as well")
    return said
