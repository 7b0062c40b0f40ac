"""A picture of a result: three orthogonal slices with instance masks, picks and, where known, the truth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.types import AXES, Array, Float32, Pick, Point, Shape3

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float64 = NDArray[np.float64]

_LONG_SIDE = 7.0  # inches of the longer side of the drawn slices
_GUTTER = 0.3  # inches around and between them
_ROOMY = 1.6  # inches of the empty corner's side from which the legend goes there
_DPI = 160
_PICK, _TRUTH, _PROMPT = "#ffffff", "#ffe14d", "#ff4fd8"


class _Panel(NamedTuple):
    """A slice across `axis` at position `at`; `rows` and `columns` are the axes (0 = z, 1 = y, 2 = x) it shows."""

    axis: int
    at: int
    rows: int
    columns: int


def slices_picture(
    tomogram: Any,
    labels: Any | None,
    picks: Sequence[Pick] | ArrayLike,
    path: str | os.PathLike[str],
    truth: ArrayLike | None = None,
    prompt: Point | ArrayLike | None = None,
    title: str = "",
    voxel_size: float | None = None,
    near: float = 5.0,
) -> Path:
    """Write a PNG of the three slices through the prompt, or through the centre; returns its path.

    Parameters
    ----------
    tomogram : (z, y, x) numbers; labels : (z, y, x) instance ids, 0 = background, or None. Arrays that can be sliced
        (numpy, zarr); only the three slices are read.
    picks : `Pick`s, or (N, 3) voxels (z, y, x); truth : (M, 3) voxels
    prompt : one point (3,) or several (P, 3), voxels; the slices go through the first
    voxel_size : ångström; None draws no scale bar
    near : voxels; picks and true positions are drawn on a slice no farther away than this

    Raises InputError when shapes don't fit, the prompt lies outside the tomogram, or the file can't be written.
    """
    shape = _shape(tomogram, labels)
    pick_places, true, prompts = _points(picks, "picks"), _points(truth, "truth"), _points(prompt, "prompt")
    centre = np.round(prompts[0]).astype(int) if len(prompts) else np.array(shape) // 2
    if (centre < 0).any() or (centre >= shape).any():
        raise InputError(
            f"picture: the prompt (z, y, x) = {tuple(centre.tolist())} lies outside the tomogram of shape {shape}"
        )
    z, y, x = centre.tolist()
    panels = (_Panel(0, z, 1, 2), _Panel(2, x, 1, 0), _Panel(1, y, 0, 2))
    grey = [_cut(tomogram, p).astype(np.float32) for p in panels]
    finite = np.concatenate([g[np.isfinite(g)] for g in grey])
    limits = np.percentile(finite, (0.5, 99.5)) if finite.size else np.array([0.0, 1.0])

    figure, axes = _layout(shape)
    for panel, image, ax in zip(panels, grey, axes, strict=True):
        ax.imshow(image, cmap="gray", vmin=limits[0], vmax=max(limits[1], limits[0] + 1e-6), interpolation="bilinear")
        if labels is not None:
            ax.imshow(overlay(_cut(labels, panel), max(shape)), interpolation="nearest")
        _draw_planes(ax, panel, centre, shape)
        _draw_points(ax, panel, pick_places, true, prompts, near)
        ax.set_title(f"{AXES[panel.axis]} = {panel.at}", fontsize=8, color="0.3", pad=3, loc="left")
    if voxel_size is not None:
        _draw_scale_bar(axes[0], shape, voxel_size)
    _draw_legend(figure, axes, pick_places, true if truth is not None else None, prompts, near)
    if title:
        figure.suptitle(title, x=0.5, y=1 - 0.1 / figure.get_figheight(), fontsize=10, va="top")
    return _write(figure, Path(path))


def curves_picture(
    curves: Mapping[str, Sequence[tuple[float, float, float]]], path: str | os.PathLike[str], title: str = ""
) -> Path:
    """Write a PNG of precision over recall, one line for each kind, the best F1 marked; returns its path.

    Parameters
    ----------
    curves : by kind, points (threshold, precision, recall), the highest threshold first; kinds without points are left
        out of the picture but not of its legend

    Raises InputError when the file can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.4), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    for kind, points in curves.items():
        thresholds, precision, recall = np.array(points, dtype=np.float64).reshape(-1, 3).T
        if not len(points):
            ax.plot([], [], label=f"{kind}: no curve")
            continue
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
        best = int(f1.argmax())
        text = f"{kind}: best F1 {f1[best]:.3f} at score ≥ {thresholds[best]:.3g}"
        (line,) = ax.plot(recall, precision, label=text, linewidth=1.4, marker="." if len(points) < 40 else "")
        ax.plot(recall[best], precision[best], "o", color=line.get_color(), markersize=6, markerfacecolor="white")
    ax.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=title)
    ax.grid(color="0.9")
    ax.legend(fontsize=8, loc="lower left")
    return _write(figure, Path(path))


def _shape(tomogram: Any, labels: Any | None) -> Shape3:
    shape = tuple(int(n) for n in tomogram.shape)
    if len(shape) != 3:
        raise InputError(f"picture: expected a tomogram (z, y, x), found shape {shape}")
    if labels is not None and tuple(labels.shape) != shape:
        raise InputError(f"picture: expected labels of the tomogram's shape {shape}, found {tuple(labels.shape)}")
    return shape[0], shape[1], shape[2]


def _points(values: Any, what: str) -> Float64:
    if values is None or len(values) == 0:
        return np.zeros((0, 3))
    if isinstance(values, Sequence) and isinstance(values[0], Pick):
        values = [(p.z, p.y, p.x) for p in values]
    points = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"picture: expected {what} of shape (N, 3) as z, y, x, found shape {points.shape}")
    return points


def _cut(volume: Any, panel: _Panel) -> Array:
    """The slice with `panel.rows` down and `panel.columns` to the right."""
    where: list[int | slice] = [slice(None)] * 3
    where[panel.axis] = panel.at
    image = np.asarray(volume[tuple(where)])
    return image if panel.rows < panel.columns else image.T


def _colours(ids: NDArray[np.int64]) -> Float32:
    """A colour (…, 3) for each id: hues a golden angle apart, so that neighbouring ids look different."""
    from matplotlib.colors import hsv_to_rgb

    hue = (ids * 0.618034 + 0.08) % 1.0
    colours: Float32 = hsv_to_rgb(np.stack([hue, np.full(hue.shape, 0.75), np.full(hue.shape, 1.0)], axis=-1))
    return colours.astype(np.float32)


def overlay(labels: Array, long_side: int, colours: ArrayLike | None = None) -> Float32:
    """Instances of a slice as RGBA in [0, 1]: a light fill and a strong outline that stays visible on large slices.

    Parameters
    ----------
    labels : (A, B) instance ids, 0 = background; long_side : pixels that the outline's width goes by
    colours : (n, 3), one for each id from 0; None: hues a golden angle apart
    """
    from scipy.ndimage import grey_dilation, grey_erosion

    width = 2 * max(1, round(long_side / 400)) + 1
    inside = labels != 0
    same = grey_dilation(labels, size=(width, width)) == grey_erosion(labels, size=(width, width))
    alpha = np.where(inside, np.where(same, 0.28, 0.85), 0.0)
    ids = labels.astype(np.int64)
    chosen = _colours(ids) if colours is None else np.asarray(colours, np.float32)[ids]
    return np.concatenate([chosen, alpha[..., None]], axis=-1).astype(np.float32)


def coloured(values: Array, low: float, high: float, name: str = "magma") -> NDArray[np.uint8]:
    """Numbers of any shape as RGBA of a colour map of matplotlib, from `low` to `high`; NaN is transparent."""
    from matplotlib import colormaps

    known = np.isfinite(values)
    scaled = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-12), 0, 1)
    rgba: NDArray[np.uint8] = colormaps[name](scaled, bytes=True)
    rgba[..., 3] = np.where(known, 255, 0)
    return rgba


def _layout(shape: Shape3) -> tuple[Figure, tuple[Axes, Axes, Axes]]:
    """The plane z large; beside it the plane x, sharing y; under it the plane y, sharing x; equal scale throughout."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    depth, height, width = shape
    scale = _LONG_SIDE / max(height + depth, width + depth)  # inches per voxel
    head, foot = 0.55, 0.15 if depth * scale >= _ROOMY else 0.75
    total_w = (width + depth) * scale + 3 * _GUTTER
    total_h = (height + depth) * scale + _GUTTER + head + foot
    size = (max(total_w, 5.0), max(total_h, 3.0))
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left = (size[0] - total_w) / 2 + _GUTTER
    top = size[1] - head

    def add(x: float, y: float, w: float, h: float) -> Axes:
        ax = figure.add_axes((x / size[0], y / size[1], w / size[0], h / size[1]))
        ax.set_xticks([])
        ax.set_yticks([])
        return ax

    w, h, d = width * scale, height * scale, depth * scale
    return figure, (
        add(left, top - h, w, h),
        add(left + w + _GUTTER, top - h, d, h),
        add(left, top - h - _GUTTER - d, w, d),
    )


def _draw_planes(ax: Axes, panel: _Panel, centre: NDArray[np.int_], shape: Shape3) -> None:
    """Where the other two slices cut this one."""
    style: dict[str, Any] = {"color": "white", "linewidth": 0.8, "alpha": 0.6, "linestyle": (0, (4, 4))}
    ax.axhline(centre[panel.rows], **style)
    ax.axvline(centre[panel.columns], **style)
    ax.set_xlim(-0.5, shape[panel.columns] - 0.5)
    ax.set_ylim(shape[panel.rows] - 0.5, -0.5)


def _marker(kind: str) -> dict[str, Any]:
    from matplotlib.patheffects import withStroke

    common: dict[str, Any] = {"linestyle": "none"}
    if kind == "pick":  # small, so that the mask stays visible; the truth's arms reach out from under it
        return common | {"marker": "o", "markersize": 4.5, "markerfacecolor": _PICK, "markeredgecolor": "black",
                         "markeredgewidth": 1.0}  # fmt: skip
    shape, size, colour = ("+", 9, _TRUTH) if kind == "truth" else ("D", 18, _PROMPT)
    return common | {"marker": shape, "markersize": size, "markerfacecolor": "none", "markeredgecolor": colour,
                     "markeredgewidth": 1.4,
                     "path_effects": [withStroke(linewidth=2.8, foreground="black")]}  # fmt: skip


def _draw_points(ax: Axes, panel: _Panel, picks: Float64, true: Float64, prompts: Float64, near: float) -> None:
    for kind, points in (("prompt", prompts), ("truth", true), ("pick", picks)):
        close = points[np.abs(points[:, panel.axis] - panel.at) <= near]
        ax.plot(close[:, panel.columns], close[:, panel.rows], **_marker(kind))


def _draw_scale_bar(ax: Axes, shape: Shape3, voxel_size: float) -> None:
    from matplotlib.patheffects import withStroke

    width_nm = shape[2] * voxel_size / 10
    steps = [m * 10.0**e for e in range(-1, 6) for m in (1, 2, 5)]
    length = max((s for s in steps if s <= width_nm / 3), default=steps[0])
    voxels = length * 10 / voxel_size
    y, x = shape[1] * 0.95, shape[2] * 0.04
    ax.plot([x, x + voxels], [y, y], color="white", linewidth=3, solid_capstyle="butt",
            path_effects=[withStroke(linewidth=5, foreground="black")])  # fmt: skip
    ax.annotate(f"{length:g} nm", (x + voxels / 2, y), xytext=(0, 5), textcoords="offset points", color="white",
                ha="center", va="bottom", fontsize=8,
                path_effects=[withStroke(linewidth=2, foreground="black")])  # fmt: skip


def _draw_legend(
    figure: Figure, axes: tuple[Axes, Axes, Axes], picks: Float64, true: Float64 | None, prompts: Float64, near: float
) -> None:
    """The legend in the empty corner beside the planes x and y where it fits, else under the slices."""
    from matplotlib.lines import Line2D

    entries: list[tuple[str, str]] = []
    if len(prompts):
        entries.append(("prompt", "prompt" if len(prompts) == 1 else f"prompts ({len(prompts)})"))
    if len(picks):
        entries.append(("pick", f"picks ({len(picks)} in all)"))
    if true is not None:
        entries.append(("truth", f"truth ({len(true)} in all)"))
    if not entries:
        return
    handles = [Line2D([], [], label=text, **_marker(kind)) for kind, text in entries]
    beside, under = axes[1].get_position(), axes[2].get_position()
    left, bottom, right, top = beside.x0, under.y0, beside.x1, under.y1
    wide, tall = (right - left) * figure.get_figwidth(), (top - bottom) * figure.get_figheight()
    place: dict[str, Any] = (
        {"loc": "center", "bbox_to_anchor": (left, bottom, right - left, top - bottom), "labelspacing": 0.9}
        if min(wide, tall) >= _ROOMY
        else {"loc": "lower center", "bbox_to_anchor": (0.5, 0.06 / figure.get_figheight()), "ncols": len(handles)}
    )
    legend = figure.legend(handles=handles, fontsize=8, facecolor="0.45", edgecolor="none", labelcolor="white",
                           borderpad=0.9, handleheight=1.9, handlelength=2.6, title_fontsize=7,
                           title=f"within {near:g} voxels of a slice",
                           **place)  # fmt: skip
    legend.get_title().set_color("white")
    for handle in legend.get_lines():
        handle.set_markersize(min(handle.get_markersize(), 11))


def _write(figure: Figure, path: Path) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(temporary, format="png")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"picture: can't write {path}: {error.strerror or error}") from error
    return path
