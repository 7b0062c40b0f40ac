"""The texture encoder's invariances and contract, and the radial profiles that tell species apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, rotate

from cryosam_dask.kernels import likeness, radial_profiles, texture
from cryosam_dask.kernels.peaks import TYPICAL
from cryosam_dask.kernels.texture import CHANNELS
from cryosam_dask.models.texture import TextureEncoder
from cryosam_dask.types import SliceEncoder

ENCODER = TextureEncoder()
SIGNED = [i for i, name in enumerate(CHANNELS) if name.startswith(("band", "low"))]
UNSIGNED = [i for i in range(len(CHANNELS)) if i not in SIGNED]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_is_a_slice_encoder_with_the_shapes_it_promises():
    assert isinstance(ENCODER, SliceEncoder)
    tokens = ENCODER.encode(noise(3, 20, 36))
    assert tokens.shape == (3, 5, 9, ENCODER.channels)
    assert tokens.dtype == np.float32
    assert np.isfinite(tokens).all()
    assert len(set(CHANNELS)) == ENCODER.channels


@pytest.mark.parametrize("shape", [(1, 10, 8), (8, 8), (1, 0, 4)])
def test_sides_that_are_no_multiples_of_the_patch_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of 4"):
        ENCODER.encode(np.zeros(shape, np.float32))


def test_the_smallest_and_the_constant_slice_are_finite():
    assert np.isfinite(ENCODER.encode(noise(1, 4, 4))).all()
    assert np.isfinite(ENCODER.encode(np.full((1, 16, 16), 3.0, np.float32))).all()


def test_a_slice_is_encoded_alike_alone_and_in_company():
    slices = noise(5, 32, 24)
    assert np.array_equal(ENCODER.encode(slices)[3], ENCODER.encode(slices[3:4])[0])


@pytest.mark.parametrize("turn", [lambda a: np.rot90(a, 1, (1, 2)), lambda a: a[:, ::-1], lambda a: a.swapaxes(1, 2)])
def test_turning_or_mirroring_the_slice_turns_the_tokens(turn):
    slices = noise(2, 48, 32)
    assert np.allclose(ENCODER.encode(turn(slices)), turn(ENCODER.encode(slices)), atol=1e-4)


def test_inverted_contrast_flips_the_signed_channels_alone():
    slices = noise(2, 32, 32)
    plain, inverted = ENCODER.encode(slices), ENCODER.encode(-slices)
    assert np.allclose(inverted[..., SIGNED], -plain[..., SIGNED], atol=1e-5)
    assert np.allclose(inverted[..., UNSIGNED], plain[..., UNSIGNED], atol=1e-5)


def test_gradients_and_spreads_are_lengths_of_vectors():
    a, b = np.random.default_rng(0).normal(size=(2, 1, 40, 40)).astype(np.float32)
    expected = np.hypot(a, b)
    np.testing.assert_allclose(texture._length(a, b), expected, rtol=3e-7)


def test_any_rotation_leaves_the_texture_of_an_object_nearly_the_same():
    image = np.zeros((128, 128), np.float32)
    image[50:78, 58:70] = 1.0  # a rod in the middle
    image = gaussian_filter(image, 1.5)
    other = rotate(image, 37, reshape=False)
    plain, turned = (ENCODER.encode(a[None])[0, 14:18, 14:18].mean((0, 1)) for a in (image, other))
    scale = np.abs(ENCODER.encode(image[None])).max((0, 1, 2))
    keep = np.array([not name.startswith("energy") for name in CHANNELS])  # resampling itself smooths those
    assert (np.abs(plain - turned) / scale)[keep].max() < 0.12


def test_bands_answer_to_the_size_of_an_object():
    row, col = np.indices((128, 128)) - 63.5
    discs = np.stack([np.hypot(row, col) < radius for radius in (3, 6, 12, 20)]).astype(np.float32)
    answers = ENCODER.encode(discs)[:, 15:17, 15:17].mean((1, 2))[:, SIGNED[:-1]]
    best = [int(np.argmax(a)) for a in answers]
    assert best == sorted(set(best))  # a larger disc, a coarser band
    assert min(a.max() for a in answers) > 0.1


# --- radial profiles


def ball(shape, centre, radius):
    grid = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return 1 / (1 + np.exp(2 * (np.sqrt((grid**2).sum(0)) - radius)))


LARGE = [(20, 20, 20), (20, 22, 70), (44, 60, 22), (40, 68, 74)]
SMALL = [(20, 60, 48), (44, 20, 48), (44, 30, 80), (20, 84, 20)]


@pytest.fixture(scope="module")
def scene():
    """Balls of radius 7 and 5 in noise of twice their contrast."""
    volume = noise(64, 96, 96, seed=4) * 1.5
    for centre in LARGE:
        volume += ball(volume.shape, centre, 7).astype(np.float32)
    for centre in SMALL:
        volume += ball(volume.shape, centre, 5).astype(np.float32)
    return volume


def ranked(volume, click, radius, places):
    shells = radial_profiles.profile(radius)
    clicked, template = radial_profiles.query_template(volume, np.array([click], float), shells)
    _, queries = radial_profiles.describe(volume, clicked, shells, template)
    centres, profiles = radial_profiles.describe(volume, places, shells, template)
    random = np.random.default_rng(0).uniform(0, np.array(volume.shape) - 1, (300, 3))
    _, background = radial_profiles.describe(volume, random, shells)
    _, fitted = radial_profiles.describe(volume, random, shells, template)
    return centres, likeness.distances(centres, profiles, queries, background, radius, fitted)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (-20, 1000)])
def test_same_species_is_nearest_whatever_the_units_and_contrast(scene, scale, offset):
    jitter = np.random.default_rng(2).integers(-2, 3, (8, 3))
    places = np.array([*LARGE, *SMALL], float) + jitter
    centres, distance = ranked(scene * scale + offset, LARGE[0], 7.0, places)
    assert distance[:4].max() < distance[4:].min()
    assert distance[:4].max() < 2
    assert np.linalg.norm(centres[:4] - LARGE, axis=1).max() <= 2


def test_noise_at_its_best_fit_is_not_of_the_kind():
    """However faint the clicked particle is, hardly a random place passes the cut."""
    faint = noise(64, 96, 96, seed=5) * 4
    for centre in LARGE:
        faint += ball(faint.shape, centre, 7).astype(np.float32)
    places = np.random.default_rng(1).uniform(4, np.array(faint.shape) - 5, (300, 3))
    away = np.linalg.norm(places[:, None] - LARGE, axis=2).min(1) > 20
    centres, distance = ranked(faint, LARGE[0], 7.0, np.concatenate([LARGE, places[away]]))
    elsewhere = np.linalg.norm(centres[:, None] - LARGE, axis=2).min(1) > 7
    assert (distance[elsewhere] < TYPICAL).mean() < 0.03
    assert np.isfinite(distance).all()


def test_profiles_do_not_depend_on_how_places_are_grouped(scene):
    shells = radial_profiles.profile(7.0)
    _, query = radial_profiles.query_template(scene, np.array([LARGE[0]], float), shells)
    places = np.array([*LARGE, (1, 1, 1), (63, 95, 95)], float)
    together = radial_profiles.describe(scene, places, shells, query)
    apart = [radial_profiles.describe(scene, place[None], shells, query) for place in places]
    assert np.array_equal(together[0], np.concatenate([a[0] for a in apart]))
    assert np.allclose(together[1], np.concatenate([a[1] for a in apart]), atol=1e-5)


@pytest.mark.parametrize("radius", [0.6, 2.5, 6.0, 12.5, 20.0])
def test_shells_part_the_ball_and_profiles_measure_it(radius):
    shells = radial_profiles.profile(radius)
    assert shells.counts.sum() == len(shells.offsets)
    assert shells.counts.min() >= 20
    assert shells.reach * shells.bin >= 1.5 * radius
    volume = np.full((40, 40, 40), 5.0, np.float32)
    _, profile = radial_profiles.describe(volume, np.array([[3.0, 20, 20]]), shells)
    means, deviations = np.split(profile[0], 2)
    assert np.allclose(means, 5.0)
    assert np.allclose(deviations, 0.0, atol=1e-6)


def test_a_profile_does_not_change_when_the_particle_turns():
    grid = np.indices((33, 33, 33)) - 16
    rod = gaussian_filter(((np.abs(grid[0]) < 8) & (np.hypot(grid[1], grid[2]) < 3)).astype(np.float32), 1)
    shells = radial_profiles.profile(5.0)
    centre = np.array([[16.0, 16, 16]])
    plain, turned = (
        radial_profiles.describe(v, centre, shells)[1] for v in (rod, rotate(rod, 40, axes=(0, 2), reshape=False))
    )
    assert np.abs(plain - turned).max() < 0.03 * np.abs(plain).max()


def test_only_a_box_around_the_places_is_read():
    class Counting:
        shape = (4000, 4000, 4000)
        read = 0

        def __getitem__(self, key):
            box = tuple(part.stop - part.start for part in key)
            self.read += int(np.prod(box))
            return np.zeros(box, np.float32)

    volume, shells = Counting(), radial_profiles.profile(6.0)
    radial_profiles.describe(volume, np.array([[2000.0, 2000, 2000]]), shells)
    assert 0 < volume.read <= (2 * shells.halo + 2) ** 3


def test_no_places_and_no_radius():
    centres, profiles = radial_profiles.describe(np.zeros((8, 8, 8)), np.empty((0, 3)), radial_profiles.profile(3.0))
    assert centres.shape == (0, 3)
    assert profiles.shape == (0, 2 * len(radial_profiles.profile(3.0).starts))
    with pytest.raises(ValueError, match="radius"):
        radial_profiles.profile(0.0)
