"""Random shapes: each family has the form that it says, and splits don't mix."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cryosam_dask.errors import SettingsError
from cryosam_dask.simulate import SimulationSettings, Species, families_of, random_species, require_split, split_of_seed
from cryosam_dask.simulate.families import FAMILIES
from cryosam_dask.simulate.shapes import Template, template
from cryosam_dask.simulate.splits import FIRST_HELD_OUT, HELD_OUT_FAMILIES, TUNE_FAMILIES


def of(family: str, seed: int = 3, diameter: float = 24.0, voxel_size: float = 5.0) -> Template:
    return template(Species("p", family, diameter, 1, seed=seed), voxel_size)


def extents(model: Template) -> np.ndarray:
    """Standard deviations of the mask along its principal axes, nanometres, the longest first."""
    places = np.argwhere(model.occupancy >= 0.5) * 0.5
    return np.sqrt(np.linalg.eigvalsh(np.cov(places.T))[::-1])


def radial(model: Template) -> tuple[float, float]:
    """Mean density about the middle and in the outer part of the mask."""
    middle = (model.density.shape[0] - 1) / 2
    radius = np.sqrt(((np.indices(model.density.shape) - middle) ** 2).sum(axis=0))
    mask = model.occupancy >= 0.5
    inner = radius < 0.2 * model.radius
    outer = mask & (radius > 0.7 * model.radius)
    return float(model.density[inner].mean()), float(model.density[outer].mean())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("voxel_size", [5.0, 13.5])
def test_shapes_fill_their_sphere_in_one_piece(family: str, voxel_size: float) -> None:
    for seed in (0, 1, FIRST_HELD_OUT + 7):
        model = of(family, seed, voxel_size=voxel_size)
        mask = model.occupancy >= 0.5
        grid = np.indices(mask.shape) - (mask.shape[0] - 1) / 2
        reach = np.sqrt((grid**2).sum(axis=0))[mask].max()
        assert model.radius - 1.3 <= reach <= model.radius + 0.5
        np.testing.assert_allclose(grid[:, mask].mean(axis=1), 0, atol=0.4)
        sizes = np.bincount(ndimage.label(mask, np.ones((3, 3, 3)))[0].ravel())[1:]
        assert sizes.max() > 0.98 * sizes.sum()
        assert np.abs(model.density[[0, -1]]).max() < 0.05


@pytest.mark.parametrize("family", ["hollow-sphere", "hollow-cylinder", "cage"])
def test_hollow_shapes_are_empty_inside_and_full_in_the_mask(family: str) -> None:
    for seed in range(4):
        model = of(family, seed)
        inner, outer = radial(model)
        assert inner < 0.15 * outer
        middle = model.occupancy.shape[0] // 2
        assert model.occupancy[middle, middle, middle] == 1


def test_shapes_have_the_proportions_of_their_family() -> None:
    for seed in range(6):
        rod, disc, ring = (extents(of(family, seed)) for family in ("rod", "disc", "ring"))
        assert rod[0] > 2 * rod[1]
        assert rod[1] < 1.3 * rod[2]
        assert disc[1] > 1.8 * disc[2]
        assert ring[1] > 1.8 * ring[2]
        hole = of("ring", seed)
        assert hole.occupancy[(hole.occupancy.shape[0] // 2,) * 3] == 0


def test_volumes_are_those_of_geometry() -> None:
    for seed in range(4):
        # a torus of a unit's outer radius R + r fills 2π² R r², its bounding sphere being known
        model = of("ring", seed, diameter=30.0)
        volume = (model.occupancy >= 0.5).sum() * 0.5**3
        low, high = (2 * np.pi**2 * (15 - r) * r**2 for r in (0.9 * 3.0, 1.1 * 4.5))
        assert low < volume < high
        sphere = of("hollow-sphere", seed, diameter=30.0)
        assert (sphere.occupancy >= 0.5).sum() * 0.5**3 == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.2)


def test_a_seed_gives_one_shape_and_another_seed_another() -> None:
    for family in FAMILIES:
        ours, again, other = (of(family, seed, voxel_size=10.0).occupancy for seed in (3, 3, 4))
        assert ours.tobytes() == again.tobytes()
        assert np.abs(ours - other).mean() > 0.002


def test_the_splits_are_disjoint() -> None:
    assert set(TUNE_FAMILIES).isdisjoint(HELD_OUT_FAMILIES)
    assert set(families_of("tune")) == set(TUNE_FAMILIES)
    assert set(families_of("held-out")) == set(FAMILIES) == {*TUNE_FAMILIES, *HELD_OUT_FAMILIES}
    assert (split_of_seed(FIRST_HELD_OUT - 1), split_of_seed(FIRST_HELD_OUT)) == ("tune", "held-out")
    shapes = {"tune": set(), "held-out": set()}
    for seed in [*range(60), *range(FIRST_HELD_OUT - 20, FIRST_HELD_OUT + 60)]:
        shapes[split_of_seed(seed)] |= {(s.shape, s.seed) for s in random_species(seed, 6, 5)}
    assert shapes["tune"].isdisjoint(shapes["held-out"])
    assert {family for family, _ in shapes["tune"]} == set(TUNE_FAMILIES)
    assert {family for family, _ in shapes["held-out"]} == set(FAMILIES)


def test_what_is_of_another_split_is_refused() -> None:
    tune = SimulationSettings(species=random_species(5, 3, 4))
    held_out = SimulationSettings(seed=FIRST_HELD_OUT, species=random_species(FIRST_HELD_OUT, 3, 4))
    require_split(tune, "tune")
    require_split(held_out, "held-out")
    require_split(SimulationSettings(), "tune")
    for settings, split, words in (
        (tune, "held-out", "seed 0, seed"),
        (held_out, "tune", "seed 1000000"),
        (SimulationSettings(seed=FIRST_HELD_OUT), "held-out", "shape ribosome"),
        (SimulationSettings(species=(Species("r", "ring", 20.0, 1),)), "tune", "family ring"),
        (SimulationSettings(species=(Species("r", "rod", 20.0, 1, seed=FIRST_HELD_OUT),)), "tune", "of r"),
    ):
        with pytest.raises(SettingsError, match=words) as caught:
            require_split(settings, split)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
