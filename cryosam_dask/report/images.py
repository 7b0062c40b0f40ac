"""Slices, masks and maps of a run as small images, each read from the pyramid level that is just fine enough.

Images are of `Panel`s: a slice across one axis, its rows and columns along the two others. Places are given to the page
as shares of a panel's sides, so that they fit however large it is shown.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import StoreError
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Shape3

Float64 = NDArray[np.float64]

QUALITY = 62
"""Quality of WebP for grey values: 0.25 bytes a pixel at a signal-to-noise ratio of 0.1, since noise takes most."""

LARGEST = 1024
"""Pixels of the longest side of a slice, at most."""

NEAR_NM = 5.0
"""Marks are drawn on a slice that is no farther away than this, and always if nearer than three voxels."""

MOST_MARKS = 600
"""The most points of a kind that are drawn on a slice; the first, which are the best, are taken."""

PANELS = ((0, 1, 2), (2, 1, 0), (1, 0, 2))
"""Across z with rows y and columns x; across x with rows y and columns z; across y with rows z and columns x."""


@dataclass(frozen=True)
class Picture:
    """An image for the page: its data as a URL, its pixels, and what it shows in words."""

    url: str
    width: int
    height: int
    alt: str = ""


@dataclass(frozen=True)
class Mark:
    """A point on a panel: shares of its sides from the left and from the top, and what it is."""

    kind: str
    left: float
    top: float
    title: str = ""


@dataclass(frozen=True)
class Panel:
    """A slice with what is drawn over it.

    Attributes
    ----------
    axis : the axis that it is across; at : its voxel; rows, columns : axes along its sides
    width, height : its sides in nm
    slice, mask : images, the mask transparent where nothing is
    marks : points; lines : shares at which other slices cut it, (left, top), None where none is drawn
    """

    axis: str
    at: int
    rows: str
    columns: str
    width: float
    height: float
    slice: Picture
    mask: Picture | None = None
    marks: tuple[Mark, ...] = ()
    lines: tuple[float, float] | None = None

    @property
    def bar(self) -> tuple[float, float]:
        """A scale bar: nm, and the share of the panel's width that it takes."""
        steps = [m * 10.0**e for e in range(-2, 7) for m in (1, 2, 5)]
        length = max((step for step in steps if step <= self.width / 3), default=steps[0])
        return length, length / self.width


@dataclass(frozen=True)
class Points:
    """Points to draw on slices: positions (n, 3) in voxels, what they are, and a word for each."""

    kind: str
    places: Float64
    titles: Sequence[str] = field(default_factory=tuple)


def webp(pixels: NDArray[np.uint8], alt: str = "", *, lossless: bool = False, quality: int = QUALITY) -> Picture:
    """Grey (A, B), RGB or RGBA (A, B, 3 or 4) pixels as a picture."""
    from PIL import Image

    image = Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=lossless, quality=60 if lossless else quality, method=4)
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return Picture(f"data:image/webp;base64,{data}", image.width, image.height, alt)


def level_for(store: RunStore, largest: int) -> int:
    """The finest level of which no side is longer than `largest`, else the coarsest there is."""
    for level in range(layout.level_count(store.shape)):
        if max(layout.level_shape(store.shape, level)) <= largest:
            return level
    return layout.level_count(store.shape) - 1


def read_slice(store: RunStore, path: str, axis: int, at: int, level: int, largest: int = 2 * LARGEST) -> Array:
    """A slice (rows, columns) of an image's level, as `PANELS` has it; only this is read.

    at : voxel of level 0. Levels that are too large all the same are read with a stride.
    """
    array = store.array(path)
    expected = layout.level_shape(store.shape, level)
    if tuple(array.shape) != expected:
        raise StoreError(f"{store.url}: {path} has shape {tuple(array.shape)}, expected {expected}")
    rows, columns = next((r, c) for a, r, c in PANELS if a == axis)
    step = max(1, -(-max(expected[rows], expected[columns]) // largest))
    where: list[Any] = [slice(None, None, step)] * 3
    where[axis] = min(at >> level, expected[axis] - 1)
    image = np.asarray(array[tuple(where)])
    return image if rows < columns else image.T


def grey(values: Array, limits: tuple[float, float]) -> NDArray[np.uint8]:
    """Numbers as grey values, 0 and 255 at the limits."""
    low, high = limits
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low) - low) / max(high - low, 1e-12)
    return np.asarray(np.clip(np.round(scaled * 255), 0, 255), np.uint8)


def contrast(slices: Sequence[Array]) -> tuple[float, float]:
    """Limits of the grey values that few outliers don't move: the 0.5th and the 99.5th percentile of a sample."""
    samples = [image[:: 1 + image.shape[0] // 512, :: 1 + image.shape[1] // 512].ravel() for image in slices]
    values = np.concatenate([np.zeros(0), *samples]).astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def sides(store: RunStore) -> tuple[float, float, float]:
    """The tomogram's sides in nm."""
    z, y, x = (n * v / 10 for n, v in zip(store.shape, store.voxel_size, strict=True))
    return z, y, x


def nearness(store: RunStore, axis: int) -> float:
    """How far from a slice across `axis` points are still drawn on it, in voxels."""
    return max(NEAR_NM * 10 / store.voxel_size[axis], 3.0)


def marks_on(store: RunStore, axis: int, at: int, groups: Sequence[Points]) -> tuple[Mark, ...]:
    """The points that are near a slice, where they are drawn."""
    rows, columns = next((r, c) for a, r, c in PANELS if a == axis)
    shape: Shape3 = store.shape
    out = []
    for group in groups:
        if not len(group.places):
            continue
        near = np.flatnonzero(np.abs(group.places[:, axis] - at) <= nearness(store, axis))
        for index in near[:MOST_MARKS]:
            left, top = ((group.places[index, i] + 0.5) / shape[i] for i in (columns, rows))
            title = group.titles[int(index)] if len(group.titles) else ""
            out.append(Mark(group.kind, float(left), float(top), title))
    return tuple(out)


def orthogonal(
    store: RunStore, name: str | None, centre: Sequence[float], groups: Sequence[Points], largest: int
) -> list[Panel]:
    """Three slices through a place, with the labels of the query `name` where there are any."""
    level = level_for(store, largest)
    at = tuple(int(np.clip(round(c), 0, n - 1)) for c, n in zip(centre, store.shape, strict=True))
    images = [read_slice(store, layout.tomogram(level), axis, at[axis], level) for axis, _, _ in PANELS]
    limits = contrast(images)
    size = sides(store)
    panels = []
    for (axis, rows, columns), image in zip(PANELS, images, strict=True):
        what = f"Slice {AXES[axis]} = {at[axis]}"
        lines = ((at[columns] + 0.5) / store.shape[columns], (at[rows] + 0.5) / store.shape[rows])
        panels.append(
            Panel(
                *(AXES[axis], at[axis], AXES[rows], AXES[columns], size[columns], size[rows]),
                slice=webp(grey(image, limits), f"{what} of the tomogram"),
                mask=None if name is None else mask_of(store, name, axis, at[axis], level),
                marks=marks_on(store, axis, at[axis], groups),
                lines=lines,
            )
        )
    return panels


def mask_of(store: RunStore, name: str, axis: int, at: int, level: int) -> Picture | None:
    """The instances on a slice, coloured; None where the labels are not there, or not painted yet."""
    rgba = instances_on(store, name, axis, at, level)
    return None if rgba is None else webp(rgba, lossless=True)


def instances_on(
    store: RunStore, name: str, axis: int, at: int, level: int, largest: int = 2 * LARGEST
) -> NDArray[np.uint8] | None:
    """The instances on a slice as RGBA, transparent where there are none."""
    labels = _labels_on(store, name, axis, at, level, largest)
    return None if labels is None else _painted(labels)


def _labels_on(store: RunStore, name: str, axis: int, at: int, level: int, largest: int = 2 * LARGEST) -> Array | None:
    if layout.labels(name, level) not in store:
        return None
    try:
        return read_slice(store, layout.labels(name, level), axis, at, level, largest)
    except StoreError:  # a chunk that is not painted yet; of a damaged one the run's state says more
        return None


def _painted(labels: Array, colours: Sequence[tuple[float, float, float]] | None = None) -> NDArray[np.uint8]:
    from cryosam_dask.picture import overlay

    return np.asarray(np.round(overlay(labels, max(labels.shape), colours) * 255), np.uint8)


def gallery(
    store: RunStore, names: Sequence[str], colours: Sequence[str], groups: Sequence[Points], largest: int, count: int
) -> list[Panel]:
    """Up to `count` slices across z at even distances, with the labels of all queries, each in a colour if several."""
    level, depth = level_for(store, largest), store.shape[0]
    count = min(count, depth)
    places = [int((i + 0.5) * depth / count) for i in range(count)]
    images = [read_slice(store, layout.tomogram(level), 0, at, level) for at in places]
    limits = contrast(images)
    size = sides(store)
    return [
        Panel(
            *("z", at, "y", "x", size[2], size[1]),
            slice=webp(grey(image, limits), f"Slice z = {at} of the tomogram"),
            mask=_kinds_of(store, names, colours, at, level),
            marks=marks_on(store, 0, at, groups),
        )
        for at, image in zip(places, images, strict=True)
    ]


def _kinds_of(store: RunStore, names: Sequence[str], colours: Sequence[str], at: int, level: int) -> Picture | None:
    """The instances of all queries on a slice; where there are several queries, each in its own colour."""
    if len(names) == 1:
        return mask_of(store, names[0], 0, at, level)
    kinds: Array | None = None
    for number, name in enumerate(names, 1):
        if (labels := _labels_on(store, name, 0, at, level)) is not None:
            kinds = np.zeros(labels.shape, np.int64) if kinds is None else kinds
            kinds[labels != 0] = number
    if kinds is None:
        return None
    return webp(_painted(kinds, [(0.0, 0.0, 0.0), *map(_rgb, colours)]), lossless=True)


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue
