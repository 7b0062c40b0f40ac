"""Pair statistics: how often particles lie at a distance of each other, against how often they would by chance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from cryosam_dask.analysis.volumes import checked_box
from cryosam_dask.errors import InputError
from cryosam_dask.geometry import Box
from cryosam_dask.outputs.results import single_name
from cryosam_dask.store import picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES

if TYPE_CHECKING:
    import xarray as xr

Float64 = NDArray[np.float64]
_DIRECTIONS, _RADII = 2000, 8
_MOST_BINS = 10_000


def pair_correlation(
    run: str | Path,
    name: str | None = None,
    *,
    other: str | None = None,
    longest: float = 100.0,
    bins: int = 40,
    box: Box | None = None,
) -> xr.Dataset:
    """Pair correlation g(r) of the picks: 1 where pairs are as frequent as by chance, more where they cluster.

    Parameters
    ----------
    run : the run's store; name : the query; may be left out where there is one only
    other : another query of the run: g(r) between the two kinds, rather than within one
    longest : nm, where the last bin ends; bins : how many, equally wide
    box : ((z0, z1), (y0, y1), (x0, x1)) voxels, the stops excluded: only picks in it, which is then the window

    Returns
    -------
    A Dataset over `distance` (nm, the bins' middles): `g`, `g_error` (√pairs over expected), `pairs` that were counted
    and how many are `expected` by chance.

    Border. A point near the window's face has part of its surroundings outside, the more so the larger r. The expected
    number takes this into account: N (N − 1) / (2 V²) ∫ γ(r) 4πr² dr over the bin, γ(r) being the volume that the
    window shares with itself moved by r, averaged over all directions (the isotropized set covariance; Ohser's
    estimator, in Illian et al., Statistical Analysis and Modelling of Spatial Point Patterns, 2008, 4.3). That
    holds for r beyond the window's thickness too. It takes for granted that density and arrangement are the same
    everywhere in the window: particles in a cell that fills part of the tomogram look clustered. Give a `box` then.

    Raises `InputError` for numbers that don't fit, or fewer than two picks in the window.
    """
    import xarray as xr

    store = RunStore.open(run)
    chosen = single_name(store, name)
    if not (math.isfinite(longest) and longest > 0 and bins in range(1, _MOST_BINS + 1)):
        raise InputError(f"longest {longest!r} nm in {bins!r} bins: expected a length above 0 and 1 to {_MOST_BINS}")
    # sides of the window: the first voxel, and the one after the last
    window = np.array([(0, n) for n in store.shape] if box is None else checked_box(store, "box", box))
    places = _places(store, chosen, window)
    other_places = None if other in (None, chosen) else _places(store, single_name(store, other), window)
    possible = len(places) * (len(places) - 1) / 2 if other_places is None else len(places) * len(other_places)
    if possible < 1:
        counts = len(places) if other_places is None else f"{len(places)} and {len(other_places)}"
        raise InputError(f"{store.url}: {counts} picks in the window make no pair")
    edges = np.linspace(0, longest, int(bins) + 1)
    pairs = _counted(places, other_places, edges)
    sides = (window[:, 1] - window[:, 0]) * store.voxel_size / 10
    expected = possible / np.prod(sides) ** 2 * _shared(sides, edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        g, error = pairs / expected, np.sqrt(pairs) / expected
    values = {"g": g, "g_error": error, "pairs": pairs, "expected": expected}
    names = {"run": store.url, "query": chosen, "other": other or chosen, "bin_width": longest / bins}
    middle = xr.Variable("distance", (edges[1:] + edges[:-1]) / 2, {"units": "nm"})
    return xr.Dataset({key: ("distance", v) for key, v in values.items()}, {"distance": middle}, names)


def _places(store: RunStore, name: str, window: NDArray[np.int64]) -> Float64:
    """Picks in the window, nm; a voxel reaches half its side from its centre."""
    voxels = picks.read(store, name)[list(AXES)].to_numpy(np.float64)
    held = ((voxels >= window[:, 0] - 0.5) & (voxels < window[:, 1] - 0.5)).all(1)
    return np.asarray(voxels[held] * np.asarray(store.voxel_size) / 10, np.float64)


def _counted(places: Float64, other_places: Float64 | None, edges: Float64) -> NDArray[np.int64]:
    """Pairs in each bin, by counting those up to each edge: no list of pairs is made."""
    tree = cKDTree(places)
    within = tree.count_neighbors(tree if other_places is None else cKDTree(other_places), edges).astype(np.int64)
    counts = np.diff(within)
    if other_places is not None:
        counts[0] += within[0]
        return np.asarray(counts, np.int64)
    # each with itself is at distance 0, and each pair comes twice
    counts[0] += within[0] - len(places)
    return np.asarray(counts // 2, np.int64)


def _shared(sides: Float64, edges: Float64) -> Float64:
    """∫ γ(r) 4πr² dr over each bin for a box, γ averaged over directions spread evenly (Fibonacci's spiral)."""
    k = np.arange(_DIRECTIONS) + 0.5
    up = 1 - k / _DIRECTIONS  # half of the sphere: γ(r) = γ(−r)
    turn = k * math.pi * (3 - 5**0.5)
    flat = np.sqrt(1 - up**2)
    directions = np.abs(np.stack([up, flat * np.cos(turn), flat * np.sin(turn)], axis=1))
    width = edges[1] - edges[0]
    out = np.zeros(len(edges) - 1)
    for part in (np.arange(_RADII) + 0.5) / _RADII:
        radius = edges[:-1] + part * width
        for at, r in enumerate(radius):
            overlap = np.prod(np.maximum(sides - r * directions, 0), axis=1).mean()
            out[at] += overlap * 4 * math.pi * r**2 * width / _RADII
    return out
