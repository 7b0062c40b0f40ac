"""Families of random shapes: a seed gives a member, as signed distances (negative inside) in rough diameters.

A member's size and its proportions come from the seed, and its surface is uneven, so that no two are alike. Each
function takes a random generator and returns the distances to the density's surface and to the outline that a person
would draw. Cavities of hollow shapes are inside the outline; the hole of a ring is not.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Distances = Callable[[Float64], tuple[Float64, Float64]]
"""Points (3, …) z, y, x in rough diameters → signed distances (…) to the surface and to the outline."""


def union_of_balls(points: Float64, balls: Float64) -> Float64:
    """Signed distance to the union of balls (N, 4): z, y, x, radius."""
    distance: Float64 = np.full(points.shape[1:], np.inf)
    for z, y, x, radius in balls:
        d = np.sqrt((points[0] - z) ** 2 + (points[1] - y) ** 2 + (points[2] - x) ** 2) - radius
        np.minimum(distance, d, out=distance)
    return distance


def _norm(points: Float64) -> Float64:
    length: Float64 = np.sqrt((points**2).sum(axis=0))
    return length


def _direction(rng: np.random.Generator) -> Float64:
    vector = rng.normal(size=3)
    unit: Float64 = vector / np.linalg.norm(vector)
    return unit


def _solid(distance: Callable[[Float64], Float64]) -> Distances:
    def distances(points: Float64) -> tuple[Float64, Float64]:
        surface = distance(points)
        return surface, surface

    return distances


def _lobed(rng: np.random.Generator) -> Distances:
    """Two to five unequal balls, each fused to one before it."""
    balls = [(0.0, 0.0, 0.0, rng.uniform(0.2, 0.3))]
    for _ in range(rng.integers(1, 5)):
        z, y, x, radius = balls[rng.integers(len(balls))]
        new = rng.uniform(0.11, 0.24)
        step = _direction(rng) * (radius + rng.uniform(0.3, 0.6) * new)
        balls.append((z + step[0], y + step[1], x + step[2], new))
    return _solid(lambda points: union_of_balls(points, np.array(balls)))


def _hollow_sphere(rng: np.random.Generator) -> Distances:
    wall = rng.uniform(0.12, 0.2)

    def distances(points: Float64) -> tuple[Float64, Float64]:
        outer = _norm(points) - 0.5
        return np.maximum(outer, -wall - outer), outer

    return distances


def _hollow_cylinder(rng: np.random.Generator) -> Distances:
    """Open at both ends; the channel is half as wide as the cylinder or more."""
    radius, half = rng.uniform(0.3, 0.45), rng.uniform(0.3, 0.5)
    channel = radius * rng.uniform(0.45, 0.6)

    def distances(points: Float64) -> tuple[Float64, Float64]:
        rho = np.hypot(points[1], points[2])
        outer = np.maximum(rho - radius, np.abs(points[0]) - half)
        return np.maximum(outer, channel - rho), outer

    return distances


def _rod(rng: np.random.Generator) -> Distances:
    """A straight rod with round ends, two and a half to five times as long as wide."""
    radius = 0.5 / rng.uniform(2.5, 5.0)
    return _solid(
        lambda points: (
            np.hypot(np.maximum(np.abs(points[0]) - (0.5 - radius), 0), np.hypot(points[1], points[2])) - radius
        )
    )


def _disc(rng: np.random.Generator) -> Distances:
    """A plate with an elliptical outline, a fifth to a third as thick as long."""
    half, aspect = rng.uniform(0.1, 0.16), rng.uniform(0.7, 1.0)
    return _solid(
        lambda points: np.maximum((np.hypot(points[1] / aspect, points[2]) - 0.5) * aspect, np.abs(points[0]) - half)
    )


def _ring(rng: np.random.Generator) -> Distances:
    radius = rng.uniform(0.1, 0.15)
    return _solid(lambda points: np.hypot(np.hypot(points[1], points[2]) - (0.5 - radius), points[0]) - radius)


def _horn(rng: np.random.Generator) -> Distances:
    """A bent rod that tapers to a point."""
    angles = np.linspace(0, rng.uniform(1.5, 2.6), 24)
    bend = rng.uniform(0.3, 0.4)
    radii = np.linspace(rng.uniform(0.17, 0.22), 0.06, 24)
    balls = np.stack([bend * np.sin(angles), bend * np.cos(angles), np.zeros(24), radii], axis=1)
    return _solid(lambda points: union_of_balls(points, balls))


def _cage(rng: np.random.Generator) -> Distances:
    """A hollow sphere with six to nine windows."""
    wall = rng.uniform(0.14, 0.2)
    windows = np.array([0.5 * _direction(rng) for _ in range(rng.integers(6, 10))])
    balls = np.column_stack([windows, np.full(len(windows), rng.uniform(0.13, 0.18))])

    def distances(points: Float64) -> tuple[Float64, Float64]:
        outer = _norm(points) - 0.5
        shell = np.maximum(outer, -wall - outer)
        return np.maximum(shell, -union_of_balls(points, balls)), outer

    return distances


def _branched(rng: np.random.Generator) -> Distances:
    """Three unequal arms from one place, about in a plane."""
    start = rng.uniform(0, 2 * np.pi)
    balls = []
    for arm in range(3):
        angle = start + arm * 2 * np.pi / 3 + rng.uniform(-0.4, 0.4)
        end = np.array([rng.uniform(-0.3, 0.3), np.sin(angle), np.cos(angle)]) * rng.uniform(0.35, 0.5)
        radius = rng.uniform(0.1, 0.15)
        balls += [(*(t * end), radius) for t in np.linspace(0, 1, 9)]
    return _solid(lambda points: union_of_balls(points, np.array(balls)))


def _bowl(rng: np.random.Generator) -> Distances:
    """Part of a thick shell, open on one side."""
    wall, cut = rng.uniform(0.18, 0.24), rng.uniform(-0.1, 0.15)

    def distance(points: Float64) -> Float64:
        outer = _norm(points) - 0.5
        bowl: Float64 = np.maximum(np.maximum(outer, -wall - outer), points[0] - cut)
        return bowl

    return _solid(distance)


_MEMBERS: dict[str, Callable[[np.random.Generator], Distances]] = {
    "lobed": _lobed, "hollow-sphere": _hollow_sphere, "hollow-cylinder": _hollow_cylinder, "rod": _rod, "disc": _disc,
    "ring": _ring, "horn": _horn, "cage": _cage, "branched": _branched, "bowl": _bowl,
}  # fmt: skip
FAMILIES: tuple[str, ...] = tuple(_MEMBERS)


def member(family: str, seed: int) -> Distances:
    """The member of a family that a seed gives."""
    rng = np.random.default_rng([seed, zlib.crc32(family.encode())])
    smooth = _MEMBERS[family](rng)
    waves = rng.normal(size=(6, 3))
    waves *= (2 * np.pi / rng.uniform(0.25, 0.6, 6) / np.linalg.norm(waves, axis=1))[:, None]
    phases = rng.uniform(0, 2 * np.pi, 6)
    height = rng.uniform(0.004, 0.012)  # six of them reach 0.03 to 0.07 at most

    def distances(points: Float64) -> tuple[Float64, Float64]:
        bumps = sum(np.cos(np.tensordot(w, points, axes=1) + p) for w, p in zip(waves, phases, strict=True)) * height
        surface, outline = smooth(points)
        return surface + bumps, outline + bumps

    return distances
