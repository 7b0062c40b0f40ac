"""How work is cut: groups partition, and what units write never meets in a chunk and covers each array."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cryosam_dask.executors import serial
from cryosam_dask.executors.base import run_unit
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.pipeline import Driver
from cryosam_dask.settings import FeatureSettings, PropagationSettings
from cryosam_dask.stages import dense, embed, features, ingest, label, match, project, rank, segment
from cryosam_dask.stages.base import Region, Stage, Unit
from cryosam_dask.stages.sampling import Sample
from cryosam_dask.store import layout, marks
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Axis, Shape3

SHAPES: list[Shape3] = [(2, 2, 2), (16, 16, 16), (33, 17, 5), (7, 130, 65), (65, 31, 258), (40, 2, 70)]


def points_of(seed: int, count: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(0, [70, 300, 500], (count, 3))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(1, 20))
def test_groups_of_prompts_are_full_and_hold_each_prompt_once(seed: int, count: int, size: int) -> None:
    groups = segment.group_prompts(points_of(seed, count), size)
    assert sorted(i for group in groups for i in group) == list(range(count))
    assert [len(group) for group in groups[:-1]] == [size] * (len(groups) - 1)
    assert len(groups) == math.ceil(count / size)


def test_prompts_of_a_group_are_neighbours() -> None:
    corners = np.array(list(np.ndindex(2, 2, 2))) * 400.0
    points = np.concatenate([corners + np.random.default_rng(i).uniform(0, 60, 3) for i in range(4)])
    for group in segment.group_prompts(points, 4):
        assert len({tuple(p) for p in (points[group] // 400).astype(int)}) == 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60))
def test_blocks_hold_each_point_once_and_only_their_own(seed: int, count: int) -> None:
    points = points_of(seed, count)
    found = rank.blocks(points)
    assert sorted(int(i) for members in found for i in members) == list(range(count))
    cubes = [{tuple(p) for p in (points[members] // rank.BLOCK).astype(int)} for members in found]
    assert all(len(cube) == 1 for cube in cubes)
    assert len(set().union(*cubes)) == len(found)


SIDES: Shape3 = (70, 33, 100)
planes = st.sampled_from(AXES).flatmap(
    lambda axis: st.tuples(st.just(axis), st.integers(0, SIDES[AXES.index(axis)] - 1))
)


@settings(max_examples=100, deadline=None)
@given(st.lists(planes, max_size=40), st.booleans(), st.sampled_from([1, 5, 31]), st.integers(1, 20))
def test_bundles_of_planes_hold_each_plane_once_and_read_one_row_of_chunks(
    wanted: list[embed.Plane], nearly_all: bool, thickness: int, most: int
) -> None:
    """Few planes, or all but those few."""
    if nearly_all:
        wanted = [(axis, i) for axis, n in zip(AXES, SIDES, strict=True) for i in range(n) if (axis, i) not in wanted]
    chosen = PropagationSettings(segmenter="random-walker", plane_thickness=thickness)
    units = embed.plan(SIDES, chosen, "up", iter(wanted), most).units
    held = [(unit.params["axis"], i) for unit in units for i in unit.params["planes"]]
    assert len(held) == len(set(held))
    assert set(held) == set(wanted)
    assert [unit.marks for unit in units] == [
        tuple(embed.mark_of(SIDES, (unit.params["axis"], i)) for i in unit.params["planes"]) for unit in units
    ]
    rows: dict[tuple[int, int], list[int]] = defaultdict(list)
    for unit in units:
        axis, indices = AXES.index(unit.params["axis"]), unit.params["planes"]
        assert 1 <= len(indices) <= min(most, embed.BUNDLE)
        assert indices == sorted(indices)
        row = indices[0] // layout.CHUNK[axis]
        rows[axis, row].append(len(indices))
        first, stop = row * layout.CHUNK[axis], min((row + 1) * layout.CHUNK[axis], SIDES[axis])
        (read,) = unit.reads
        assert first - thickness // 2 <= read.start[axis] <= read.stop[axis] - 1 < stop + thickness // 2
        assert read.start[axis] == max(indices[0] - thickness // 2, 0)
        assert read.stop[axis] == min(indices[-1] + thickness // 2 + 1, SIDES[axis])
        written = [
            i for r in unit.writes if r.array.startswith("embeddings/planes") for i in range(r.start[0], r.stop[0])
        ]
        assert written == indices
    for counts in rows.values():
        assert len(counts) == math.ceil(sum(counts) / min(most, embed.BUNDLE))
        assert max(counts) - min(counts) <= 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 39), min_size=1, unique=True), st.sampled_from(AXES), st.sampled_from([1, 3, 7]))
def test_a_sample_holds_the_slices_asked_for_and_averages_them(
    small_store: tuple[RunStore, NDArray[np.float32]], indices: list[int], axis: Axis, thickness: int
) -> None:
    store, values = small_store
    view = np.moveaxis(values, AXES.index(axis), 0).astype(float)
    indices = sorted({i % len(view) for i in indices})
    reach = thickness // 2
    expected = np.stack([view[max(i - reach, 0) : i + reach + 1].mean(0) for i in indices])
    sample = Sample(store, axis, indices, thickness)
    near = {j for i in indices for j in range(max(i - reach, 0), min(i + reach + 1, len(view)))}
    assert len(sample._block) == len(near)
    assert sample._block.dtype == np.float32
    assert sample.standard(indices) == pytest.approx((expected - 3) / 2, abs=1e-5)
    for index, plane in zip(indices[::-1], expected[::-1], strict=True):
        assert np.abs(sample.grey([index])[0] - np.clip((plane - 1) * 255 / 4, 0, 255)).max() <= 0.51


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, NDArray[np.float32]]:
    shape = (40, 35, 39)
    values = np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)
    store = new_store(tmp_path_factory.mktemp("small"), shape)
    store.new_array(layout.tomogram(), shape=shape, dtype="f4", chunks=(16, 16, 16), dims=AXES)[...] = values
    store.update_info(statistics={"mean": 3.0, "std": 2.0, "low": 1.0, "high": 5.0})
    return store, values


@settings(max_examples=30)
@given(st.tuples(*[st.integers(1, 50)] * 3))
def test_marks_of_planes_count_all_planes_once(shape: Shape3) -> None:
    every = [embed.mark_of(shape, (axis, i)) for axis, n in zip(AXES, shape, strict=True) for i in range(n)]
    assert every == list(range(sum(shape)))


def check_written(array: Any, regions: Iterable[tuple[object, Region]], whole: bool = True) -> None:
    """Regions, each with its owner: whole chunks; no chunk has two owners; together (if `whole`) the array."""
    owners: dict[tuple[int, ...], object] = {}
    for owner, region in regions:
        spans = []
        for start, stop, chunk, length in zip(region.start, region.stop, array.chunks, array.shape, strict=True):
            assert 0 <= start < stop <= length, region
            assert start % chunk == 0, region
            assert stop % chunk == 0 or stop == length, region
            spans.append(range(start // chunk, -(-stop // chunk)))
        for index in np.ndindex(*(len(s) for s in spans)):
            key = tuple(s[i] for s, i in zip(spans, index, strict=True))
            assert owners.setdefault(key, owner) == owner, f"{region.array}: chunk {key} has two owners"
    if whole:
        assert len(owners) == math.prod(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))


def check_stage(stage: Stage, store: RunStore, arrays: Iterable[str], whole: bool = True) -> None:
    """All arrays are written, each as `check_written` wants it; every unit has marks of its own."""
    by_array: dict[str, list[tuple[object, Region]]] = defaultdict(list)
    for unit in stage.units:
        for region in unit.writes:
            by_array[region.array].append((unit.name, region))
    assert set(by_array) == set(arrays)
    for path, regions in by_array.items():
        check_written(store.array(path), regions, whole)
    used = [i for unit in stage.units for i in unit.marks]
    assert len({unit.name for unit in stage.units}) == len(stage.units)
    assert len(used) == len(set(used))
    assert set(used) <= set(range(stage.count))
    assert not whole or len(used) == stage.count


def new_store(tmp_path: Path, shape: Shape3) -> RunStore:
    return RunStore.create(tmp_path / "run.zarr", {"shape": list(shape), "voxel_size": [10.0] * 3, "origin": [0.0] * 3})


@pytest.mark.parametrize("shape", [*SHAPES, (66, 3, 1030)])
def test_units_of_the_ingest_and_of_labels(tmp_path: Path, shape: Shape3) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with mrcfile.new(tmp_path / "t.mrc", values) as file:
        file.voxel_size = 10
    source = open_tomogram(tmp_path / "t.mrc", voxel_size=None, unsigned=None)
    stage = ingest.plan(source, str(tmp_path / "t.mrc"), {})
    store = ingest.create_store(str(tmp_path / "run.zarr"), source, "t.mrc")
    check_stage(stage, store, [layout.tomogram()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "INGEST_BOX", (32, 32, 64))
        patch.setattr(layout, "CHUNK", (32, 32, 32))
        ingest.prepare(store, source)
        check_stage(ingest.plan(source, "t.mrc", {}), store, [layout.tomogram()])
    label.prepare(store, "a")
    painting = label.plan(store, "a", np.zeros((0, 6), np.int64), [], "up")
    check_stage(painting, store, [layout.labels("a")])


@pytest.mark.parametrize("encoder", ["texture", "dino-vits16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_units_of_features_and_their_matching(tmp_path: Path, shape: Shape3, encoder: str) -> None:
    chosen = FeatureSettings(encoder=encoder, ratios=(2, 4, 8, 16), dense_ratios=(8, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "weights_identity", lambda spec: "w")
        stage, assembled = features.plan(shape, chosen, "up"), dense.plan(shape, chosen, "up")
        store = new_store(tmp_path, shape)
        features.prepare(store, chosen)
        dense.prepare(store, chosen)
        features.finish(store, chosen)
    check_stage(stage, store, [layout.latents(r, a) for r in (1, 2, 4, 8, 16) for a in AXES])
    check_stage(assembled, store, [layout.dense(r) for r in (8, 16)])
    for path in [layout.gram(r, a) for r in (1, 2, 4, 8, 16) for a in AXES]:
        maps, latents = store.array(path), store.array(path.removesuffix("_gram"))
        assert maps.chunks[0] == latents.chunks[0], "slabs share no chunk"
        assert all(
            m == n or m % c == 0 for m, c, n in zip(maps.chunks[1:3], latents.chunks[1:3], maps.shape[1:3], strict=True)
        )
    check_matching(store, (1, 4, 16))


def check_matching(store: RunStore, ratios: tuple[int, ...]) -> None:
    volume = FeatureVolume(store)
    for ratio in ratios:
        for center in (False, True):
            this = match.Pass("a", ratio, center=center)
            project.prepare(store, this)
            products = project.plan(store.shape, volume.token_grids, volume.view_channels, this, "up")
            check_stage(products, store, [layout.dots("a", ratio, axis) for axis in AXES])
            match.prepare(store, this)
            check_stage(match.plan(store.shape, volume.token_grids, this, "up"), store, [layout.similarity("a", ratio)])


def test_units_of_matching_in_several_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "UNIT_BYTES", 1 << 16)
    monkeypatch.setattr(match, "CELLS", (4, 8, 16))
    chosen = FeatureSettings(encoder="texture")
    store = new_store(tmp_path, (50, 70, 90))
    features.prepare(store, chosen)
    features.finish(store, chosen)
    check_matching(store, (4, 8))
    assert len(match.plan(store.shape, FeatureVolume(store).token_grids, match.Pass("a", 4), "up").units) == 4 * 3 * 2


@pytest.mark.parametrize("segmenter", ["random-walker", "sam-vitb"])
@pytest.mark.parametrize("shape", SHAPES)
def test_units_of_embedding_own_their_planes(tmp_path: Path, shape: Shape3, segmenter: str) -> None:
    chosen = PropagationSettings(segmenter=segmenter)
    store = new_store(tmp_path, shape)
    embed.prepare(store, chosen)
    every = [(axis, i) for axis, n in zip(AXES, shape, strict=True) for i in range(n)]
    arrays = [path(axis) for axis in AXES for path in (layout.planes, layout.embeddings)]
    check_stage(embed.plan(shape, chosen, "up", every), store, arrays)
    few = every[::3]
    axes = {axis for axis, _ in few}
    some = [path(axis) for axis in AXES if axis in axes for path in (layout.planes, layout.embeddings)]
    check_stage(embed.plan(shape, chosen, "up", few), store, some, whole=False)


class Recorder:
    """A zarr array that notes what is written to it."""

    def __init__(self, array: Any, path: str, log: list[Region]) -> None:
        self._array, self._path, self._log = array, path, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._array, name)

    def __getitem__(self, part: Any) -> Any:
        return self._array[part]

    def __setitem__(self, part: Any, value: Any) -> None:
        parts = part if isinstance(part, tuple) else (part,)
        parts = tuple(slice(p, p + 1) if isinstance(p, int | np.integer) else p for p in parts)
        spans = [p.indices(n)[:2] for p, n in zip(parts, self._array.shape, strict=False)]
        spans += [(0, n) for n in self._array.shape[len(spans) :]]
        self._log.append(Region(self._path, tuple(a for a, _ in spans), tuple(b for _, b in spans)))
        self._array[part] = value


def test_what_units_really_write_is_what_they_said_and_never_shares_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run over an odd shape with several levels, every write noted."""
    shape = (41, 50, 270)
    z, y, x = np.indices(shape)
    values = np.random.default_rng(0).normal(size=shape)
    for c in (40, 120, 200):
        values += 6 * (np.sqrt((z - 20) ** 2 + (y - 25) ** 2 + (x - c) ** 2) < 8)
    with mrcfile.new(tmp_path / "t.mrc", values.astype(np.float32)) as file:
        file.voxel_size = 10
    written: dict[str, dict[str, list[tuple[object, Region]]]] = defaultdict(lambda: defaultdict(list))
    unsaid: list[str] = []
    log: list[Region] = []
    open_array = RunStore.array

    def unit_of(stage: str, work: Any, options: Any, context: Any, unit: Unit) -> Any:
        log.clear()
        found = run_unit(stage, work, options, context, unit)
        wrote = {(r.array, r.start, r.stop) for r in log if not r.array.startswith("marks/")}
        for region in unit.writes:
            if region.start and not region.array.startswith(("features/standardization", "queries", "embeddings")):
                exact = (region.array, region.start, region.stop) in wrote
                unsaid.extend([] if exact else [f"{stage} {unit.name}: {region}"])
        for region in log:
            written[stage][region.array].append((unit.name, region))
        return found

    monkeypatch.setattr(RunStore, "array", lambda self, path: Recorder(open_array(self, path), path, log))
    monkeypatch.setattr(serial, "run_unit", unit_of)
    from cryosam_dask.pipeline import settings_for

    chosen = settings_for(
        "texture+random-walker", {"match.rank": "similarity", "match.count": 1, "match.ratios": [16, 8, 4]}
    )
    driver = Driver(tmp_path / "run.zarr", SerialExecutor())
    driver.ingest(tmp_path / "t.mrc")
    driver.features(chosen)
    driver.query("a", [[20, 25, 40]], chosen)
    driver.match("a")
    driver.segment("a")
    monkeypatch.undo()
    assert unsaid == []
    store = RunStore.open(driver.url)
    assert {"ingest", "features", "features-dense", "embeddings", "match/a/r4", "label/a"} <= set(written)
    for arrays in written.values():
        for path, regions in arrays.items():
            partly = path.startswith(("embeddings", "marks/"))  # marks are also written past the array
            check_written(store.array(path), regions, whole=not partly)
    assert all(marks.done(store, stage).all() for stage in written if stage != embed.NAME)
    levels = range(layout.level_count(shape))
    assert {layout.tomogram(i) for i in levels} <= set(written["ingest"])
    assert {layout.labels("a", i) for i in levels} <= set(written["label/a"])
