"""Work that is done part by part, so that memory does not grow with the tomogram, gives what the whole would."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cryosam_dask import geometry
from cryosam_dask.kernels import radial_profiles
from cryosam_dask.kernels.peaks import non_maximum_suppression
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages import label, match, propose, query, rank
from cryosam_dask.stages.base import Context
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Bool, Shape3

SHAPE: Shape3 = (70, 150, 90)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "run.zarr", {"shape": SHAPE, "voxel_size": [10.0] * 3, "origin": [0.0] * 3})


@pytest.mark.parametrize("better", [0, 1, 400])
@pytest.mark.parametrize("limit", [0, 1, 17, 5000, None])
def test_suppression_of_portions_and_of_the_first_few_is_that_of_all(better: int, limit: int | None) -> None:
    rng = np.random.default_rng(0)
    coords, scores = rng.uniform(0, 30, (3000, 3)), np.sort(rng.random(3000))[::-1]
    whole = non_maximum_suppression(coords, scores, 2.5)
    first = non_maximum_suppression(coords[:better], scores[:better], 2.5)
    rest = better + non_maximum_suppression(coords[better:], scores[better:], 2.5, limit, coords[first])
    wanted = whole[: len(first) + limit] if limit is not None else whole
    assert [*first, *rest] == wanted.tolist()


@pytest.mark.parametrize("band", [1, 300, 10**9])
@pytest.mark.parametrize("tau", [-1.0, 0.1, 0.7])
def test_survivors_are_those_of_all_cells(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, band: int, tau: float
) -> None:
    monkeypatch.setattr(propose, "BAND", band)
    (this,) = match.passes("a", MatchSettings(ratios=(4,), tau_sim=tau))
    match.prepare(store, this)
    array = store.array(layout.similarity("a", 4))
    values = np.random.default_rng(0).uniform(-1, 1, array.shape).astype(np.float32).round(2)
    values[:3] = np.nan
    values[4, 4, :4] = 0.1, 1.0, np.nextafter(np.float32(1), np.float32(2)), 0.7
    array[...] = values
    index = np.argwhere(values >= tau)
    centers = np.stack([geometry.cell_centers(n, 4)[index[:, i]] for i, n in enumerate(SHAPE)], axis=1)
    scores = values[tuple(index.T)]
    kept = non_maximum_suppression(centers, scores, 9.0)
    for limit in (None, 5, len(kept) + 1):
        points, found = propose.survivors(store, this, match.survey(store, this, tau), 9.0, limit)
        assert np.array_equal(points, centers[kept[:limit]])
        assert np.array_equal(found, scores[kept[:limit]])


def random_masks(count: int) -> tuple[list[list[int]], list[Bool]]:
    rng = np.random.default_rng(1)
    low = rng.integers(0, np.array(SHAPE) - 40, (count, 3))
    sides = rng.integers(1, 40, (count, 3))
    return np.concatenate([low, low + sides], axis=1).tolist(), [rng.random(tuple(s)) < 0.7 for s in sides]


def write_groups(store: RunStore, where: str, boxes: list[list[int]], masks: list[Bool]) -> list[label.Source]:
    for first in range(0, len(boxes), 4):
        part = slice(first, first + 4)
        ones = np.ones(len(boxes[part])).tolist()
        found = stored.collect(range(first, first + len(ones)), boxes[part], masks[part], ones, ones)
        stored.write(store, layout.group(where, first // 4), found)
    return [(i // 4, i % 4, i + 1) for i in range(len(boxes))]


@pytest.mark.parametrize("kept", [0, 3000, 1 << 30])
def test_masks_are_the_same_however_few_are_kept(store: RunStore, kept: int) -> None:
    boxes, masks = random_masks(20)
    sources = write_groups(store, "there", boxes, masks)
    reader = stored.Masks(store, "there", kept)
    for i in np.random.default_rng(0).integers(0, 20, 60):
        group, member, _ = sources[i]
        assert np.array_equal(reader.mask(group, member), masks[i])
        assert reader.box(group, member) == stored.as_box(np.array(boxes[i]))
        held = sum(bits.nbytes for bits in reader._bits.values())
        assert held <= max(kept, reader._bits[group].nbytes)


@pytest.mark.parametrize("painted", [(32, 512, 512), (20, 100, 64)])
def test_labels_painted_in_parts_are_those_of_a_whole_volume(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, painted: Shape3
) -> None:
    monkeypatch.setattr(label, "PAINTED", painted)
    monkeypatch.setattr(layout, "level_count", lambda shape: 4)
    boxes, masks = random_masks(30)
    sources = write_groups(store, layout.instances("a"), boxes, masks)
    label.prepare(store, "a")
    stage = label.plan(store, "a", np.array(boxes), sources, "")
    for unit in stage.units:
        label.work(Context(store.url), stage.settings, unit)
    whole = np.zeros(SHAPE, np.uint32)
    for number, (box, mask) in enumerate(zip(boxes, masks, strict=True), 1):
        whole[tuple(slice(*side) for side in stored.as_box(np.array(box)))][mask] = number
    for level in range(4):
        sampled = whole[(slice(None, None, 1 << level),) * 3]
        assert np.array_equal(store.read(layout.labels("a", level)), sampled)
        assert np.array_equal(store.read(layout.labels("a_semantic", level)), sampled > 0)


@pytest.mark.parametrize("radius", [4.0, 13.0, 31.0])
def test_descriptions_do_not_depend_on_how_much_is_held_at_a_time(
    monkeypatch: pytest.MonkeyPatch, radius: float
) -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(61, 90, 77)).astype(np.float32)
    places = rng.uniform(0, np.array(volume.shape) - 1, (40, 3))
    shells = radial_profiles.profile(radius)
    template = rng.normal(size=2 * len(shells.starts))
    whole = radial_profiles.describe(volume, places, shells, template)
    for name in ("_SLAB_VOXELS", "_GATHERED"):
        monkeypatch.setattr(radial_profiles, name, 1)
    for one, two in zip(whole, radial_profiles.describe(volume, places, shells, template), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("radius", [5.0, 9.0, 16.0])
def test_bytes_of_a_description_are_those_that_it_takes(radius: float) -> None:
    shells = radial_profiles.profile(radius)
    volume = np.random.default_rng(0).integers(-99, 99, (130, 130, 130)).astype(np.int8)
    places = np.random.default_rng(1).uniform(30, 100, (150, 3))
    template = np.linspace(1, 0, 2 * len(shells.starts))
    radial_profiles.describe(volume, places[:1], shells, template)
    tracemalloc.start()
    try:
        radial_profiles.describe(volume, places, shells, template)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    low, high = radial_profiles.reached(places, volume.shape, shells)
    assert (
        0.7 < radial_profiles.working_bytes(high - low, len(places), shells) / taken < 1.45
    )  # transforms allocate unseen


def test_bundles_hold_each_point_once_block_by_block() -> None:
    points = np.random.default_rng(0).uniform(0, 700, (400, 3))
    found = rank.bundles(points)
    blocks = [members for bundle in found for members in bundle]
    assert all(np.array_equal(a, b) for a, b in zip(blocks, rank.blocks(points), strict=True))
    assert all(sum(map(len, bundle)) <= rank.PLACES or len(bundle) == 1 for bundle in found)
    assert len(found) < len(blocks)


def test_a_query_of_larger_prompts_is_projected_larger(store: RunStore) -> None:
    for axis in AXES:
        rows, columns = (math.ceil(n / 4) for a, n in zip(AXES, SHAPE, strict=True) if a != axis)
        shape = (SHAPE[AXES.index(axis)], rows, columns, 18)
        store.new_array(layout.latents(1, axis), shape=shape, dtype="f2", chunks=(16, 8, 8, 18), dims="abcd")
    store.update_info(features={"ratios": [4], "channels": 18, "encoder": "texture", "weights": ""})
    settings = MatchSettings()
    typical, large = (query.unit_memory(store, ((0, n), (0, n), (0, n)), settings) for n in (query.TYPICAL, 64))
    assert typical < large

    def planned() -> int:
        return query.plan(store, "a", settings, 1, [[5.0, 5.0, 5.0]], "").units[0].memory

    assert planned() == typical
    write_groups(store, layout.query("a"), [[0, 0, 0, 64, 64, 64]], [np.ones((64, 64, 64), bool)])
    assert planned() == large
