"""The simulator: its truth is true, its optics are those asked for, and equal settings give equal volumes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from cryosam_dask.errors import InputError, SettingsError
from cryosam_dask.simulate import SimulatedTomogram, SimulationSettings, Species, preset, simulate
from cryosam_dask.simulate.imaging import contrast_transfer, tilt_coverage
from cryosam_dask.simulate.settings import SHAPES
from cryosam_dask.simulate.shapes import template

SMALL = SimulationSettings(
    shape=(48, 80, 96),
    seed=3,
    snr=0.5,
    species=(
        Species("ribosome", "ribosome", 25.0, 2, 1.2),
        Species("proteasome", "barrel", 15.0, 3),
        Species("tetramer", "tetramer", 12.0, 3),
        Species("small", "globule", 7.0, 10),
    ),
    membranes=1,
)


def small(**changes: object) -> SimulationSettings:
    return SimulationSettings.from_dict(SMALL.to_dict() | changes)


@pytest.fixture(scope="module")
def made() -> SimulatedTomogram:
    return simulate(SMALL)


def test_volumes_have_the_promised_types(made: SimulatedTomogram) -> None:
    assert made.tomogram.shape == made.signal.shape == made.labels.shape == made.semantic.shape == (48, 80, 96)
    assert (made.tomogram.dtype, made.labels.dtype, made.semantic.dtype) == (np.float32, np.int32, np.uint8)
    assert abs(made.tomogram.mean()) < 1e-3
    assert made.tomogram.std() == pytest.approx(1, abs=1e-3)


def test_equal_settings_give_the_same_bits_under_any_scheduler(made: SimulatedTomogram) -> None:
    import dask

    with dask.config.set(scheduler="threads", num_workers=3):
        again = simulate(SimulationSettings.from_dict(json.loads(json.dumps(SMALL.to_dict()))))
    assert again.tomogram.tobytes() == made.tomogram.tobytes()
    assert again.labels.tobytes() == made.labels.tobytes()
    assert again.particles == made.particles


def test_snr_is_the_ratio_of_variances_and_keeps_the_layout(made: SimulatedTomogram) -> None:
    other = simulate(small(snr=4.0))
    for result, snr in ((made, 0.5), (other, 4.0)):
        noise = result.tomogram.astype(np.float64) - result.signal
        assert result.signal.var(dtype=np.float64) / noise.var() == pytest.approx(snr, rel=1e-3)
    assert np.array_equal(other.labels, made.labels)
    assert not np.array_equal(simulate(small(seed=4)).labels, made.labels)


def test_no_noise_and_dark_contrast(made: SimulatedTomogram) -> None:
    clean = simulate(small(snr=None))
    assert np.array_equal(clean.tomogram, clean.signal)
    dark = simulate(small(snr=None, contrast="dark"))
    np.testing.assert_allclose(dark.tomogram, -clean.tomogram, atol=1e-4)
    inside = np.isin(clean.semantic, (1, 2, 3, 4))
    assert clean.tomogram[inside].mean() > 5 * abs(clean.tomogram[~inside].mean())


def test_each_particle_is_one_mask_about_its_centre(made: SimulatedTomogram) -> None:
    assert [p.instance for p in made.particles] == list(range(1, 19))
    assert set(np.unique(made.labels)) == set(range(19))
    centres = ndimage.center_of_mass(made.labels > 0, made.labels, range(1, 19))
    np.testing.assert_allclose(centres, [p[:3] for p in made.particles], atol=0.5)
    for p in made.particles:
        assert ndimage.label(made.labels == p.instance, np.ones((3, 3, 3)))[1] == 1


def test_particles_are_apart_and_inside(made: SimulatedTomogram) -> None:
    near = ndimage.maximum_filter(made.labels, size=3)
    touching = (made.labels > 0) & (near != made.labels)
    assert not touching.any()
    faces = [np.take(made.labels, i, axis=axis) for axis in range(3) for i in (0, -1)]
    assert not any(face.any() for face in faces)


def test_semantic_says_the_species_of_each_instance(made: SimulatedTomogram) -> None:
    for k, spec in enumerate(SMALL.species, start=1):
        particles = made.of(spec.name)
        assert len(particles) == spec.count
        assert np.array_equal(made.semantic == k, made.labels_of(spec.name) > 0)
        assert made.centres(spec.name).shape == (spec.count, 3)
    membrane = made.semantic == 5
    assert membrane.sum() > 1000
    assert not made.labels[membrane].any()
    with pytest.raises(InputError, match="ribosome, proteasome"):
        made.of("virus")


def test_noise_and_signal_miss_the_wedge(made: SimulatedTomogram) -> None:
    window = np.hanning(48)[:, None, None] * np.hanning(80)[:, None] * np.hanning(96)
    kz, kx = np.fft.fftfreq(48)[:, None, None], np.fft.fftfreq(96)[None, None, :]
    angle = np.degrees(np.arctan2(np.abs(kz), np.abs(kx))) + np.zeros((48, 80, 96))
    radius = np.hypot(kz, kx) + np.zeros((48, 80, 96))
    for volume in (made.signal, made.tomogram - made.signal):
        power = np.abs(np.fft.fftn(volume * window)) ** 2
        measured = power[(angle < 50) & (radius > 0.1)].mean()
        missing = power[(angle > 70) & (radius > 0.1)].mean()  # tilts to ±60° about y: nothing within 30° of z
        assert missing < 0.02 * measured


def test_fine_tilts_cover_all_but_the_wedge_of_acryo() -> None:
    from acryo.tilt import single_axis
    from scipy.spatial.transform import Rotation

    settings = SimulationSettings(shape=(40, 40, 64), tilt_range=(-60.0, 40.0), tilt_step=0.25)
    expected = single_axis((-60.0, 40.0), "y").create_mask(Rotation.identity(), (40, 1, 64))[:, 0, :]
    fz, fx = np.fft.fftfreq(40, 1.0)[:, None], np.fft.fftfreq(64, 1.0)[None, :]
    covered = tilt_coverage(fz, fx, settings)
    edge = ndimage.maximum_filter(expected, 5, mode="wrap") != ndimage.minimum_filter(expected, 5, mode="wrap")
    core = ~edge & (np.hypot(fz, fx) < 0.45)  # bins at Nyquist stand for both signs
    assert core.sum() > 500
    np.testing.assert_allclose(covered[core], expected[core], atol=1e-6)


def test_coarse_tilts_leave_gaps_beyond_the_crowther_frequency() -> None:
    settings = SimulationSettings(shape=(96, 96, 96), tilt_step=6.0)
    between = np.radians(3.0)  # halfway between two tilts
    crowther = 1 / (96 * np.radians(6.0))
    radii = np.array([0.2, 0.9, 2.2]) * crowther
    covered = tilt_coverage(radii * np.sin(between), radii * np.cos(between), settings)
    assert covered[0] == 1
    assert covered[1] > covered[2] == 0


def test_contrast_transfer_crosses_zero_where_theory_says() -> None:
    settings = SimulationSettings(cs=0.0, amplitude=0.0, bfactor=0.0, defocus=4.0, phase_flip=False)
    wavelength = 0.0019687  # nm, at 300 kV
    zero = 1 / np.sqrt(wavelength * 4000)
    values = contrast_transfer(np.array([0.5, 0.99, 1.01, 1.2], dtype=np.float32) * np.float32(zero), settings)
    assert (values[:2] > 0).all()
    assert (values[2:] < 0).all()
    flipped = contrast_transfer(np.linspace(0, 1, 50, dtype=np.float32), SimulationSettings())
    assert (flipped >= 0).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("voxel_size", [6.0, 13.5])
def test_templates_fill_their_sphere_and_are_centred(shape: str, voxel_size: float) -> None:
    made = template(Species("p", shape, 18.0, 1), voxel_size)  # type: ignore[arg-type]
    grid = np.indices(made.occupancy.shape) - (made.occupancy.shape[0] - 1) / 2
    inside = made.occupancy >= 0.5
    reach = np.sqrt((grid**2).sum(axis=0))[inside].max()
    assert made.radius - 1.0 <= reach <= made.radius + 0.2
    np.testing.assert_allclose(grid[:, inside].mean(axis=1), 0, atol=0.2)
    # the density dies away within the template
    assert np.abs(made.density[[0, -1]]).max() < 0.02
    assert made.density[inside].mean() > 0.5


def test_a_globule_has_its_ellipsoids_volume() -> None:
    made = template(Species("p", "globule", 20.0, 1), 10.0)
    expected = 4 / 3 * np.pi * 10 * (0.84 * 10) * (0.72 * 10)
    assert made.occupancy.sum() == pytest.approx(expected, rel=0.02)


def test_what_does_not_fit_is_said() -> None:
    crowd = (Species("ribosome", "ribosome", 25.0, 50),)
    with pytest.raises(SettingsError, match=r"only \d+ of 50 particles of ribosome"):
        simulate(SimulationSettings(shape=(40, 60, 60), species=crowd, membranes=0))
    with pytest.raises(SettingsError, match=r"of 40 membranes fit"):
        simulate(SimulationSettings(shape=(40, 60, 60), species=(), membranes=40))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"shape": (96, 192)}, "shape"),
        ({"shape": (96, 192, 8)}, "shape"),
        ({"shape": (96.0, 192, 192)}, "shape"),
        ({"voxel_size": 0.0}, "voxel_size"),
        ({"voxel_size": float("nan")}, "voxel_size"),
        ({"snr": 0.0}, "snr"),
        ({"snr": -1.0}, "snr"),
        ({"seed": -1}, "seed"),
        ({"tilt_range": (60.0, -60.0)}, "tilt_range"),
        ({"tilt_range": (-100.0, 60.0)}, "tilt_range"),
        ({"tilt_step": 0.0}, "tilt_step"),
        ({"tilt_step": 500.0}, "tilt_step"),
        ({"contrast": "grey"}, "contrast"),
        ({"membranes": -1}, "membranes"),
        ({"amplitude": 1.5}, "amplitude"),
        ({"species": (), "membranes": 0}, "species"),
        ({"species": ({"name": "a", "shape": "cube", "diameter": 9.0, "count": 1},)}, "shape"),
        ({"species": ({"name": "a", "shape": "globule", "diameter": 0, "count": 1},)}, "diameter"),
        ({"species": ({"name": "a", "shape": "globule", "diameter": 200.0, "count": 1},)}, "diameter"),
        ({"species": ({"name": "a", "shape": "globule", "diameter": 9.0, "count": 1},) * 2}, "species"),
        ({"species": ({"name": "a"},)}, "species"),
        ({"colour": 1}, "colour"),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes: dict[str, object], name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        SimulationSettings.from_dict(changes)
    message = str(caught.value)
    assert name in message
    assert "\n" not in message


def test_presets() -> None:
    assert preset("default") == SimulationSettings()
    assert preset("large", seed=5).shape == (128, 256, 256)
    assert [s.name for s in preset("tetramer", snr=None).species] == ["tetramer", "small"]
    with pytest.raises(SettingsError, match="default, large"):
        preset("huge")


def test_imports_stay_light() -> None:
    code = (
        "import sys, cryosam_dask.simulate, cryosam_dask.evaluate, cryosam_dask.picture\n"
        "print(sorted({'acryo', 'matplotlib', 'dask', 'torch', 'polars'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
