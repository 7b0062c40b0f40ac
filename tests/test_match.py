"""Matching by projected slabs equals the similarity of the whole volume, cell by cell."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages import match, project
from cryosam_dask.stages.base import Context, Stage
from cryosam_dask.store import feature_volume, layout
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES


def run(store: RunStore, stage: Stage) -> None:
    for unit in stage.units:
        stage.work(Context(store.url), stage.settings, unit)


def match_all(store: RunStore, chosen: MatchSettings) -> list[match.Survey]:
    volume, found = FeatureVolume(store), []
    for this in match.passes("a", chosen):
        project.prepare(store, this)
        run(store, project.plan(store.shape, volume.token_grids, volume.view_channels, this, "up"))
        match.prepare(store, this)
        run(store, match.plan(store.shape, volume.token_grids, this, "up"))
        found.append(match.survey(store, this, chosen.tau_sim))
    return found


@pytest.fixture(params=[(40, 50, 70), (17, 100, 33)])
def store(request: pytest.FixtureRequest, random_features: Any, monkeypatch: pytest.MonkeyPatch) -> RunStore:
    """Features of a run with a query, in pieces and boxes so small that there are several of each."""
    monkeypatch.setattr(project, "UNIT_BYTES", 1 << 14)
    monkeypatch.setattr(feature_volume, "PIECE_BYTES", 1 << 11)
    monkeypatch.setattr(feature_volume, "TILE", (8, 16, 16))
    monkeypatch.setattr(match, "CELLS", (16, 32, 32))
    store = RunStore.open(random_features(request.param, dtype="float16", tokens=(5, 6, 7)), "r+")
    volume = FeatureVolume(store)
    for ratio in volume.ratios:
        for path in (layout.latents(ratio, axis) for axis in AXES):
            values = store.read(path)
            chunks = (max(1, 16 // ratio), 2, 3, values.shape[3])
            array = store.new_array(path, shape=values.shape, dtype="float16", chunks=chunks, dims="abcd")
            array[...] = values
    query = np.random.default_rng(7).normal(size=volume.channels).astype(np.float32)
    store.put(f"{layout.query('a')}/feature", query, ("channel",))
    store.put(f"{layout.query('a')}/mean", volume.mean, ("channel",))
    return store


@pytest.mark.parametrize("ratio", [1, 4, 8])
@pytest.mark.parametrize("center", [False, True])
def test_one_ratio_equals_the_similarity_of_the_volume(store: RunStore, ratio: int, center: bool) -> None:
    match_all(store, MatchSettings.model_validate({"ratios": (ratio,), "center": center}))
    query = store.read(f"{layout.query('a')}/feature")
    expected = FeatureVolume(store).similarity(query, ratio, center=center).to_numpy()
    assert store.read(layout.similarity("a", ratio)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("ratios", [(16, 8, 4), (8, 1), (16, 4, 1)])
def test_finer_ratios_are_evaluated_under_kept_cells_and_nowhere_else(store: RunStore, ratios: tuple[int, ...]) -> None:
    tau = 0.0
    match_all(store, MatchSettings.model_validate({"ratios": ratios, "tau_sim": tau}))
    query = store.read(f"{layout.query('a')}/feature")
    for coarser, ratio in itertools.pairwise(ratios):
        kept = store.read(layout.similarity("a", coarser)) >= tau
        found = store.read(layout.similarity("a", ratio))
        wanted = kept
        for axis in range(3):
            wanted = wanted.repeat(coarser // ratio, axis).take(range(found.shape[axis]), axis)
        assert 0 < wanted.sum() < wanted.size
        assert np.array_equal(np.isfinite(found), wanted)
        expected = FeatureVolume(store).similarity(query, ratio).to_numpy()
        assert found[wanted] == pytest.approx(expected[wanted], abs=1e-5)


def test_only_chunks_with_a_touched_token_are_read(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = FeatureVolume(store)
    read: list[tuple[slice, ...]] = []
    plain = feature_volume.read_ahead

    def watched(reader: Any, parts: Any) -> Any:
        chosen = list(parts)
        read.extend(chosen)
        return plain(reader, chosen)

    monkeypatch.setattr(feature_volume, "read_ahead", watched)
    target = volume.targets(store.read(f"{layout.query('a')}/feature"))[0]
    rows, columns = volume.token_grid("z")
    touched = np.zeros((rows, columns), bool)
    volume.dots_of_slabs(target, 4, "z", [(0, 4, touched)])
    assert not read
    touched[-1, 0] = True
    dots = volume.dots_of_slabs(target, 4, "z", [(0, 4, touched)])
    side = store.array(layout.latents(4, "z")).chunks[1:3]
    assert len(read) == 1
    assert side == (2, 3)
    assert all(part.stop - part.start <= s for part, s in zip(read[0][1:], side, strict=True))
    latents = store.read(layout.latents(4, "z"), slice(0, 4))
    assert dots[0, :, -1, 0] == pytest.approx(latents[:, -1, 0].astype(np.float32) @ target.query, abs=1e-4)


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    most=st.integers(1, 300),
    density=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_pieces_cover_the_touched_chunks_once(
    shape: tuple[int, int], side: tuple[int, int], most: int, density: float, seed: int
) -> None:
    touched = np.random.default_rng(seed).random(shape) < density
    count = np.zeros(shape, int)
    for rows, columns in feature_volume.runs(touched, side, most):
        count[rows, columns] += 1
        assert rows.start % side[0] == 0
        assert columns.start % side[1] == 0
        size = (rows.stop - rows.start) * (columns.stop - columns.start)
        assert size <= max(most, side[0] * side[1])
    for i in range(0, shape[0], side[0]):
        for j in range(0, shape[1], side[1]):
            chunk = np.s_[i : i + side[0], j : j + side[1]]
            assert (count[chunk] == touched[chunk].any()).all()


@pytest.mark.parametrize("tau", [-1 + 1e-6, 0.1, 0.2])
def test_a_survey_counts_the_cells_that_reach_the_threshold(store: RunStore, tau: float) -> None:
    found = match_all(store, MatchSettings(ratios=(4,), tau_sim=tau))[0]
    values = store.read(layout.similarity("a", 4))
    assert found.evaluated == values.size
    assert found.reached == found.counts.sum() == np.count_nonzero(values >= tau)
    assert (found.low, found.high) == (values.min(), values.max())
    assert found.middle == pytest.approx(np.median(values), abs=0.02)
    step = int(np.argmax(found.counts))
    inside = (values >= found.edges[step]) & (values < found.edges[step + 1])
    assert found.counts[step] == np.count_nonzero(inside)


def test_parts_are_read_ahead_in_order() -> None:
    assert [value.tolist() for _, value in feature_volume.read_ahead(lambda i: np.array([i]), range(4))] == [
        [0], [1], [2], [3],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="broken"):
        list(feature_volume.read_ahead(_broken, range(3)))


def _broken(part: Any) -> Any:
    raise ValueError(f"broken {part}")
