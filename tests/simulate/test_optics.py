"""The microscope: the wedge is empty, contrast transfer has its zeros, ice is uneven as it was asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cryosam_dask.simulate import Ice, SimulationSettings, Species, Structure, simulate
from cryosam_dask.simulate.imaging import contrast_transfer
from cryosam_dask.types import Float32

BASE = SimulationSettings(
    shape=(64, 96, 96), seed=1, snr=0.5, membranes=0, touching=0.3, cytosol=0.1,
    species=(Species("lobed", "lobed", 14.0, 20, seed=2),),
)  # fmt: skip

MissingShare = Callable[[Float32, tuple[float, float], float], float]


def changed(**changes: object) -> SimulationSettings:
    return SimulationSettings.from_dict(BASE.to_dict() | changes)


@pytest.mark.parametrize("axis", [0.0, 90.0, 35.0, 180.0])
@pytest.mark.parametrize("tilts", [(-60.0, 60.0), (-40.0, 52.0)])
def test_nothing_is_measured_in_the_wedge(missing_share: MissingShare, axis: float, tilts: tuple[float, float]) -> None:
    made = simulate(changed(tilt_range=tilts, tilt_axis=axis, structures=(Structure("gold", 1),)))
    for volume in (made.signal, made.tomogram - made.signal):
        assert missing_share(volume, tilts, axis) < 0.01
        if axis in (35.0, 90.0):  # the wedge of another axis is not empty
            assert missing_share(volume, tilts, axis - 45) > 0.05


def test_all_directions_are_measured_without_a_wedge(missing_share: MissingShare) -> None:
    made = simulate(changed(tilt_range=(-90.0, 90.0), tilt_step=1.0))
    assert missing_share(made.tomogram, (-60.0, 60.0), 0.0) > 0.5


@pytest.mark.parametrize("defocus", [1.5, 3.0, 6.0])
@pytest.mark.parametrize("amplitude", [0.0, 0.1])
def test_contrast_transfer_is_zero_where_its_formula_says(defocus: float, amplitude: float) -> None:
    settings = SimulationSettings(defocus=defocus, amplitude=amplitude, bfactor=0.0, phase_flip=False)
    wavelength, cs = 0.0019687, 2.7e6  # nm, at 300 kV
    for order in (1, 2):
        # π λ Δz f² - π / 2 Cs λ³ f⁴ = order π - arcsin A, solved for f²
        a, b = 0.5 * np.pi * cs * wavelength**3, np.pi * wavelength * defocus * 1e3
        c = order * np.pi - np.arcsin(amplitude)
        zero = np.sqrt((b - np.sqrt(b**2 - 4 * a * c)) / (2 * a))
        around = contrast_transfer(np.array([0.99, 1.0, 1.01]) * zero, settings)
        assert abs(around[1]) < 2e-3
        assert around[0] * around[2] < 0
    envelope = contrast_transfer(np.array([0.4]), settings) * np.exp(-40.0 * 0.4**2 / 4)
    damped = SimulationSettings(defocus=defocus, amplitude=amplitude, bfactor=40.0, phase_flip=False)
    assert contrast_transfer(np.array([0.4]), damped) == pytest.approx(envelope, rel=1e-4)


def test_power_vanishes_at_the_zeros_of_the_transfer() -> None:
    made = simulate(changed(snr=None, defocus=5.0, amplitude=0.0, cs=0.0, bfactor=0.0, shape=(96, 96, 96)))
    power = (
        np.abs(np.fft.fftn(made.signal * np.hanning(96)[:, None, None] * np.hanning(96)[:, None] * np.hanning(96))) ** 2
    )
    k = np.fft.fftfreq(96)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    zero = 1 / np.sqrt(0.0019687 * 5000)  # nm⁻¹, in voxels of 1 nm
    at, before = (power[np.abs(radius - f) < 0.006].mean() for f in (zero, 0.7 * zero))
    assert at < 0.05 * before


def test_contrasts_are_each_others_negatives() -> None:
    extras = {"structures": (Structure("gold", 1), Structure("filament", 1)), "ice": {"thickness": (0.7, 0.9)}}
    bright, dark = (simulate(changed(snr=None, contrast=c, **extras)) for c in ("bright", "dark"))
    np.testing.assert_allclose(dark.signal, -bright.signal, atol=2e-4)
    assert np.array_equal(dark.labels, bright.labels)
    assert bright.signal[bright.labels > 0].mean() > 0 > dark.signal[dark.labels > 0].mean()


def test_everything_lies_in_the_ice_and_vacuum_is_emptier() -> None:
    ice = Ice(thickness=(0.5, 0.9), direction=90.0)
    made = simulate(changed(ice=ice, snr=None, structures=(Structure("sheet", 1), Structure("gold", 2))))
    z, _, x = np.nonzero((made.labels > 0) | (made.semantic > 0) | (made.structure_labels > 0))
    half = 0.5 * 64 * (0.5 + 0.4 * x / 95)
    assert (np.abs(z - 31.5) <= half + 0.5).all()
    assert made.semantic[:, :, :20].any(axis=(1, 2)).sum() < made.semantic[:, :, -20:].any(axis=(1, 2)).sum()
    full = simulate(changed(ice=ice, snr=None, structures=(), tilt_range=(-90.0, 90.0), tilt_step=1.0))
    assert full.signal[:6, :, :20].mean() < full.signal[26:38, :, :20].mean() - 0.3


def test_intensity_drifts_in_its_direction() -> None:
    made = simulate(changed(ice={"gradient": 1.5, "direction": 0.0}, shape=(64, 96, 120)))
    rows = made.tomogram.mean(axis=(0, 2))
    assert np.polyfit(np.arange(96), rows, 1)[0] * 95 == pytest.approx(1.5, rel=0.25)
    columns = made.tomogram.mean(axis=(0, 1))
    assert abs(np.polyfit(np.arange(120), columns, 1)[0] * 119) < 0.3


def test_thick_ice_is_noisier() -> None:
    made = simulate(changed(ice={"thickness": (0.3, 1.0), "direction": 90.0}, voxel_size=20.0))
    noise = made.tomogram - made.signal
    assert noise[..., -16:].std() / noise[..., :16].std() == pytest.approx(np.exp(0.5 * 0.6 * 128 / 300), rel=0.06)
