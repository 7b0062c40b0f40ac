"""Surfaces of instances as meshes: GLB and PLY, in ångström.

Vertices are (x, y, z), as both formats and the programs of the field expect; a voxel's centre lies at
origin + index · voxel size. The unit of glTF (https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html) is the metre,
but no program of the field follows that: one unit is one ångström here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import marching_cubes

from cryosam_dask.errors import InputError
from cryosam_dask.geometry import Box
from cryosam_dask.io.atomic import replacing, replacing_folder
from cryosam_dask.store.ome import color_of
from cryosam_dask.types import Array, Bool, Float32, Point

if TYPE_CHECKING:
    import trimesh

MOST_SMOOTHING = 8.0
_PIECE = 1 << 24
"""Voxels of a mask that are turned into a surface at a time."""

_BINS = 1 << 16
_STEPS, _NEAR = 12, 0.01
"""Of the search for the value at which the smoothed surface holds what the mask holds, at most; what is near enough."""

_HALF = 0.499
"""Not 0.5: there marching cubes can't decide whether voxels that touch at an edge are connected, and leaves holes."""


@dataclass(frozen=True)
class Surface:
    """The surface of one instance.

    vertices : (n, 3) x, y, z in Å; faces : (m, 3), outward by the right-hand rule; label, score : the instance's
    """

    label: int
    score: float
    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]


def surface_of(
    mask: Bool, box: Box, voxel_size: Point, origin: Point, *, label: int, score: float, smooth: float = 0.0
) -> Surface:
    """The closed surface of a mask by marching cubes, half-way between the voxels inside and those outside.

    Parameters
    ----------
    mask : (z, y, x), not empty; box : its bounds in the tomogram. Beyond it is outside: at the tomogram's border, too
    voxel_size, origin : Å (z, y, x)
    smooth : deviation, in voxels, of a Gaussian that the mask is smoothed with first; the surface is then drawn at the
        value where it holds about the mask's volume

    Large masks are worked on in slabs of z that share one plane, of which the vertices are merged.
    """
    if not mask.any():
        raise ValueError(f"the mask of instance {label} is empty")
    corners, faces = _smoothed(mask, smooth) if smooth else _triangles(mask, 0.0, _HALF)
    vertices, where = _merged(corners if smooth else np.round(2 * corners) / 2)
    # the array begins at the margin
    places = (vertices - _margin(smooth) + [low for low, _ in box]) * voxel_size + origin
    # x, y, z instead of z, y, x mirrors space: faces that turned inwards turn outwards
    return Surface(label, score, np.ascontiguousarray(places[:, ::-1]), where[faces])


def _triangles(mask: Bool, smooth: float, level: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Corners and faces of the surface at a value, in voxels of the array with its margin; slabs are not joined yet."""
    corners, faces, known = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
    for start, values in _pieces(mask, smooth):
        if values.max() <= level or values.min() >= level:
            continue
        own, triangles, _, _ = marching_cubes(values, level)  # type: ignore[no-untyped-call]
        corners.append(own.astype(np.float64) + np.array([start, 0, 0]))
        faces.append(triangles.astype(np.int64) + known)
        known += len(own)
    return np.concatenate(corners), np.concatenate(faces)


def _smoothed(mask: Bool, smooth: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The surface of the smoothed mask at the value where it holds what the mask holds, or nearly."""
    size, level = int(np.count_nonzero(mask)), _level(mask, smooth)
    low, high = 0.0, 1.0  # values at which the surface holds more, and less
    best, least = None, math.inf
    for _ in range(_STEPS):
        corners, faces = _triangles(mask, smooth, level)
        volume, area = _volume_and_area(corners, faces)
        if len(faces) and abs(volume - size) < least:
            best, least = (corners, faces), abs(volume - size)
        if least < _NEAR * size:
            break
        low, high = (level, high) if volume > size else (low, level)
        # values fall across a smoothed edge by 1 / (smooth · √2π) a voxel; across what is thin, by less
        level += (volume - size) / (max(area, 1.0) * smooth * math.sqrt(2 * math.pi))
        if not low < level < high:
            level = (low + high) / 2
    if best is None:
        raise RuntimeError(f"no value of the smoothed mask has a surface (smooth = {smooth})")
    return best


def _volume_and_area(corners: NDArray[np.float64], faces: NDArray[np.int64]) -> tuple[float, float]:
    """Of a closed surface, by the divergence theorem."""
    a, b, c = (corners[faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    return abs(float((a * normals).sum())) / 6, float(np.linalg.norm(normals, axis=1).sum()) / 2


def _margin(smooth: float) -> int:
    return 1 + math.ceil(4 * smooth)


def _pieces(mask: Bool, smooth: float) -> Iterator[tuple[int, Float32]]:
    """Slabs of the mask with its margin, smoothed, each with the last plane of the one before; and where they begin."""
    margin = _margin(smooth)
    depth, rows, columns = (n + 2 * margin for n in mask.shape)
    step = max(1, min(depth - 1, _PIECE // (rows * columns)))
    for start in range(0, depth - 1, step):
        stop = min(start + step + 1, depth)
        low, high = start - margin, stop + margin  # what smoothing needs around the slab
        values = np.zeros((high - low, rows, columns), np.float32)
        first, last = max(low, margin), min(high, margin + mask.shape[0])
        if first < last:
            part = mask[first - margin : last - margin]
            values[first - low : last - low, margin : rows - margin, margin : columns - margin] = part
            if smooth:
                values = ndimage.gaussian_filter(values, smooth, mode="constant", truncate=4.0)
        yield start, values[margin:-margin]


def _level(mask: Bool, smooth: float) -> float:
    """The value that as many voxels of the smoothed mask exceed as the mask has, between the values there are."""
    counts = np.zeros(_BINS, np.int64)
    for start, values in _pieces(mask, smooth):
        own = values if start == 0 else values[1:]
        counts += np.histogram(own, _BINS, (0.0, 1.0))[0]
    taken = np.flatnonzero(counts)[::-1]
    # a voxel whose value the surface is drawn at is half inside
    inside = np.cumsum(counts[taken]) - counts[taken] / 2
    return float(np.interp(np.count_nonzero(mask), inside, (taken + 0.5) / _BINS))


def _merged(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The distinct points, and the index of each given point among them; points of a shared plane are equal, bit for
    bit."""
    distinct, where = np.unique(points, axis=0, return_inverse=True)
    return distinct, where.reshape(-1).astype(np.int64)


def write_glb(path: Path, surfaces: Iterable[Surface]) -> int:
    """Write a scene with one coloured node for each instance, `instance_00012`, with its score as `extras`; returns
    their number.

    Raises StoreError where it can't be written; nothing is left behind. All surfaces are in memory.
    """
    import trimesh

    scene = trimesh.Scene()
    for surface in surfaces:
        mesh = _trimesh(surface)
        mesh.metadata.update(instance=surface.label, score=surface.score)
        scene.add_geometry(mesh, node_name=name_of(surface.label), geom_name=name_of(surface.label))
    count = len(scene.geometry)
    if not count:
        raise InputError(f"{path}: no instances, so no meshes")
    with replacing(path) as temporary:
        temporary.write_bytes(scene.export(file_type="glb"))  # type: ignore[no-untyped-call]
    return count


def write_ply(path: Path, surfaces: Iterable[Surface]) -> int:
    """Write all instances as one mesh whose vertices have the properties `instance` and `score`; returns their
    number."""
    meshes = [_described(surface) for surface in surfaces]
    if not meshes:
        raise InputError(f"{path}: no instances, so no meshes")
    with replacing(path) as temporary:
        temporary.write_bytes(_ply(meshes))
    return len(meshes)


def write_ply_folder(path: Path, surfaces: Iterable[Surface], *, overwrite: bool = False) -> int:
    """Write `instance_00012.ply` and so on into a folder, one surface in memory at a time; returns their number.

    A folder that exists is only replaced if it holds nothing but such files and `overwrite` is true.
    """
    if path.exists() or path.is_symlink():
        ours = path.is_dir() and not path.is_symlink() and all(_is_ours(entry.name) for entry in path.iterdir())
        if not ours or (not overwrite and any(path.iterdir())):
            raise InputError(
                f"{path}: is there already; "
                + ("give --overwrite to replace it, or " if ours else "")
                + "choose another folder"
            )
    count = 0
    with replacing_folder(path) as temporary:
        temporary.mkdir()
        for surface in surfaces:
            mesh = _described(surface)
            (temporary / f"{name_of(surface.label)}.ply").write_bytes(_ply([mesh]))
            count += 1
        if not count:
            raise InputError(f"{path}: no instances, so no meshes")
    return count


def name_of(label: int) -> str:
    """The name of an instance's mesh."""
    return f"instance_{label:05d}"


def _is_ours(name: str) -> bool:
    return name.startswith("instance_") and name.endswith(".ply")


def _trimesh(surface: Surface) -> trimesh.Trimesh:
    import trimesh

    mesh = trimesh.Trimesh(surface.vertices, surface.faces, process=False)
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.array(color_of(surface.label), np.uint8))
    return mesh


def _described(surface: Surface) -> trimesh.Trimesh:
    mesh = _trimesh(surface)
    mesh.vertex_attributes["instance"] = np.full(len(mesh.vertices), surface.label, np.int32)
    mesh.vertex_attributes["score"] = np.full(len(mesh.vertices), surface.score, np.float32)
    return mesh


def _ply(parts: list[trimesh.Trimesh]) -> bytes:
    import trimesh

    mesh: Any = trimesh.util.concatenate(parts)
    for name in ("instance", "score"):
        values: Array = np.concatenate([part.vertex_attributes[name] for part in parts])
        mesh.vertex_attributes[name] = values
    encoded: Any = mesh.export(file_type="ply", vertex_normal=False)
    return bytes(encoded)
