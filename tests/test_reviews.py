"""Decisions about picks: kept whatever is killed, matched by position, and learned from."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cryosam_dask as cs
from cryosam_dask.errors import InputError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.kernels.decisions import agreed, corrected
from cryosam_dask.kernels.discriminant import discriminant
from cryosam_dask.kernels.peaks import Cut
from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.pipeline import Driver, recut, refine, settings_for
from cryosam_dask.pipeline.integrity import verify
from cryosam_dask.simulate import SimulatedTomogram, SimulationSettings, Species, simulate
from cryosam_dask.stages import borrow, chain, learned, propose, query_file, segment, segment_volume
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, picks, reviews
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.reviews import PAGE, Decision, ReviewLog
from cryosam_dask.store.run_store import RunStore


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "r.zarr", {"shape": [8, 8, 8], "voxel_size": [10, 10, 10], "origin": [0, 0, 0]})


def decision(verdict: reviews.Verdict, z: float, when: float, instance: int = 1) -> Decision:
    return Decision(instance, (z, 0.0, 0.0), verdict, when=when)


# Logs -----------------------------------------------------------------------------------------------------------------


def test_every_decision_is_there_as_soon_as_it_was_reported(store: RunStore) -> None:
    log = ReviewLog(store, "a", by="ada")
    for i in range(PAGE + 3):
        (written,) = log.write([Decision(i, (float(10 * i), 0.0, 0.0), "accepted")])
        assert written.by == "ada"
        fresh = reviews.read(RunStore.open(store.url), "a")
        assert fresh[-1] == written
        assert len(fresh) == i + 1
    assert [p[-5:] for p in store.names(layout.reviews("a")) if "_" in p] == ["_0000", "_0001"]


def test_several_writers_at_once_lose_nothing(store: RunStore) -> None:
    logs = [ReviewLog(store, "a", by=name) for name in ("ada", "bob")]
    for i in range(6):
        logs[i % 2].write([decision("accepted" if i % 2 else "rejected", 10.0 * i, 100.0 + i)])
    every = reviews.read(store, "a")
    assert [d.by for d in every] == ["ada", "bob"] * 3
    assert [d.when for d in every] == [100.0 + i for i in range(6)]


def test_a_page_that_was_not_begun_whole_is_passed_over(store: RunStore) -> None:
    ReviewLog(store, "a").write([decision("accepted", 1.0, 5.0)])
    path = layout.review_log("a", "killed", 0)
    store.new_array(path, shape=(PAGE, 6), dtype="f8", chunks=(PAGE, 6), dims=("d", "field"))
    (kept,) = reviews.read(RunStore.open(store.url), "a")
    assert kept.when == 5.0


def test_the_last_word_about_a_place_counts_and_may_be_taken_back(store: RunStore) -> None:
    told = [
        decision("accepted", 0.0, 1.0),
        decision("rejected", 1.0, 2.0),  # the same place, a voxel off
        decision("accepted", 20.0, 3.0),
        decision("undecided", 20.0, 4.0),
        decision("added", 40.0, 5.0),
    ]
    ReviewLog(store, "a").write(told)
    current = reviews.current(reviews.read(store, "a"))
    assert [(d.verdict, d.position[0]) for d in current] == [("rejected", 1.0), ("added", 40.0)]
    table = reviews.table(current)
    assert list(table["verdict"]) == ["rejected", "added"]
    assert str(table["when"].dt.tz) == "UTC"
    assert reviews.names(store) == ["a"]


def test_picks_keep_their_verdicts_by_position() -> None:
    decided = [decision("accepted", 0.0, 1.0), decision("rejected", 30.0, 2.0)]
    places = np.array([[30.5, 0, 0], [0.4, 0, 0], [2.4, 0, 0], [60, 0, 0]])
    assert reviews.verdicts(decided, places, 3.0) == ["rejected", "accepted", "undecided", "undecided"]
    assert reviews.verdicts([], places, 3.0) == ["undecided"] * 4
    assert reviews.verdicts(decided, places[:0], 3.0) == []


# Learning -------------------------------------------------------------------------------------------------------------


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_decisions_raise_what_is_like_accepted_places_and_lower_the_rest() -> None:
    rng = np.random.default_rng(0)
    wanted, other = _unit(rng.normal(size=(2, 64)))
    descriptors = _unit(np.repeat([wanted, other], 50, axis=0) + 0.02 * rng.normal(size=(100, 64)))
    truth = np.arange(100) < 50
    prior = np.full(100, 0.4)
    assert corrected(prior, descriptors, descriptors[:0], truth[:0]) is prior
    told = [0, 1, 2, 50, 51, 52]
    after = corrected(prior, descriptors, descriptors[told], truth[told])
    assert after[truth].min() > 0.6
    assert after[~truth].max() < 0.25
    only_rejected = corrected(prior, descriptors, descriptors[50:55], truth[50:55])
    assert only_rejected[~truth].max() < only_rejected[truth].min()
    far = corrected(
        prior, np.concatenate([descriptors, _unit(rng.normal(size=(1, 64)))])[100:], descriptors[:3], truth[:3]
    )
    assert abs(far[0] - 0.4) < 0.05


def test_the_more_was_decided_the_likelier_a_proposal_must_be() -> None:
    scores = np.array([0.9, 0.6, 0.45, 0.3, 0.2])
    cut = Cut(0.25, 4, "the highest expected F1")
    assert propose._likely(cut, scores, 0) is cut
    assert propose._likely(cut, scores, 10) is cut
    assert propose._likely(cut, scores, 14)[:2] == (pytest.approx(0.35), 3)
    assert propose._likely(cut, scores, 20)[:2] == propose._likely(cut, scores, 400)[:2] == (0.5, 2)
    assert "after 20 decisions" in propose._likely(cut, scores, 20).reason
    assert propose._likely(Cut(0.7, 1, ""), scores, 40).threshold == 0.7


def test_a_discriminant_sees_what_the_means_hide() -> None:
    """The kind differs in a quiet direction, while everything varies much in a loud one."""
    rng = np.random.default_rng(0)
    spread = np.diag([25.0, 0.04, 1.0, 1.0])
    wanted = rng.multivariate_normal([0, 1, 0, 0], spread, 12)
    unwanted = rng.multivariate_normal([0, 0, 0, 0], spread, 12)
    w = discriminant(wanted, unwanted, spread, 0.02)
    means = discriminant(wanted, unwanted, spread, 1.0)
    np.testing.assert_allclose(np.linalg.norm([w, means], axis=1), 1)
    direction = wanted.mean(axis=0) - unwanted.mean(axis=0)
    np.testing.assert_allclose(means, direction / np.linalg.norm(direction), atol=1e-6)
    many = rng.multivariate_normal([0, 1, 0, 0], spread, 500), rng.multivariate_normal([0, 0, 0, 0], spread, 500)

    def separated(v: np.ndarray) -> float:
        return float(np.mean((many[0] @ v)[:, None] > (many[1] @ v)[None]))

    assert separated(w) > 0.95 > separated(means)


def test_a_threshold_gives_way_to_decisions_that_contradict_it() -> None:
    scores = np.array([0.9, 0.7, 0.5, 0.4, 0.2])
    accepted = np.array([True, True, True, False, False])
    assert agreed(0.45, scores, accepted) == 0.45, "none contradicts it"
    assert agreed(0.8, scores, accepted) == 0.5
    assert 0.4 < agreed(0.1, scores, accepted) < 0.41
    assert agreed(0.3, scores[:0], accepted[:0]) == 0.3


@pytest.mark.parametrize("center", [False, True])
def test_the_direction_is_searched_for_as_cheaply_as_a_query(random_features: Any, center: bool) -> None:
    """w · F by projected tokens is that by dense features."""
    volume = FeatureVolume.open(random_features((24, 40, 36)))
    rng = np.random.default_rng(0)
    wanted, unwanted = rng.normal(size=(2, 9, volume.channels))
    w = discriminant(wanted + 0.3, unwanted, np.eye(volume.channels), 0.5).astype(np.float32)
    for ratio in (4, 8):
        dense = volume.dense(ratio).to_numpy().astype(float)
        mean = volume.mean if center else np.zeros_like(w)
        away, towards = dense - mean, w - mean
        expected = away @ towards / (np.linalg.norm(away, axis=-1) * np.linalg.norm(towards))
        np.testing.assert_allclose(volume.similarity(w, ratio, center=center), expected, atol=1e-4)


# Runs -----------------------------------------------------------------------------------------------------------------

SHAPE = (48, 96, 112)


def _simulated() -> SimulatedTomogram:
    species = (Species("ribosome", "ribosome", 22.0, 6, 1.2), Species("other", "globule", 18.0, 7))
    return simulate(SimulationSettings(shape=SHAPE, seed=5, species=species, membranes=0, snr=1.0))


@pytest.fixture(scope="module", params=["builtin", "texture+random-walker", "similarity"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SimulatedTomogram, Path]:
    """A run that found both kinds, since it was told to keep so many. Tests copy it."""
    simulated, out = _simulated(), tmp_path_factory.mktemp("run") / "run.zarr"
    models = "builtin" if request.param == "builtin" else "texture+random-walker"
    values: dict[str, Any] = {"match.count": 14, "match.structure": "particle"}
    if request.param == "similarity":
        values |= {"match.rank": "similarity", "match.center": True, "match.tau_sim": 0.1}
    points = simulated.centres("ribosome")[:1]
    settings = settings_for(models, values)
    cs.run(simulated.tomogram, points, out, name="r", settings=settings, workers=0, voxel_size=10.0)
    return simulated, out


def _right(table: pd.DataFrame, centres: np.ndarray) -> np.ndarray:
    distance = np.linalg.norm(table[["z", "y", "x"]].to_numpy()[:, None] - centres, axis=2)
    return np.asarray(distance.min(axis=1) < 6)


def _chunks(run: Path) -> dict[str, bytes]:
    """What is in a run, but for who did it when."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != "zarr.json")
    return {str(path.relative_to(run)): path.read_bytes() for path in files if "journal" not in path.parts}


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, ...]]:
    """Points that proposals are segmented at, as that is done."""
    points: list[tuple[float, ...]] = []
    start, instances_of = Propagation.start, segment_volume.instances_of

    def spied_start(of: Any, *rest: Any) -> Any:
        points.extend(tuple(point) for point in of)
        return start(of, *rest)

    def spied_instances(store: Any, settings: Any, device: Any, of: Any, *rest: Any) -> Any:
        points.extend(tuple(point) for point in of)
        return instances_of(store, settings, device, of, *rest)

    monkeypatch.setattr(Propagation, "start", spied_start)
    monkeypatch.setattr(segment_volume, "instances_of", spied_instances)
    monkeypatch.setattr(segment, "start_planes", lambda shape, points: set())
    return points


def test_what_was_decided_stays_decided_and_the_rest_is_ranked_anew(
    run: tuple[SimulatedTomogram, Path], tmp_path: Path, segmented: list[tuple[float, ...]]
) -> None:
    simulated, done = run
    out = shutil.copytree(done, tmp_path / "r.zarr")
    centres = simulated.centres("ribosome")
    driver = Driver(out, SerialExecutor())
    before = picks.read(driver.store, "r")
    right = _right(before, centres)
    assert not right.all()
    shown = before.iloc[[*np.flatnonzero(right)[1:3], *np.flatnonzero(~right)[:2]]]
    decided = [
        Decision(int(row.instance), (row.z, row.y, row.x), "accepted" if good else "rejected")
        for row, good in zip(shown.itertuples(), [True, True, False, False], strict=True)
    ]
    driver.review("r", decided, by="ada")
    before_places = {tuple(point) for point in driver.store.read(layout.proposal_array("r", "points")).tolist()}
    driver.refine("r")
    if (described := layout.refined_array("r", "features")) in driver.store:
        masks, volume = stored.Masks(RunStore.open(run[1]), layout.instances("r")), FeatureVolume(driver.store)
        outlined = [(masks.mask(*place), masks.box(*place)) for place in shown[["group", "member"]].to_numpy().tolist()]
        means = [volume.pool_block(mask, box) / mask.sum() for mask, box in outlined]
        np.testing.assert_allclose(driver.store.read(described), means, rtol=1e-5)
    driver.match("r")
    anew = shutil.copytree(out, tmp_path / "anew.zarr")
    driver.segment("r")
    proposed = {tuple(point) for point in driver.store.read(layout.proposal_array("r", "points")).tolist()}
    # only what was not proposed before is segmented, and that is as if all were; or what was not recognized, either
    by_looks = layout.query_array("r", "descriptors") in driver.store
    assert set(segmented) < proposed if by_looks else set(segmented) == proposed - before_places
    assert len(proposed & before_places) >= 3
    shutil.rmtree(anew / layout.FORMER)
    Driver(anew, SerialExecutor()).segment("r")
    assert set(segmented) < proposed if by_looks else set(segmented) == proposed
    assert _chunks(out) == _chunks(anew)
    after = picks.read(driver.store, "r")
    places = after[["z", "y", "x"]].to_numpy()
    told = reviews.verdicts(reviews.current(reviews.read(driver.store, "r")), places, 4.0)
    assert "rejected" not in told
    assert told.count("accepted") == 2
    assert len(after) > 3
    assert verify(str(out)).sound
    again = Driver(out, SerialExecutor())
    for command in (again.refine, again.match, again.segment):
        command("r")  # nothing new was decided: nothing runs
    assert not [name for name, units in again.timings.items() if units]
    assert picks.read(again.store, "r").equals(after)


def test_where_the_same_is_proposed_nothing_is_segmented(
    run: tuple[SimulatedTomogram, Path], tmp_path: Path, segmented: list[tuple[float, ...]]
) -> None:
    out = shutil.copytree(run[1], tmp_path / "r.zarr")
    before, driver = _chunks(out), Driver(out, SerialExecutor())
    recut.keep(driver.store, "r", 16)
    assert verify(str(out)).sound
    chain.forget(driver.store, "r", after=segment.PROPOSALS.stage, itself=True)
    driver.segment("r")
    assert segmented == []
    assert _chunks(out) == before


def test_what_was_learned_goes_with_the_query(run: tuple[SimulatedTomogram, Path], tmp_path: Path) -> None:
    out = shutil.copytree(run[1], tmp_path / "r.zarr")
    driver = Driver(out, SerialExecutor())
    bare = borrow.take(driver.store, "r")
    table = picks.read(driver.store, "r")
    right = _right(table, run[0].centres("ribosome"))
    shown = table.iloc[[np.flatnonzero(right)[1], np.flatnonzero(~right)[0]]]
    cs.review(out, "r", accept=[shown["instance"].iloc[0]], reject=[shown["instance"].iloc[1]])
    driver.refine("r")
    loan = borrow.take(driver.store, "r")
    assert loan.origin["digest"] != bare.origin["digest"]
    query_file.write(loan, tmp_path / "q.json")
    assert query_file.read(tmp_path / "q.json").params == loan.params
    driver.borrow("lent", query_file.renamed(query_file.read(tmp_path / "q.json"), "lent"))
    store = driver.store
    told = {key for key in loan.params if key not in bare.params}
    rank = loan.settings.match.rank
    assert (
        told
        == {
            "similarity": {"direction"},
            "descriptor": {"decided", "decided_descriptors"},
            "profile": {"negative_profiles"},
        }[rank]
    )
    if rank == "similarity":
        here, there = (store.read(learned.direction(store, name) or "") for name in ("r", "lent"))
        np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-6)
        searched = learned.searched(store, "lent", loan.settings.match)
        assert searched.tau_sim == pytest.approx(learned.searched(store, "r", loan.settings.match).tau_sim)
    if rank == "descriptor":
        places = np.asarray(loan.params["decided_descriptors"])
        prior = np.full(2, 0.4)
        np.testing.assert_allclose(
            learned.corrected(store, "lent", prior, places), learned.corrected(store, "r", prior, places), atol=1e-5
        )
    broken = dict(loan.params) | {key: [0.5] for key in told}
    query_file.write(dataclasses.replace(loan, params=broken), tmp_path / "broken.json")
    with pytest.raises(InputError):
        query_file.read(tmp_path / "broken.json")


def test_kinds_that_competed_compete_again(tmp_path: Path) -> None:
    """One of two kinds is refined: both are segmented together, also where refining had been interrupted."""
    simulated, out = _simulated(), tmp_path / "run.zarr"
    points = {kind: simulated.centres(kind)[:1] for kind in ("ribosome", "other")}
    settings = settings_for("texture+random-walker", {"match.count": 6, "match.structure": "particle"})
    cs.run(simulated.tomogram, points, out, settings=settings, workers=0, voxel_size=10.0)
    driver = Driver(out, SerialExecutor())
    table = picks.read(driver.store, "ribosome")
    cs.review(out, "ribosome", accept=table["instance"][:2], reject=table["instance"][-1:])
    assert driver.refine("ribosome") == ["ribosome", "other"]
    assert set(refine(driver, "ribosome")) == {"ribosome", "other"}  # as if it had been killed before it found
    assert picks.kinds(driver.store, "ribosome") == picks.kinds(driver.store, "other") == ["ribosome", "other"]
    labels = [driver.store.read(layout.labels(kind)) > 0 for kind in points]
    assert labels[0].any()
    assert labels[1].any()
    assert not (labels[0] & labels[1]).any()
    assert verify(str(out)).sound


def test_nothing_decided_is_one_line(run: tuple[SimulatedTomogram, Path]) -> None:
    with pytest.raises(InputError, match="nothing was decided"):
        Driver(run[1], SerialExecutor()).refine("r")
