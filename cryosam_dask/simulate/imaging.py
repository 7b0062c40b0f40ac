"""What the microscope does to a density: tilt coverage, contrast transfer and noise, in 3D Fourier space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from cryosam_dask.simulate.ice import Ice, noise_gain, ramp
from cryosam_dask.simulate.settings import SimulationSettings
from cryosam_dask.types import Float32, Shape3

_MARGIN_NM = 24.0  # room on each side for fringes and the wedge's streaks, so that they don't wrap around


def padding(settings: SimulationSettings) -> tuple[Shape3, Shape3]:
    """Shape of the padded volume and the offset of the tomogram in it, in voxels (z, y, x)."""
    margin = round(_MARGIN_NM * 10 / settings.voxel_size)
    padded = [fft.next_fast_len(n + 2 * margin, real=True) for n in settings.shape]
    offset = [(p - n) // 2 for p, n in zip(padded, settings.shape, strict=True)]
    return (padded[0], padded[1], padded[2]), (offset[0], offset[1], offset[2])


def tilt_coverage(
    fz: NDArray[np.float64], fx: NDArray[np.float64], settings: SimulationSettings
) -> NDArray[np.float64]:
    """How much of each spatial frequency (nm⁻¹, z and across the tilt axis) the tilt series measures, 0 to 1.

    A projection of a specimen of thickness D fills a slab about its central section of width 1/D (the central
    section theorem): beyond the frequency 1/(D·step) gaps open between tilts, and outside the tilt range lies
    the missing wedge.
    """
    thickness = settings.shape[0] * settings.voxel_size / 10
    low, high = settings.tilt_range
    tilts = np.radians(np.arange(low, high + 1e-6 * settings.tilt_step, settings.tilt_step))
    total = np.zeros(np.broadcast_shapes(fz.shape, fx.shape))
    for tilt in tilts:
        distance = np.abs(fz * np.cos(tilt) - fx * np.sin(tilt))
        total += np.clip(1 - distance * thickness, 0, None)
    return np.clip(total, 0, 1)


def contrast_transfer(frequency: Float32, settings: SimulationSettings) -> Float32:
    """Contrast transfer at spatial frequencies f in nm⁻¹; positive at low frequencies.

    sin(χ + arcsin A) exp(-B f² / 4), χ = π λ Δz f² - π / 2 Cs λ³ f⁴: λ the electrons' wavelength, Δz the underfocus, Cs
    the spherical aberration, A the amplitude contrast, B the `bfactor`; its absolute value with `phase_flip`. Real
    images have the opposite sign, protein being darker than ice; `contrast` says which sign a tomogram has. One defocus
    holds for the whole volume. Source: Rohou & Grigorieff 2015, J. Struct. Biol. 192, 216 (CTFFIND4), equations 1 to 5.
    """
    from acryo.ctf import CTFModel

    model = CTFModel.from_kv(
        kv=settings.voltage,
        spherical_aberration=settings.cs,
        defocus=-settings.defocus,
        bfactor=settings.bfactor,
        amplitude=settings.amplitude,
    )
    transfer: Float32 = np.asarray(model.simulate(frequency), dtype=np.float32)
    return np.abs(transfer) if settings.phase_flip else transfer


def _coverage(
    fz: NDArray[np.float64], fy: NDArray[np.float64], fx: NDArray[np.float64], settings: SimulationSettings
) -> Float32:
    """`tilt_coverage` on open grids of frequencies, for the tilt axis of the settings."""
    angle = settings.tilt_axis % 360
    if angle == 0:
        return tilt_coverage(fz, fx, settings).astype(np.float32)
    sine, cosine = np.sin(np.radians(angle)), np.cos(np.radians(angle))
    across = fx * cosine - fy * sine  # along the direction in the plane that is at right angles to the axis
    # between the values of a fine table: the coverage of each voxel would take minutes
    highest = float(np.abs(across).max())
    table = np.linspace(-highest, highest, 4 * max(settings.shape) + 1)
    rows = tilt_coverage(fz[:, 0], table[None, :], settings)
    covered = np.empty((fz.shape[0], *across.shape[1:]), dtype=np.float32)
    for plane, row in zip(covered, rows, strict=True):
        plane[...] = np.interp(across[0], table, row)
    return covered


def image(
    density: Float32, extra: Float32 | None, settings: SimulationSettings, rng: np.random.Generator
) -> tuple[Float32, Float32]:
    """The noise-free signal and the noise of a padded density, cut to the tomogram's shape.

    The noise is white noise seen through the same tilt coverage; shot noise has no contrast transfer. It is
    scaled so that var(signal) / var(noise) = `settings.snr`; with `snr=None` it is zero. `extra`, a padded density too,
    is in the signal but not in its variance.
    """
    _, offset = padding(settings)
    inside = tuple(slice(o, o + n) for o, n in zip(offset, settings.shape, strict=True))
    voxel = settings.voxel_size / 10
    fz = fft.fftfreq(density.shape[0], voxel)[:, None, None]
    fy = fft.fftfreq(density.shape[1], voxel)[None, :, None]
    fx = fft.rfftfreq(density.shape[2], voxel)[None, None, :]
    coverage = _coverage(fz, fy, fx, settings)

    def seen(volume: Float32, transfer: Float32 | None) -> Float32:
        spectrum = fft.rfftn(volume)
        spectrum *= coverage
        if transfer is not None:
            spectrum *= transfer
        cut: Float32 = np.ascontiguousarray(fft.irfftn(spectrum, s=volume.shape)[inside], dtype=np.float32)
        cut -= cut.mean(dtype=np.float64)
        return cut

    transfer = contrast_transfer(np.sqrt((fz**2 + fx**2 + fy**2).astype(np.float32)), settings)
    sign = np.float32(1 if settings.contrast == "bright" else -1)
    signal = seen(sign * density, transfer)
    variance = signal.var(dtype=np.float64)
    if extra is not None:
        signal += seen(sign * extra, transfer)
    del transfer
    noise = np.zeros_like(signal)
    if settings.snr is not None:
        noise = seen(rng.standard_normal(density.shape, dtype=np.float32), None)
        noise *= np.sqrt(variance / settings.snr / noise.var(dtype=np.float64))
    if settings.ice is not None:
        _make_uneven(signal, noise, settings.ice, settings)
    return signal, noise


def _make_uneven(signal: Float32, noise: Float32, uneven: Ice, settings: SimulationSettings) -> None:
    """Noise that grows with the ice, and intensity that drifts, in place."""
    noise *= noise_gain(uneven, settings.shape, settings.voxel_size).astype(np.float32)
    deviation = np.sqrt(signal.var(dtype=np.float64) + noise.var(dtype=np.float64))
    signal += (uneven.gradient * deviation * ramp(uneven, settings.shape)).astype(np.float32)
