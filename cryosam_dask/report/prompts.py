"""Close views: the prompted particles with the outlines of their masks, and the picks at both ends of the ranking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.geometry import Box
from cryosam_dask.report.images import PANELS, Picture, contrast, grey, webp
from cryosam_dask.stages import doubts
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Bool

MOST_PROMPTS = 6
"""Prompts that are shown."""

SIDE = 224
"""Pixels of a close view."""

WIDEST = 512
"""Voxels of the widest close view; of a larger mask only the part around the prompt is shown."""


@dataclass(frozen=True)
class Close:
    """A close view: a square slice around a prompt, and the mask's outline on it.

    Attributes
    ----------
    axis : the axis that it is across; at : its voxel; slice : the image
    outline : an SVG path, in thousandths of the sides; side : its width in nm; the prompt is in its middle
    """

    axis: str
    at: int
    slice: Picture
    outline: str
    side: float


@dataclass(frozen=True)
class Prompted:
    """A prompted particle: click (z, y, x) in voxels, voxels of its mask, three close views, and what is doubtful."""

    point: tuple[float, float, float]
    size: int
    views: tuple[Close, ...]
    doubts: tuple[str, ...] = ()


def prompted(store: RunStore, name: str, points: NDArray[np.float64]) -> list[Prompted]:
    """The first prompts of a query with their masks; prompts without a mask are left out."""
    where = layout.query(name)
    masks, doubtful = stored.Masks(store, where), doubts.read(store, name)
    out: list[Prompted] = []
    for group, index, prompt, size in _members(store, where):
        if len(out) < MOST_PROMPTS and 0 <= prompt < len(points):
            z, y, x = (float(v) for v in points[prompt])
            views = _views(store, (z, y, x), masks.box(group, index), masks.mask(group, index))
            said = tuple(doubtful[prompt]) if prompt < len(doubtful) else ()
            out.append(Prompted((z, y, x), size, views, said))
    return out


def _members(store: RunStore, where: str) -> Iterator[tuple[int, int, int, int]]:
    """(group, index in it, prompt, size) of the instances under a place of the store."""
    for folder in store.groups(where):
        number = folder.removeprefix("group")
        if number != folder and number.isdecimal():
            measured = stored.read_measured(store, layout.group(where, int(number)))
            for index, (prompt, size) in enumerate(zip(measured.prompt, measured.size, strict=True)):
                yield int(number), index, int(prompt), int(size)


def _views(store: RunStore, point: tuple[float, float, float], box: Box, mask: Bool) -> tuple[Close, ...]:
    centre = [int(np.clip(round(v), 0, n - 1)) for v, n in zip(point, store.shape, strict=True)]
    smallest = min(store.voxel_size)
    # one and a half times what is needed to hold the mask, the prompt in the middle; as long in nm on each axis
    reach = max(max(c - a, b - c) * v for c, (a, b), v in zip(centre, box, store.voxel_size, strict=True))
    side = smallest * min(max(3 * reach / smallest, 24), WIDEST, 2 * max(store.shape))
    images = [_around(store, centre, axis, side) for axis, _, _ in PANELS]
    limits = contrast([image[np.isfinite(image)][None] for image in images])
    views = []
    for (axis, rows, columns), image in zip(PANELS, images, strict=True):
        outline = _outline(mask, box, centre, axis, (rows, columns), image.shape)
        what = f"Slice {AXES[axis]} = {centre[axis]} around the prompt"
        picture = _enlarged(grey(image, limits), what)
        wide = image.shape[1] * store.voxel_size[columns] / 10
        views.append(Close(AXES[axis], centre[axis], picture, outline, wide))
    return tuple(views)


def _around(store: RunStore, centre: Sequence[int], axis: int, side: float) -> NDArray[np.float32]:
    """A square of `side` ångström across an axis around a voxel; NaN outside of the tomogram."""
    rows, columns = next((r, c) for a, r, c in PANELS if a == axis)
    half = {i: max(1, round(side / 2 / store.voxel_size[i])) for i in (rows, columns)}
    out = np.full([2 * half[rows] + 1, 2 * half[columns] + 1], np.nan, np.float32)
    low = {i: max(0, centre[i] - half[i]) for i in half}
    high = {i: min(store.shape[i], centre[i] + half[i] + 1) for i in half}
    where: list[Any] = [slice(None)] * 3
    where[axis] = centre[axis]
    for i in half:
        where[i] = slice(low[i], high[i])
    image = np.asarray(store.read(layout.tomogram(), tuple(where)), np.float32)
    image = image if rows < columns else image.T
    first, second = (low[i] - centre[i] + half[i] for i in (rows, columns))
    out[first : first + image.shape[0], second : second + image.shape[1]] = image
    return out


def _enlarged(pixels: NDArray[np.uint8], alt: str) -> Picture:
    """A square image of `SIDE` pixels, smoothed, since a browser would show blocks or blur as it likes."""
    from PIL import Image

    image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return webp(np.asarray(image), alt, quality=70)


def _outline(
    mask: Bool, box: Box, centre: Sequence[int], axis: int, plane: tuple[int, int], shape: tuple[int, ...]
) -> str:
    """The outline of a mask's slice as an SVG path, in thousandths of the sides of an image around `centre`."""
    from skimage.measure import approximate_polygon, find_contours

    at = centre[axis] - box[axis][0]
    if not 0 <= at < mask.shape[axis]:
        return ""
    rows, columns = plane
    where: list[Any] = [slice(None)] * 3
    where[axis] = at
    image = mask[tuple(where)]
    padded = np.pad(image if rows < columns else image.T, 1).astype(np.float32)
    middle = [(n - 1) / 2 for n in shape]
    # of a padded pixel to one of the view, whose middle is the centre's; half a pixel on, edges are counted from there
    shift = [box[i][0] - 1 - centre[i] + middle[k] + 0.5 for k, i in enumerate((rows, columns))]
    parts = []
    for contour in find_contours(padded, 0.5):  # type: ignore[no-untyped-call]
        ring = approximate_polygon(contour, 0.1)  # type: ignore[no-untyped-call]
        places = [
            f"{1000 * (column + shift[1]) / shape[1]:.0f} {1000 * (row + shift[0]) / shape[0]:.0f}"
            for row, column in ring[:-1]
        ]
        if len(places) > 2:
            parts.append(f"M{'L'.join(places)}Z")
    return "".join(parts)


def typical_radius(store: RunStore, name: str) -> float | None:
    """Equivalent radius of the prompted instances in voxels, None where it isn't known."""
    where = layout.query_array(name, "sizes")
    if where not in store:
        return None
    sizes = np.asarray(store.read(where), float)
    return geometry.equivalent_radius(float(np.median(sizes))) if len(sizes) else None


def sheet(store: RunStore, places: NDArray[np.float64], radius: float, alt: str, columns: int = 8) -> Picture | None:
    """Slices z through places (n, 3), side by side in one image, each some radii wide; None without places."""
    if not len(places):
        return None
    side = 4 * max(radius, 4.0) * min(store.voxel_size[1:])
    side = min(side, WIDEST / 2 * min(store.voxel_size))
    tiles = []
    for place in places:
        centre = [int(np.clip(round(float(v)), 0, n - 1)) for v, n in zip(place, store.shape, strict=True)]
        tiles.append(_around(store, centre, 0, side))
    limits = contrast([np.concatenate([tile[np.isfinite(tile)] for tile in tiles])[None]])
    pixels, gap = 96, 3
    rows = -(-len(tiles) // columns)
    from PIL import Image

    out = Image.new("L", (min(columns, len(tiles)) * (pixels + gap) - gap, rows * (pixels + gap) - gap), 255)
    for i, tile in enumerate(tiles):
        image = Image.fromarray(grey(tile, limits)).resize((pixels, pixels), Image.Resampling.BICUBIC)
        out.paste(image, (i % columns * (pixels + gap), i // columns * (pixels + gap)))
    return webp(np.asarray(out), alt, quality=70)
