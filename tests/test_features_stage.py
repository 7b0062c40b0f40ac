"""Slices larger than a tile: cut, encoded and written piece by piece, with what the whole would give."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any
from unittest import mock

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosam_dask import geometry
from cryosam_dask.executors import SerialExecutor
from cryosam_dask.kernels import images, standardization
from cryosam_dask.kernels import tokens as kernel
from cryosam_dask.kernels.backend import NUMPY
from cryosam_dask.kernels.standardization import fit_standardization
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import features, standardize, tiling
from cryosam_dask.stages.base import Context
from cryosam_dask.stages.sampling import Sample
from cryosam_dask.store import layout, marks
from cryosam_dask.store.journal import commands
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Axis, Float32, Shape3


class Encoder:
    """Random projections of patches, with the pixels' mean over all that is seen: tokens depend on their tile."""

    name, identity, patch, channels = "stand-in", "none", 4, 6
    matrix = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)

    def encode(self, slices: Float32) -> Float32:
        n, a, b = slices.shape
        patches = slices.reshape(n, a // 4, 4, b // 4, 4).swapaxes(2, 3).reshape(n, a // 4, b // 4, 16)
        return np.asarray(patches @ self.matrix + slices.mean((1, 2))[:, None, None, None], np.float32)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 8 tokens a side, 16 from ratio 4 on; the encoder above, under the name of another with its patch."""
    monkeypatch.setattr(layout, "CHUNK_BYTES", 2 * Encoder.channels * 16 * 8 * 8)
    monkeypatch.setattr(layout, "GRAM_SIDE", 16)
    info = mock.Mock(patch=4, channels=6, uses_torch=False, weights_bytes=0)
    info.encode_bytes.return_value = 0
    monkeypatch.setattr(features, "get_encoder", lambda *_: Encoder())
    monkeypatch.setattr(features, "encoder_info", lambda _: info)


def tomogram(folder: Path, shape: Shape3, side: int = 16) -> tuple[RunStore, Float32]:
    store = RunStore.create(folder / "run.zarr", {"shape": shape, "voxel_size": [10.0] * 3, "origin": [0.0] * 3})
    values = np.random.default_rng(1).normal(1, 2, shape).astype(np.float32)
    store.new_array(layout.tomogram(), shape=shape, dtype="f4", chunks=(16, side, side), dims=AXES)[...] = values
    store.update_info(statistics={"mean": 1.0, "std": 2.0})
    return store, values


def run(store: RunStore, chosen: FeatureSettings) -> None:
    features.prepare(store, chosen)
    for stage in (standardize.plan(store.shape, chosen, ""), features.plan(store.shape, chosen, "")):
        for unit in stage.units:
            stage.work(Context(store.url), stage.settings, unit)


def by_hand(values: Float32, axis: Axis, chosen: FeatureSettings) -> Float32:
    """Tokens of all slices, each slice resized as a whole and each tile encoded on its own."""
    encoder, side = Encoder(), tiling.piece_side(chosen, Encoder.channels)
    view = geometry.to_view(values, axis).astype(np.float64)
    reach = chosen.thickness // 2
    means = np.stack([view[max(i - reach, 0) : i + reach + 1].mean(0) for i in range(len(view))])
    sizes = [geometry.image_size(n, 4, chosen.slice_size) for n in means.shape[1:]]
    pixels = images.resize(((means - 1) / 2).astype(np.float32), (sizes[0], sizes[1]))
    out = np.full((len(view), sizes[0] // 4, sizes[1] // 4, encoder.channels), np.nan, np.float32)
    for row, column in itertools.product(*(geometry.tiles(n // 4, chosen.tile, chosen.halo, side) for n in sizes)):
        tokens = encoder.encode(pixels[:, row.read(4), column.read(4)])
        out[:, row.keep, column.keep] = tokens[:, row.crop, column.crop]
    return out


def check(store: RunStore, values: Float32, chosen: FeatureSettings) -> None:
    for axis in AXES:
        tokens = by_hand(values, axis, chosen)
        native = store.read(layout.latents(1, axis))
        assert np.abs(native - tokens).max() < 0.01 * tokens.std()
        for ratio in (1, *chosen.ratios):
            array = store.array(layout.latents(ratio, axis))
            stored, expected = np.asarray(array[...]), kernel.average_slices(tokens, ratio)
            assert np.abs(stored - expected).max() < 0.01 * tokens.std()
            gram = store.read(layout.gram(ratio, axis))
            assert np.allclose(gram, kernel.gram_maps(stored), rtol=1e-5, atol=1e-5)
            for one in (array, store.array(layout.gram(ratio, axis))):
                assert one.nchunks_initialized == one.nchunks
        weights = [
            kernel.token_weights(n, t)
            for n, t in zip(geometry.plane_shape(store.shape, axis), native.shape[1:3], strict=True)
        ]
        sums = np.einsum("nrcz,r,c->z", native.astype(np.float64), *weights)
        assert store.read(layout.feature_sums(axis)).sum(0) == pytest.approx(sums, rel=1e-4, abs=0.1)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((9, 133, 90), {"tile": 20, "halo": 2}),  # a tile holds chunks of every ratio
        ((5, 131, 70), {"tile": 12, "halo": 3, "thickness": 3}),  # a piece is several tiles
        ((17, 69, 37), {"tile": 12, "halo": 1, "ratios": (), "batch": 5}),
        ((7, 41, 53), {"tile": 20, "halo": 2, "slice_size": 94, "ratios": (2, 16), "thickness": 5}),
    ],
)
def test_pieces_together_are_the_slice(tmp_path: Path, shape: Shape3, options: dict[str, Any]) -> None:
    chosen = FeatureSettings.model_validate({"encoder": "texture", "dense_ratios": (), **options})
    store, values = tomogram(tmp_path, shape)
    run(store, chosen)
    assert len(list(tiling.pieces(shape, "z", 4, chosen, Encoder.channels))) > 1
    check(store, values, chosen)


@pytest.mark.usefixtures("small_chunks")
def test_a_slice_that_fits_into_a_tile_is_encoded_as_a_whole(tmp_path: Path) -> None:
    chosen = FeatureSettings(encoder="texture", tile=40, dense_ratios=())
    store, values = tomogram(tmp_path, (6, 35, 71))
    run(store, chosen)
    check(store, values, chosen)
    for axis in AXES:
        native = store.read(layout.latents(1, axis))
        assert (native == by_hand(values, axis, chosen).astype(np.float16)).all() or axis
        for ratio in (1, *chosen.ratios):
            stored = store.read(layout.latents(ratio, axis))
            assert np.array_equal(store.read(layout.gram(ratio, axis)), kernel.gram_maps(stored))


@pytest.mark.usefixtures("small_chunks")
def test_chunks_of_latents_are_written_once_and_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryosam_dask.stages import slabs

    written: list[tuple[str, tuple[int, ...]]] = []

    class Watched:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __setitem__(self, part: tuple[slice, ...], value: Array) -> None:
            spans = []
            for one, chunk, length in zip(part, self.array.chunks, self.array.shape[:3], strict=False):
                assert one.start % chunk == 0
                assert one.stop % chunk == 0 or one.stop == length
                spans.append(range(one.start // chunk, -(-one.stop // chunk)))
            written.extend((self.array.path, index) for index in itertools.product(*spans))
            self.array[part] = value

    make = slabs._Maps.__init__
    monkeypatch.setattr(slabs._Maps, "__init__", lambda self, latents, *others: make(self, Watched(latents), *others))
    for number, options in enumerate(({"tile": 20, "halo": 2}, {"tile": 12, "halo": 3})):
        (tmp_path / str(number)).mkdir()
        store, _ = tomogram(tmp_path / str(number), (33, 30, 90))
        written.clear()
        chosen = FeatureSettings.model_validate({"encoder": "texture", "dense_ratios": (), **options})
        run(store, chosen)
        assert len(written) == len(set(written))
        every = [store.array(layout.latents(ratio, axis)).nchunks for ratio in (1, 4, 8, 16) for axis in AXES]
        assert len(written) == sum(every)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("mode", ["whiten", "scale"])
def test_the_linear_map_is_that_of_all_tokens_at_once(tmp_path: Path, mode: Any) -> None:
    chosen = FeatureSettings(encoder="texture", tile=20, halo=2, dense_ratios=(), standardize=mode)
    store, values = tomogram(tmp_path, (9, 120, 87))
    features.prepare(store, chosen)
    stage = standardize.plan(store.shape, chosen, "")
    for unit in stage.units:
        stage.work(Context(store.url), stage.settings, unit)
    for axis in AXES:
        length = store.shape[AXES.index(axis)]
        where = np.unique(np.linspace(0, length - 1, min(standardize.SAMPLES, length) + 2).round().astype(int)[1:-1])
        tokens = by_hand(values, axis, chosen)[where].reshape(-1, Encoder.channels)
        mean, matrix = fit_standardization(tokens, mode)
        found = store.read(f"{layout.STANDARDIZATION}/{axis}")
        assert found[0] == pytest.approx(mean, rel=1e-4, abs=1e-4)
        assert found[1:] == pytest.approx(matrix, rel=1e-4, abs=1e-4)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("mode", ["whiten", "scale"])
def test_the_linear_map_is_the_same_bit_for_bit_slice_by_slice(
    tmp_path: Path, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standardization, "PORTION_VALUES", 6 * 100)  # several portions of a slice
    chosen = FeatureSettings(encoder="texture", tile=20, halo=2, dense_ratios=(), standardize=mode)
    store, _ = tomogram(tmp_path, (9, 120, 87))
    features.prepare(store, chosen)
    stage, maps = standardize.plan(store.shape, chosen, ""), list[Array]()
    slices = standardize.slices_of(stage, store.shape, chosen)
    assert [len(standardize.sample_of(store.shape, axis)) for axis in AXES] == [7, 12, 12]
    results = {}
    for unit in reversed(slices):  # in whatever order they end
        result = stage.work(Context(store.url), stage.settings, unit)
        assert result is not None
        assert not result.done  # their view is what is marked
        results[unit.name] = json.loads(json.dumps(result.value))
    assert len(results) == 31
    for units in (stage.units, [standardize.with_slices(unit, results) for unit in stage.units]):
        for unit in units:
            stage.work(Context(store.url), stage.settings, unit)
        maps.append(np.stack([store.read(layout.standardization(axis)) for axis in AXES]))
    assert np.array_equal(*maps)


def test_slices_that_would_return_too_much_are_left_to_their_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = tomogram(tmp_path, (9, 12, 8))
    stage = standardize.plan(store.shape, chosen := FeatureSettings(encoder="texture", standardize="whiten"), "")
    assert standardize.slices_of(stage, store.shape, chosen)
    monkeypatch.setattr(standardize, "_RETURNED", 300)  # 18 channels: 342 numbers
    assert not standardize.slices_of(stage, store.shape, chosen)


@pytest.mark.parametrize(("slots", "units"), [(1, 3), (2, 3 + 31), (3, 3), (64, 3 + 31)])
def test_views_are_cut_where_they_do_not_share_out_evenly(tmp_path: Path, slots: int, units: int) -> None:
    path = tmp_path / "noise.mrc"
    with mrcfile.new(path, np.random.default_rng(0).normal(size=(9, 24, 32)).astype(np.float32)) as file:
        file.voxel_size = 10
    executor = SerialExecutor()
    executor.slots = slots
    driver = Driver(tmp_path / "run.zarr", executor)
    driver.ingest(path)
    driver.features(settings_for("builtin", {"features.dense_ratios": []}))
    assert len(driver.timings[standardize.NAME]) == units
    assert marks.all_done(driver.store, standardize.NAME)
    (entry,) = (e["stages"][standardize.NAME] for e in commands(driver.store) if standardize.NAME in e["stages"])
    assert entry["units"] == 3, "what a plan goes by"
    assert entry["unit_seconds"] == pytest.approx(sum(t.seconds for t in driver.timings[standardize.NAME]))
    driver.features(settings_for("builtin", {"features.dense_ratios": []}))
    assert len(driver.timings[standardize.NAME]) == units


@given(
    length=st.integers(1, 400),
    size=st.none() | st.integers(16, 300),
    tile=st.integers(8, 40),
    halo=st.integers(0, 3),
    channels=st.sampled_from([18, 256, 384, 1024]),
)
@settings(max_examples=50, deadline=None)
def test_spans_keep_each_token_once_and_see_what_the_whole_resized_slice_shows(
    length: int, size: int | None, tile: int, halo: int, channels: int
) -> None:
    chosen = FeatureSettings(encoder="texture", slice_size=size, tile=tile, halo=halo)
    found = tiling.spans(length, 4, chosen, channels)
    side, tokens = tiling.piece_side(chosen, channels), geometry.token_count(length, 4, size)
    assert [i for span in found for i in range(tokens)[span.keep]] == list(range(tokens))
    assert all(span.keep.start % side == 0 for span in found)
    assert all(span.size <= max(side, tile) for span in found)
    slices = np.random.default_rng(0).normal(size=(2, length, 8)).astype(np.float32)
    whole = images.resize(slices, (tokens * 4, 8))
    other = tiling.Span((geometry.Tile(0, 2, 0, 2),), 2, 8, 4)
    for span in found:
        seen = slice(span.tiles[0].first * 4, span.tiles[-1].last * 4)
        assert np.array_equal(tiling.resized(slices[:, span.voxels], NUMPY, (span, other)), whole[:, seen])


@given(
    tokens=st.integers(1, 300), size=st.integers(8, 64), halo=st.integers(0, 3), side=st.sampled_from([1, 8, 16, 40])
)
@settings(max_examples=200, deadline=None)
def test_tiles_are_cut_at_multiples_of_a_side(tokens: int, size: int, halo: int, side: int) -> None:
    tiles = geometry.tiles(tokens, size, halo, side)
    assert [i for tile in tiles for i in range(tile.start, tile.stop)] == list(range(tokens))
    for tile in tiles:
        assert 0 < tile.last - tile.first <= size
        assert tile.first == max(tile.start - halo, 0)
        assert tile.last == min(tile.stop + halo, tokens)
    if len(tiles) > 1:
        inner = {tile.stop for tile in tiles[:-1]}
        assert set(range(side, tokens, side)) <= inner or all(stop % side == 0 for stop in inner)


@pytest.mark.parametrize("channels", [6, 18, 64, 256, 384, 768, 1024, 1280, 1536, 4096])
def test_chunks_of_coarse_ratios_are_made_of_native_ones(channels: int) -> None:
    native = tiling.chunk_side(1, channels)
    for ratio in (2, 4, 8, 16):
        side = tiling.chunk_side(ratio, channels)
        assert side % native == 0
        assert side <= layout.latent_chunks(layout.SLAB // ratio, (1 << 20, 1 << 20), channels)[1]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("thickness", [1, 3])
@pytest.mark.parametrize("slices", [range(3, 9), [0, 7, 30]])
def test_a_sample_of_a_window_is_the_window_of_the_sample(
    tmp_path: Path, axis: Axis, thickness: int, slices: Any
) -> None:
    store, _ = tomogram(tmp_path, (70, 33, 90))
    window = (slice(5, 31), slice(17, 20))
    whole, part = (Sample(store, axis, slices, thickness, where) for where in (None, window))
    assert np.array_equal(part.standard(slices), whole.standard(slices)[:, *window])


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("longer", [(1, 2, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2)])
def test_projected_memory_does_not_grow_with_slices_larger_than_a_tile(axis: Axis, longer: Shape3) -> None:
    chosen = FeatureSettings(encoder="texture", thickness=5, standardize="whiten")
    small: Shape3 = (1024, 1024, 1024)
    large: Shape3 = (1024 * longer[0], 1024 * longer[1], 1024 * longer[2])
    for plan in (features.plan, standardize.plan):
        most = [
            max(unit.memory for unit in plan(shape, chosen, "").units if unit.params["axis"] == axis)
            for shape in (small, large)
        ]
        assert most[0] <= most[1] < 1.1 * most[0]


@pytest.mark.usefixtures("small_chunks")
def test_memory_does_not_grow_with_slices_larger_than_a_tile(tmp_path: Path) -> None:
    chosen = FeatureSettings(encoder="texture", tile=36, halo=2, dense_ratios=(), thickness=3, standardize="whiten")
    peaks = []
    for index, shape in enumerate(((16, 96, 96), (16, 288, 288), (16, 576, 288), (16, 288, 576))):
        (tmp_path / str(index)).mkdir()
        store, _ = tomogram(tmp_path / str(index), shape, 32)
        features.prepare(store, chosen)
        store.put(f"{layout.STANDARDIZATION}/z", np.eye(7, 6, dtype=np.float32), ("a", "b"))
        stage = features.plan(shape, chosen, "")
        tracemalloc.start()
        try:
            features.work(Context(store.url), stage.settings, stage.units[0])
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert max(peaks[2:]) < 1.15 * peaks[1]  # the first run imports
