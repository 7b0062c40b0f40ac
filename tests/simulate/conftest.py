"""Measures that the tests of the simulator share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cryosam_dask.simulate import SimulatedTomogram
from cryosam_dask.types import Float32


def _missing_share(volume: Float32, inside: tuple[float, float], axis: float) -> float:
    """Mean power where no tilt measures over mean power where tilts do; `inside`: the tilt range, degrees, about an
    axis that is turned by `axis` degrees from y to x."""
    window = 1.0
    for k, n in enumerate(volume.shape):
        window = window * np.hanning(n).reshape([-1 if i == k else 1 for i in range(3)])
    power = np.abs(np.fft.fftn(volume * window)) ** 2
    kz, ky, kx = np.meshgrid(*(np.fft.fftfreq(n) for n in volume.shape), indexing="ij")
    across = kx * np.cos(np.radians(axis)) - ky * np.sin(np.radians(axis))
    # a central section tilted by t has kz cos t = across sin t
    tilt = np.degrees(np.arctan2(kz * np.sign(across + 1e-12), np.abs(across)))
    radius = np.hypot(kz, across)
    low, high = inside
    core = (radius > 0.12) & (radius < 0.45) & (np.abs(across) < 0.45) & (np.abs(kz) < 0.45)
    measured = power[core & (tilt > low + 8) & (tilt < high - 8)].mean()
    missing = power[core & ((tilt < low - 8) | (tilt > high + 8))].mean()
    return float(missing / measured)


@pytest.fixture
def missing_share() -> Callable[[Float32, tuple[float, float], float], float]:
    return _missing_share


@pytest.fixture
def same() -> Callable[[SimulatedTomogram, SimulatedTomogram], bool]:
    """Whether two simulations are the same, bit for bit."""

    def compare(a: SimulatedTomogram, b: SimulatedTomogram) -> bool:
        arrays = ("tomogram", "signal", "labels", "semantic", "structure_labels", "orientations")
        equal = all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in arrays)
        return equal and a.particles == b.particles and a.structures == b.structures

    return compare
