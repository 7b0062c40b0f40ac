"""Charts as numbers, which the page draws as SVG in its own colours. All positions are in units of the drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

WIDE, TALL = 560.0, 180.0
BINS = 48


@dataclass(frozen=True)
class Tick:
    """A number on an axis, at a place in units of the drawing."""

    at: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A bar of two parts, one on the other: `kept` over `left_out`; heights in units of the drawing."""

    left: float
    width: float
    kept: float
    left_out: float
    title: str


@dataclass(frozen=True)
class Histogram:
    """Counts of scores, on a scale of roots if some bins hold far more than the others.

    cut : where scores are cut, in units of the drawing, None where they are not; cut_text : in words
    """

    bars: tuple[Bar, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    cut: float | None
    cut_text: str
    rooted: bool
    width: float = WIDE
    height: float = TALL


@dataclass(frozen=True)
class Curve:
    """A line through (left, top) in a square of `side`, with a marked point."""

    points: str
    mark: tuple[float, float]
    side: float = 220.0


def histogram(scores: ArrayLike, kept: ArrayLike, cut: float | None) -> Histogram | None:
    """Counts of `scores` (n,), those that were `kept` (n,) bool apart; None without scores."""
    values, chosen = np.asarray(scores, float), np.asarray(kept, bool)
    values, chosen = values[np.isfinite(values)], chosen[np.isfinite(values)]
    if not len(values):
        return None
    ends = [float(values.min()), float(values.max()), *([] if cut is None else [cut])]
    low, high = min(ends), max(ends)
    high = high if high > low else low + 1e-6
    edges = np.linspace(low, high, BINS + 1)
    inside, outside = (np.histogram(values[part], edges)[0] for part in (chosen, ~chosen))
    most = int((inside + outside).max())
    filled = (inside + outside)[inside + outside > 0]
    rooted = bool(most > 30 * np.median(filled))

    def tall(count: float) -> float:
        share = math.sqrt(count / most) if rooted else count / most
        return round(TALL * share, 2)

    bars = []
    for i in np.flatnonzero(inside + outside):
        above = tall(inside[i] + outside[i])
        own = round(above * inside[i] / (inside[i] + outside[i]), 2)
        title = f"{edges[i]:.3f} to {edges[i + 1]:.3f}: {inside[i]} kept, {outside[i]} left out"
        left, width = WIDE * i / BINS, WIDE / BINS
        bars.append(Bar(round(left + 0.5, 2), round(width - 1, 2), own, round(above - own, 2), title))
    across = tuple(Tick(round(WIDE * (v - low) / (high - low), 1), f"{v:g}") for v in nice(low, high, 6))
    steps = nice(0, most, 4)
    steps = [s for s in steps if s == int(s)] or [0, most]
    up = tuple(Tick(round(TALL - tall(s), 1), f"{s:g}") for s in steps)
    place = None if cut is None else round(WIDE * (cut - low) / (high - low), 2)
    return Histogram(tuple(bars), across, up, place, "" if cut is None else f"{cut:.3f}", rooted)


def nice(low: float, high: float, count: int) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them."""
    raw = (high - low) / count
    scale = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(scale * m for m in (1, 2, 5, 10) if scale * m >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def curve(precision: Sequence[float], recall: Sequence[float]) -> Curve | None:
    """Precision over recall, thinned to what can be seen; the last point, all picks, is marked."""
    if not precision:
        return None
    side = 220.0
    step = max(1, len(precision) // 400)
    indices = sorted({*range(0, len(precision), step), len(precision) - 1})
    places = [(side * recall[i], side * (1 - precision[i])) for i in indices]
    return Curve(" ".join(f"{x:.1f},{y:.1f}" for x, y in places), places[-1], side)
