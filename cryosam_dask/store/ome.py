"""OME-Zarr metadata and ångström coordinates of what the store holds.

Specification: https://ngff.openmicroscopy.org/0.5/ (and 0.4: the same words, elsewhere in the files).
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES

VERSION = "0.5"
DESCRIBED = 1000
"""Labels whose colours and figures are written into the metadata, at most: readers load all of it first."""

Color = tuple[int, int, int, int]
"""Red, green, blue, opacity, 0 to 255."""


def multiscales(
    name: str,
    variable: str,
    levels: int,
    voxel_size: Sequence[float],
    origin: Sequence[float],
    *,
    sampled: bool = False,
    paths: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The `multiscales` entry of an image whose level l is `scale{l}/{variable}`, or `paths[l]`.

    A level's voxel is the mean of 2^l voxels along each axis, so its centre lies (2^l − 1)/2 voxels further on; where
    levels are `sampled`, it is the first of them.
    """
    datasets = []
    for level in range(levels):
        step = 1 << level
        scale = [v * step for v in voxel_size]
        shift = 0.0 if sampled else (step - 1) / 2
        translation = [o + v * shift for o, v in zip(origin, voxel_size, strict=True)]
        datasets.append(
            {
                "path": f"{layout.level_group(level)}/{variable}" if paths is None else paths[level],
                "coordinateTransformations": [
                    {"type": "scale", "scale": scale},
                    {"type": "translation", "translation": translation},
                ],
            }
        )
    axes = [{"name": a, "type": "space", "unit": "angstrom"} for a in AXES]
    kind, method = ("nearest", "every 2nd voxel along each axis") if sampled else ("mean", "mean of 2 x 2 x 2 voxels")
    return [{"name": name, "axes": axes, "datasets": datasets, "type": kind, "metadata": {"description": method}}]


def color_of(label: int) -> Color:
    """A colour that differs from those of the labels before it: hues a golden ratio of the circle apart."""
    hue, saturation = (label * 0.6180339887498949) % 1.0, 0.5 + 0.4 * ((label * 0.7548776662466927) % 1.0)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255), 255


def image_label(described: Mapping[int, Mapping[str, Any]] | None = None, *, source: str | None = "../../") -> Any:
    """The `image-label` entry: which image the labels are of, their colours, and what is known of each.

    Parameters
    ----------
    described : label → its figures, e.g. score and size; all labels of the image or none, for viewers that are given
        colours hide what has none. More than `DESCRIBED` are left out: viewers choose colours of their own
    source : where the image is, seen from the labels; None for labels without an image
    """
    entry: dict[str, Any] = {"version": VERSION}
    if source is not None:
        entry["source"] = {"image": source}
    if described and len(described) <= DESCRIBED:
        entry["colors"] = [{"label-value": int(label), "rgba": list(color_of(label))} for label in described]
        properties = [{"label-value": int(label), **about} for label, about in described.items() if about]
        if properties:
            entry["properties"] = properties
    return entry


def label_attributes(
    image: str,
    levels: int,
    voxel_size: Sequence[float],
    origin: Sequence[float],
    described: Mapping[int, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The `ome` attributes of a label image of a run.

    A level of labels takes every other voxel, not a mean: its centre is that voxel's.
    """
    scales = multiscales(image, layout.LABELS_VARIABLE, levels, voxel_size, origin, sampled=True)
    return {"version": VERSION, "multiscales": scales, "image-label": image_label(described)}


def described_instances(table: Any) -> dict[int, dict[str, Any]]:
    """Score and size in voxels of each instance of a picks' table, for the metadata."""
    return {
        int(label): {"score": round(float(score), 4), "size": int(size)}
        for label, score, size in zip(table["instance"], table["score"], table["size"], strict=True)
    }


def put_coordinates(store: RunStore, group: str, ratio: int) -> None:
    """Write ångström coordinates z, y, x of voxels (ratio 1) or cells into a group, so that xarray finds them."""
    for axis, length, size, origin in zip(AXES, store.shape, store.voxel_size, store.origin, strict=True):
        values = geometry.axis_coordinates(length, size, origin, ratio)
        store.put(layout.member(group, axis), values, (axis,), {"units": "angstrom", "long_name": f"{axis} position"})


def put_token_coordinates(store: RunStore, group: str, ratio: int, tokens: Sequence[int]) -> None:
    """As `put_coordinates`, with the positions of the token grid along each axis beside them.

    The views' arrays are called z, y and x too, so the slices' positions go by `slice_z` and so on.
    """
    for axis, length, size, origin, count in zip(
        AXES, store.shape, store.voxel_size, store.origin, tokens, strict=True
    ):
        units = {"units": "angstrom"}
        store.put(
            layout.member(group, f"slice_{axis}"),
            geometry.axis_coordinates(length, size, origin, ratio),
            (f"slice_{axis}",),
            units,
        )
        values = np.asarray(geometry.token_coordinates(length, count, size, origin))
        store.put(layout.member(group, f"token_{axis}"), values, (f"token_{axis}",), units)
