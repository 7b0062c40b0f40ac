"""Crowds: particles that touch and don't overlap, a cytosol of the share that was asked for."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryosam_dask.errors import SettingsError
from cryosam_dask.simulate import SimulatedTomogram, SimulationSettings, Species, Structure, random_species, simulate
from cryosam_dask.simulate.packing import fill_cytosol, pack_particles
from cryosam_dask.simulate.shapes import template

SPECIES = (Species("tube", "hollow-cylinder", 15.0, 30), Species("lobed", "lobed", 14.0, 30, seed=2))
CROWD = SimulationSettings(
    shape=(56, 120, 120), seed=2, snr=None, species=SPECIES, membranes=0, touching=0.8, cytosol=0.15,
    tilt_range=(-90, 90),
)  # fmt: skip


def changed(**changes: object) -> SimulationSettings:
    return SimulationSettings.from_dict(CROWD.to_dict() | changes)


@pytest.fixture(scope="module")
def crowd() -> SimulatedTomogram:
    return simulate(CROWD)


def neighbours(made: SimulatedTomogram) -> set[int]:
    """Instances that have a voxel of another instance beside one of theirs."""
    near = set()
    for axis in range(3):
        a, b = (np.take(made.labels, range(i, made.labels.shape[axis] - 1 + i), axis=axis) for i in (0, 1))
        beside = (a > 0) & (b > 0) & (a != b)
        near |= set(a[beside].tolist()) | set(b[beside].tolist())
    return near


def test_most_particles_touch_another(crowd: SimulatedTomogram) -> None:
    assert len(neighbours(crowd)) >= 0.7 * len(crowd.particles)
    assert len(neighbours(simulate(changed(touching=0.0)))) < 0.3 * len(crowd.particles)


def test_masks_are_whole_so_that_none_covers_another(crowd: SimulatedTomogram) -> None:
    for spec in SPECIES:
        whole = (template(spec, CROWD.voxel_size).occupancy >= 0.5).sum()
        sizes = np.bincount(crowd.labels_of(spec.name).ravel(), minlength=61)
        assert sizes[[p.instance for p in crowd.of(spec.name)]] == pytest.approx(np.full(spec.count, whole), rel=0.06)
    faces = [np.take(crowd.labels, i, axis=axis) for axis in range(3) for i in (0, -1)]
    assert not any(face.any() for face in faces)


def test_positions_and_species_are_those_of_the_masks(crowd: SimulatedTomogram) -> None:
    centres = ndimage.center_of_mass(crowd.labels > 0, crowd.labels, [p.instance for p in crowd.particles])
    np.testing.assert_allclose(centres, [p[:3] for p in crowd.particles], atol=0.6)
    assert [p.instance for p in crowd.particles] == list(range(1, 61))
    for k, spec in enumerate(SPECIES, 1):
        assert np.array_equal(crowd.semantic == k, crowd.labels_of(spec.name) > 0)


@pytest.mark.parametrize("touching", [None, 0.5])
def test_orientations_turn_the_template_onto_the_particle(touching: float | None) -> None:
    rod = Species("rod", "rod", 22.0, 4, seed=1)
    made = simulate(changed(species=(rod,), touching=touching, cytosol=0.0))
    places = np.argwhere(template(rod, 10.0).occupancy >= 0.5)
    axis = np.linalg.eigh(np.cov(places.T))[1][:, -1]
    for p, turn in zip(made.particles, made.orientations, strict=True):
        voxels = np.argwhere(made.labels == p.instance)
        long = np.linalg.eigh(np.cov(voxels.T))[1][:, -1]
        assert abs(long @ (turn @ axis)) > 0.98
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
        assert Rotation.from_matrix(turn).magnitude() > 0


def test_the_density_lies_where_the_masks_are(crowd: SimulatedTomogram) -> None:
    made = simulate(changed(cytosol=0.0, tilt_step=1.0))
    inside = ndimage.binary_erosion(made.labels_of("lobed") > 0)
    assert made.signal[inside].mean() > 1.5
    shells = ndimage.binary_dilation(made.labels > 0, iterations=2)
    assert abs(made.signal[~shells].mean()) < 0.2


@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize("voxel_size", [7.0, 15.0])
def test_the_cytosol_fills_its_share_and_overlaps_nothing(share: float, voxel_size: float) -> None:
    few = tuple(Species(s.name, s.shape, 15.0, 5, seed=s.seed) for s in SPECIES)
    made = simulate(changed(cytosol=share, voxel_size=voxel_size, species=few))
    cytosol = made.semantic == made.number_of("cytosol")
    assert cytosol.mean() == pytest.approx(share, rel=0.02)
    assert not (cytosol & (made.labels > 0)).any()
    assert made.signal[ndimage.binary_erosion(cytosol)].mean() > made.signal[made.semantic == 0].mean() + 0.5


def test_globules_are_of_4_to_9_nm() -> None:
    made = simulate(changed(species=(), cytosol=0.04, voxel_size=5.0, touching=0.0))
    cytosol = made.semantic == made.number_of("cytosol")
    parts, count = ndimage.label(cytosol)
    faces = [np.take(cytosol, i, axis=axis) for axis in range(3) for i in (0, -1)]
    assert min(face.mean() for face in faces) > 0.01  # which cut globules
    cut = np.unique(np.concatenate([np.take(parts, i, axis=axis).ravel() for axis in range(3) for i in (0, -1)]))
    volumes = np.delete(np.bincount(parts.ravel()), cut) * 0.5**3
    alone = 6 * volumes / np.pi / (0.84 * 0.72)  # of an ellipsoid with these axes
    diameters = np.cbrt(alone)
    assert count > 20
    assert np.quantile(diameters, 0.05) > 3.7
    assert np.quantile(diameters, 0.8) < 9.3


def test_crowds_keep_off_structures() -> None:
    kinds = (Structure("sheet", 1), Structure("microtubule", 1), Structure("gold", 2))
    made = simulate(changed(structures=kinds, species=(Species("lobed", "lobed", 14.0, 20, seed=2),)))
    structures = made.structure_labels > 0
    assert not (structures & (made.labels > 0)).any()
    assert not (structures & (made.semantic == made.number_of("cytosol"))).any()
    apart = simulate(changed(structures=kinds, touching=None, species=(Species("lobed", "lobed", 14.0, 8, seed=2),)))
    near = ndimage.binary_dilation(apart.structure_labels > 0, iterations=2)
    assert not (near & (apart.labels > 0)).any()


def test_a_particle_goes_where_there_is_room_alone() -> None:
    blocked = np.ones((40, 60, 60), dtype=bool)
    blocked[10:30, 20:40, 20:40] = False
    settings = SimulationSettings(shape=(40, 60, 60), species=(Species("a", "globule", 12.0, 2),), touching=0.5)
    packed = pack_particles(settings, [template(s, 10.0) for s in settings.species], blocked, np.random.default_rng(0))
    assert set(np.unique(packed.labels)) == {0, 1, 2}
    assert not packed.labels[blocked].any()


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(SettingsError, match=r"only \d+ of 400 particles of lobed"):
        simulate(changed(shape=(40, 60, 60), species=(Species("lobed", "lobed", 14.0, 400),)))
    taken = np.ones((40, 40, 40), dtype=bool)
    taken[10:30, 10:30, 10:30] = False
    with pytest.raises(SettingsError, match=r"cytosol.*0\.0\d of the volume could be filled"):
        fill_cytosol(
            changed(shape=(40, 40, 40)),
            taken,
            np.zeros((90, 90, 90), np.float32),
            (25, 25, 25),
            np.random.default_rng(0),
        )


def test_a_crowd_of_a_hundred_is_quick() -> None:
    settings = SimulationSettings(
        shape=(72, 160, 160), species=random_species(0, 4, 25, 20.0), touching=0.5, cytosol=0.1, membranes=0
    )
    start = time.process_time()
    made = simulate(settings)
    assert len(made.particles) == 100
    assert time.process_time() - start < 6  # about 1 s alone on a core
