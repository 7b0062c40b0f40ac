"""Models the microscope: tilt coverage, contrast transfer and noise of a density, in 3D Fourier space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

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
    """The share, 0 to 1, of each spatial frequency (z and x, nm⁻¹) that the tilt series measures; the tilt axis is y.

    A projection of a specimen of thickness D fills a slab about its central section of width 1/D (the central
    section theorem). Beyond the frequency 1/(D·step) there are gaps between the tilts; frequencies outside the tilt
    range are the missing wedge.
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
    """Contrast transfer at spatial frequencies in nm⁻¹; positive at low frequencies."""
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


def image(density: Float32, settings: SimulationSettings, rng: np.random.Generator) -> tuple[Float32, Float32]:
    """The noise-free signal and the noise of a padded density, cut to the tomogram's shape.

    The noise is white noise, filtered by the same tilt coverage. It gets no contrast transfer, as shot noise has none.
    It is scaled so that var(signal) / var(noise) = `settings.snr`; with `snr=None` it is zero.
    """
    _, offset = padding(settings)
    inside = tuple(slice(o, o + n) for o, n in zip(offset, settings.shape, strict=True))
    voxel = settings.voxel_size / 10
    fz = fft.fftfreq(density.shape[0], voxel)[:, None, None]
    fy = fft.fftfreq(density.shape[1], voxel)[None, :, None]
    fx = fft.rfftfreq(density.shape[2], voxel)[None, None, :]
    coverage = tilt_coverage(fz, fx, settings).astype(np.float32)
    frequency = np.sqrt((fz**2 + fx**2 + fy**2).astype(np.float32))

    spectrum = fft.rfftn(density)
    spectrum *= coverage
    spectrum *= contrast_transfer(frequency, settings)
    signal: Float32 = np.ascontiguousarray(fft.irfftn(spectrum, s=density.shape)[inside], dtype=np.float32)
    signal -= signal.mean(dtype=np.float64)
    if settings.snr is None:
        return signal, np.zeros_like(signal)
    spectrum = fft.rfftn(rng.standard_normal(density.shape, dtype=np.float32))
    spectrum *= coverage
    noise: Float32 = np.ascontiguousarray(fft.irfftn(spectrum, s=density.shape)[inside], dtype=np.float32)
    noise -= noise.mean(dtype=np.float64)
    noise *= np.sqrt(signal.var(dtype=np.float64) / settings.snr / noise.var(dtype=np.float64))
    return signal, noise
