"""Membranes, filaments, microtubules and gold: their measures, their numbers, and that they don't overlap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cryosam_dask.errors import SettingsError
from cryosam_dask.simulate import SimulatedTomogram, SimulationSettings, Structure, simulate
from cryosam_dask.simulate.membranes import add_membranes
from cryosam_dask.simulate.scene import Scene
from cryosam_dask.simulate.tubes import add_tubes

CLEAN = SimulationSettings(
    shape=(64, 128, 128), seed=4, snr=None, species=(), membranes=0, structures=(Structure("gold", 1),), bfactor=0.0
)


def made_of(*structures: Structure, **changes: object) -> SimulatedTomogram:
    return simulate(SimulationSettings.from_dict(CLEAN.to_dict() | {"structures": structures} | changes))


def wall_thickness(mask: np.ndarray, voxel: float) -> float:
    """Twice the median distance to the outside on the mask's ridge, nanometres."""
    distance = ndimage.distance_transform_edt(mask)
    ridge = (distance == ndimage.maximum_filter(distance, 3)) & mask
    return float(2 * np.median(distance[ridge]) - 1) * voxel


@pytest.mark.parametrize("kind", ["vesicle", "sheet", "double-membrane"])
def test_membranes_are_7_nm_walls_with_two_leaflets(kind: str) -> None:
    size = (20.0, 24.0) if kind == "vesicle" else None
    made = made_of(Structure(kind, 1, size), voxel_size=5.0)
    mask = made.structure_mask(kind)
    assert made.semantic[mask].tolist() == [made.number_of("membrane")] * int(mask.sum())
    assert wall_thickness(mask, 0.5) == pytest.approx(7.0, abs=1.0)
    scene = Scene.empty(made.settings)
    add_membranes(scene, Structure(kind, 1, size), np.random.default_rng(2))
    density, wall = scene.density[scene.inside], scene.labels == 1
    depth = ndimage.distance_transform_edt(wall) * 0.5  # nanometres from the wall's surface
    leaflets, middle = density[(depth > 1.0) & (depth < 2.0)], density[depth > 3.3]
    assert leaflets.mean() > 3 * middle.mean() > 0
    assert density[ndimage.distance_transform_edt(~wall) > 4].max() < 0.05


def test_a_vesicle_encloses_its_lumen_and_a_double_membrane_is_a_pair() -> None:
    vesicle = made_of(Structure("vesicle", 1, (18.0, 20.0)), seed=9).structure_mask("vesicle")
    filled = ndimage.binary_fill_holes(np.pad(vesicle, 1, mode="edge"))
    assert filled.sum() > vesicle.sum()
    pair = made_of(Structure("double-membrane", 1, (25.0, 25.0)))
    walls, count = ndimage.label(pair.structure_labels == 1)
    assert count == 2
    assert len(pair.structures) == 1
    between = ndimage.distance_transform_edt(walls != 1)[walls == 2]
    assert between.min() == pytest.approx(25.0 - 7.0, abs=5.0)  # voxels of a nanometre; slopes bring them nearer


def test_a_microtubule_has_13_protofilaments_and_an_empty_lumen() -> None:
    scene = Scene.empty(SimulationSettings(shape=(64, 160, 160), voxel_size=7.0, species=(), membranes=1))
    add_tubes(scene, Structure("microtubule", 1, (50.0, 50.0)), np.random.default_rng(18))
    wall = scene.labels == 1
    assert not any(np.take(wall, i, axis=axis).any() for axis in range(3) for i in (0, -1))
    points = np.argwhere(wall) * 0.7
    centre, axis = points.mean(axis=0), np.linalg.eigh(np.cov(points.T))[1][:, -1]
    beside = np.cross(axis, [1.0, 0, 0])
    beside /= np.linalg.norm(beside)
    up = np.cross(axis, beside)
    angle = np.arange(0, 2 * np.pi, np.pi / 90)[:, None]

    def ring(radius: float) -> np.ndarray:
        """Density around the axis, in the mean over three monomers along it."""
        circle = radius * (np.cos(angle) * beside + np.sin(angle) * up)
        places = [(centre + shift * axis + circle) / 0.7 for shift in np.arange(-6, 6, 0.5)]
        density = scene.density[scene.inside]
        return np.mean([ndimage.map_coordinates(density, p.T, order=1) for p in places], axis=0)

    assert np.abs(np.fft.rfft(ring(10.5)))[5:40].argmax() + 5 == 13
    profile = [ring(r).mean() for r in (0.0, 5.0, 10.5, 14.5)]
    assert profile[2] > 0.6
    assert max(profile[0], profile[1], profile[3]) < 0.1 * profile[2]
    # its mask is the wall, 8 to 12.5 nm from the axis
    offsets = points - centre
    radii = np.linalg.norm(offsets - np.outer(offsets @ axis, axis), axis=1)[np.abs(offsets @ axis) < 15]
    assert 7.5 < np.quantile(radii, 0.02) < 8.6
    assert 12.0 < np.quantile(radii, 0.98) < 13.0
    assert scene.lumens.sum() * 0.7**3 == pytest.approx(np.pi * 8**2 * 50, rel=0.4)


def test_a_filament_is_8_nm_wide_and_its_mass_is_its_subunits() -> None:
    settings = SimulationSettings(shape=(64, 100, 100), voxel_size=10.0, species=(), membranes=1)
    scene = Scene.empty(settings)
    add_tubes(scene, Structure("filament", 1, (60.0, 60.0)), np.random.default_rng(0))
    mask = scene.labels == 1
    assert scene.density.sum() == pytest.approx(50.8 * 60 / 2.75, rel=0.03)
    assert mask.sum() == pytest.approx(np.pi * 4**2 * 60 + 4 / 3 * np.pi * 4**3, rel=0.1)
    assert scene.density[scene.inside][mask].sum() > 0.75 * scene.density[scene.inside].sum()


def test_structures_are_apart_and_numbered_in_order() -> None:
    kinds = (Structure("sheet", 1), Structure("microtubule", 1), Structure("filament", 3), Structure("gold", 2))
    made = made_of(*kinds, membranes=1)
    assert [s.kind for s in made.structures] == ["vesicle", "sheet", "microtubule", *["filament"] * 3, "gold", "gold"]
    assert [s.instance for s in made.structures] == list(range(1, 9))
    grown = [ndimage.binary_dilation(made.structure_labels == s.instance) for s in made.structures]
    assert (np.sum(grown, axis=0) > 1).sum() == 0
    for kind, name in (("filament", "filament"), ("microtubule", "microtubule"), ("gold", "gold")):
        assert np.array_equal(made.structure_mask(kind), made.semantic == made.number_of(name))
    assert np.array_equal(
        made.structure_mask("vesicle") | made.structure_mask("sheet"), made.semantic == made.number_of("membrane")
    )


@pytest.mark.parametrize("voxel_size", [5.0, 6.8, 7.84, 10.0, 13.48, 20.0])
def test_structures_stand_in_volumes_of_any_size(voxel_size: float) -> None:
    kinds = tuple(Structure(kind, 1) for kind in ("sheet", "filament", "microtubule", "gold"))
    made = made_of(*kinds, shape=(61, 128, 141), voxel_size=voxel_size)
    sizes = np.bincount(made.structure_labels.ravel())[1:] * (voxel_size / 10) ** 3
    assert (sizes > 100).all()  # nm³


def test_gold_is_far_denser_and_has_its_diameter() -> None:
    made = made_of(Structure("gold", 3, (10.0, 10.0)), Structure("sheet", 1), tilt_range=(-90, 90), tilt_step=1.0)
    for s in made.structures[:3]:
        assert (made.structure_labels == s.instance).sum() == pytest.approx(4 / 3 * np.pi * 5**3, rel=0.1)
    gold, sheet = (ndimage.binary_erosion(made.structure_mask(k)) for k in ("gold", "sheet"))
    assert made.signal[gold].mean() > 4 * made.signal[sheet].max() > 0


def test_golds_streaks_follow_the_tilts() -> None:
    made = made_of(Structure("gold", 1, (10.0, 10.0)), tilt_range=(-50, 50), seed=11)
    gold = np.argwhere(made.structure_labels == 1)
    z, y, x = np.rint(gold.mean(axis=0)).astype(int)
    plane = np.abs(made.signal[:, y])
    dz, dx = np.meshgrid(np.arange(64) - z, np.arange(128) - x, indexing="ij")
    radius, angle = np.hypot(dz, dx), np.degrees(np.arctan2(np.abs(dx), np.abs(dz)))
    far = (radius > 14) & (radius < 30)
    # the steepest view is seen from 50°: along it the bead is smeared, beyond it nothing is
    assert plane[far & (abs(angle - 50) < 8)].mean() > 2 * plane[far & (angle > 75)].mean()


def test_gold_does_not_count_for_the_signal_to_noise_ratio() -> None:
    sheet = made_of(Structure("sheet", 1), snr=0.5)
    both = made_of(Structure("sheet", 1), Structure("gold", 3), snr=0.5)
    noise = (both.tomogram - both.signal).std() / (sheet.tomogram - sheet.signal).std()
    scale = both.signal[both.structure_mask("sheet")].std() / sheet.signal[sheet.structure_mask("sheet")].std()
    assert noise == pytest.approx(scale, rel=0.1)
    assert both.signal.var() / (both.tomogram - both.signal).var() > 1


@pytest.mark.parametrize("kind", ["gold", "vesicle", "sheet", "microtubule", "filament"])
def test_what_does_not_fit_is_said(kind: str) -> None:
    with pytest.raises(SettingsError, match=rf"only \d+ of 500 structures of kind {kind} fit"):
        made_of(Structure(kind, 500), shape=(32, 48, 48), voxel_size=10.0)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"structures": ({"kind": "nucleus", "count": 1},)}, "structures.kind"),
        ({"structures": ({"kind": "gold"},)}, "structures"),
        ({"structures": ({"kind": "gold", "count": -1},)}, "gold.count"),
        ({"structures": ({"kind": "gold", "count": 1, "size": (9.0, 5.0)},)}, "gold.size"),
        ({"touching": 1.5}, "touching"),
        ({"cytosol": 0.5}, "cytosol"),
        ({"tilt_axis": float("nan")}, "tilt_axis"),
        ({"ice": {"thickness": (0.1, 1.0)}}, "ice.thickness"),
        ({"ice": {"depth": 3}}, "ice"),
        ({"species": ({"name": "gold", "shape": "rod", "diameter": 9.0, "count": 1},)}, "species"),
        ({"species": ({"name": "a", "shape": "rod", "diameter": 9.0, "count": 1, "seed": -3},)}, "a.seed"),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes: dict[str, object], name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        SimulationSettings.from_dict(changes)
    message = str(caught.value)
    assert f"setting {name}: expected" in message
    assert "\n" not in message
