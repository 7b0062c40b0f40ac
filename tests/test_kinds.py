"""Several kinds at once, negative points, and queries in files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import cryosam_dask as cs
from cryosam_dask import outputs, planning
from cryosam_dask.cli import app
from cryosam_dask.cli.prompts import Prompts
from cryosam_dask.errors import CryosamError, InputError, SettingsError, StoreError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.io.points.files import read_points
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.kernels import likeness, merging
from cryosam_dask.models import preset
from cryosam_dask.pipeline import Driver, integrity, kinds_of, settings_for, take
from cryosam_dask.pipeline.batch import run_many
from cryosam_dask.stages import borrow, label, negative, origin, propose, query_file, segment, select
from cryosam_dask.stages.base import Context
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, marks, picks
from cryosam_dask.store.run_store import RunStore

SHAPE = (26, 42, 54)
BIG = [[12.0, 11.0, 11.0], [13.0, 30.0, 12.0]]
SMALL = [[12.0, 12.0, 32.0], [14.0, 32.0, 44.0], [9.0, 24.0, 28.0]]
CLICKS = {"big": BIG[:1], "small": SMALL[:1]}
BUILTIN = settings_for("texture+random-walker")
SIMILAR = settings_for("texture+random-walker", {"match.rank": "similarity", "match.count": 8, "match.tau_sim": 0.2})


def write_balls(path: Path, seed: int = 0, small: bool = True) -> Path:
    """Balls of radius 7 and of radius 4, alike in grey and texture, in noise."""
    z, y, x = np.indices(SHAPE)
    values = np.random.default_rng(seed).normal(size=SHAPE)
    for radius, centres in ((7, BIG), (4, SMALL if small else [])):
        for a, b, c in centres:
            values += 3.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < radius**2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, values.astype(np.float32)) as file:
        file.voxel_size = 10
    return path


@pytest.fixture(scope="module")
def tomogram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_balls(tmp_path_factory.mktemp("kinds") / "balls.mrc")


@pytest.fixture(scope="module")
def ingested(tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with features, and no query."""
    out = tmp_path_factory.mktemp("kinds") / "bare.zarr"
    driver = Driver(out, SerialExecutor())
    driver.ingest(tomogram)
    driver.features(BUILTIN)
    return out


@pytest.fixture(scope="module")
def together(tomogram: Path, ingested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both kinds at once. Tests must not change it."""
    out = tmp_path_factory.mktemp("kinds") / "run.zarr"
    shutil.copytree(ingested, out)
    go(tomogram, out)
    return out


@pytest.fixture
def copied(together: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run.zarr"
    shutil.copytree(together, out)
    return out


@pytest.fixture
def bare(ingested: Path, tmp_path: Path) -> Callable[[], Driver]:
    """A driver of a run of its own, without queries."""

    def make(overwrite: bool = False) -> Driver:
        out = tmp_path / "bare.zarr"
        if not out.exists():
            shutil.copytree(ingested, out)
        return Driver(out, SerialExecutor(), overwrite=overwrite)

    return make


def go(tomogram: Path, out: Path, **options: Any) -> Driver:
    points = None if "query" in options else options.pop("points", CLICKS)
    return cs.run(tomogram, points, out, workers=0, **({"settings": BUILTIN} | options))


def ran(driver: Driver) -> dict[str, int]:
    return {stage: len(timings) for stage, timings in driver.timings.items() if timings}


def contents(run: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(run)): p.read_bytes()
        for p in sorted(run.rglob("*"))
        if p.is_file() and p.name != "zarr.json" and not {"journal", "marks"} & set(p.parts)
    }


def places(run: Path, name: str) -> set[tuple[float, ...]]:
    """The true centres that picks are at; none may be elsewhere."""
    found = picks.read(RunStore.open(run), name)[["z", "y", "x"]].to_numpy()
    every = np.array(BIG + SMALL)
    distance = np.linalg.norm(found[:, None] - every, axis=2)
    assert (distance.min(axis=1) < 3).all()
    return {tuple(every[i]) for i in distance.argmin(axis=1)}


def centres(found: list[list[float]]) -> set[tuple[float, ...]]:
    return {tuple(place) for place in found}


# --- both kinds at once ---


def test_each_particle_goes_to_its_kind_and_each_voxel_to_one(together: Path) -> None:
    assert places(together, "big") == centres(BIG)
    assert places(together, "small") == centres(SMALL)
    store = RunStore.open(together)
    big, small, kinds = (store.read(layout.labels(name)) for name in ("big", "small", layout.KINDS))
    assert big.any()
    assert small.any()
    assert not ((big > 0) & (small > 0)).any()
    assert ((kinds == 1) == (big > 0)).all()
    assert ((kinds == 2) == (small > 0)).all()


def test_the_image_of_all_kinds_says_which_number_is_which(together: Path) -> None:
    store = RunStore.open(together)
    attributes: Any = dict(store.group("labels/kinds").attrs)
    described = attributes["ome"]["image-label"]
    assert described["properties"] == [{"label-value": 1, "name": "big"}, {"label-value": 2, "name": "small"}]
    assert [one["label-value"] for one in described["colors"]] == [1, 2]
    attributes = dict(store.group("labels").attrs)
    assert attributes["ome"]["labels"] == ["big", "big_semantic", "kinds", "small", "small_semantic"]
    assert picks.kinds(store, "small") == ["big", "small"]
    words = outputs.describe_in_words(outputs.describe(together))
    assert "small: 3 instances, segmenter random-walker, negative points: 1, told apart from big" in words
    tree = cs.open_run(together)
    assert set(np.unique(tree["labels/kinds/scale0"]["labels"])) == {0, 1, 2}


def test_the_same_command_again_runs_nothing(together: Path, tomogram: Path) -> None:
    before = contents(together)
    assert ran(go(tomogram, together)) == {}
    assert contents(together) == before


def test_other_kinds_or_clicks_are_other_settings(copied: Path, tomogram: Path) -> None:
    before = contents(copied)
    with pytest.raises(StoreError, match=r"queries/big was made with other settings \(negatives: "):
        go(tomogram, copied, points=CLICKS | {"small": SMALL[:2]})
    with pytest.raises(StoreError, match=r"negatives"):
        go(tomogram, copied, points=BIG[:1], name="big")
    with pytest.raises(StoreError, match=r"queries/big was made with other settings \(points: 12,11,11 → 13,30,12\)"):
        go(tomogram, copied, points=CLICKS | {"big": BIG[1:]})
    with pytest.raises(StoreError, match=r"negatives: 12,12,32 → 9,24,28; 12,12,32\).*clicks on one are negatives"):
        go(tomogram, copied, points={"third": SMALL[2:], **CLICKS})
    with pytest.raises(StoreError, match=r"label/big was made with other .*kinds: \['big', 'small'\] → None"):
        Driver(copied, SerialExecutor()).segment("big")
    assert contents(copied) == before


def test_one_kind_alone_takes_the_place_of_both_on_request(
    copied: Path, tomogram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, store = Driver(copied, SerialExecutor(), overwrite=True), RunStore.open(copied)
    with monkeypatch.context() as patch:
        patch.setattr(picks, "write", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            driver.segment("big")
    assert marks.found_stage(store, "label/big") is None  # labels of other picks are not taken for done
    driver.segment("big")
    assert layout.labels(layout.KINDS) not in store
    assert picks.kinds(store, "big") == []
    assert set(ran(driver)) == {"label/big"}
    go(tomogram, copied, overwrite=True)
    assert places(copied, "small") == centres(SMALL)
    assert integrity.verify(copied).sound


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(
    together: Path, ingested: Path, tomogram: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryosam_dask.executors import serial

    out, stops, run_unit = tmp_path / "run.zarr", 0, serial.run_unit
    shutil.copytree(ingested, out)
    while True:
        count = 0

        def stopping(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > 40:
                raise KeyboardInterrupt
            return run_unit(*args, **kwargs)

        monkeypatch.setattr(serial, "run_unit", stopping)
        try:
            go(tomogram, out)
        except KeyboardInterrupt:
            stops += 1
            assert stops < 40
            continue
        break
    assert stops >= 2
    assert contents(out) == contents(together)


def test_what_wrote_each_array_is_known(together: Path) -> None:
    store = RunStore.open(together)
    wanted = {path for s in origin.stages(store) for path, _ in origin.expected(store, s, marks.done(store, s))}
    found = {path.partition("/c/")[0] for path, _ in store.files() if "/c/" in path and "journal" not in path}
    kinds = {path: origin.origin(store, path).kind for path in found}
    assert "unknown" not in kinds.values()
    new = {path for path in found if path.startswith(("negatives/", "labels/kinds/")) or path.endswith("/rival")}
    assert {path.split("/")[0] for path in new} == {"negatives", "labels", "instances"}
    assert {path for path in new if kinds[path] in ("stage", "unit")} <= wanted


@pytest.mark.parametrize(
    "path",
    ["labels/kinds/scale0/labels/c/0/0/0", "negatives/big/profiles/c/0/0", "negatives/small/group00000/bits/c/0"],
)
def test_what_is_lost_is_noticed_and_made_again(path: str, copied: Path, together: Path, tomogram: Path) -> None:
    (copied / path).unlink()
    with pytest.raises(StoreError, match=path.partition("/c/")[0]):
        go(tomogram, copied)
    found = integrity.verify(copied)
    assert len(found.damages) == 1
    assert not integrity.repair(copied, found).left
    go(tomogram, copied)
    assert contents(copied) == contents(together)


@pytest.mark.parametrize(
    ("points", "negatives", "query", "name", "message"),
    [
        (None, None, None, None, "give points in the tomogram, or a run"),
        ([[1, 2, 3]], None, "a.zarr", None, "give points in the tomogram, or a run"),
        ({"a": [[1, 2, 3]], "b": []}, None, None, None, "no points of b"),
        ({"a": [[1, 2, 3]]}, None, None, "a", "have their names already"),
        ([[1, 2, 3]], None, None, ["a", "b"], "give the points of each"),
        ({"kinds": [[1, 2, 3]], "b": [[1, 2, 3]]}, None, None, None, "the image of all kinds"),
        ({"../a": [[1, 2, 3]]}, None, None, None, "can't be used"),
        ({"a": [[1, 2, 3]], "b": [[1, 2, 3]]}, None, None, None, "1,2,3 is a point of a and of b"),
        ([[1, 2, 3]], [[0, 0, 0], [1, 2, 3]], None, "a", "1,2,3 is a point of a and of what is not wanted"),
        ([[[1, 2, 3]]], None, None, None, r"points of shape \(1, 1, 3\): expected three numbers"),
        ({"a": 5}, None, None, None, r"points of shape \(1, 1\): expected three numbers"),
        ({f"k{i}": [[1, 2, i]] for i in range(255)}, None, None, None, "255 kinds: expected 1 to 254"),
    ],
)
def test_what_can_not_be_asked_for_is_one_line(
    points: Any, negatives: Any, query: Any, name: Any, message: str
) -> None:
    with pytest.raises(CryosamError, match=message):
        kinds_of(points, negatives, query, name)


def test_clicks_on_other_kinds_are_negatives() -> None:
    kinds = kinds_of({"a": [[1, 2, 3]], "b": [[4, 5, 6], [7, 8, 9]]}, [[0, 0, 0]], None, None)
    assert kinds.unlike("a") == [[0, 0, 0], [4, 5, 6], [7, 8, 9]]
    assert kinds.unlike("b") == [[0, 0, 0], [1, 2, 3]]
    table = pd.DataFrame({"x": [3.0], "y": [2.0], "z": [1.0], "score": [0.5]})
    assert kinds_of(table, None, None, "a").points == {"a": [[1, 2, 3]]}
    with pytest.raises(InputError, match="outside the tomogram"):
        kinds.check((5, 20, 20))


def test_kinds_that_are_ranked_differently_are_not_compared(copied: Path) -> None:
    driver = Driver(copied, SerialExecutor())
    with pytest.raises(InputError, match="2 to 254 different names"):
        driver.segment(["big", "big"])
    driver.store.group("queries/small").attrs["settings"] = SIMILAR.model_dump(mode="json")
    with pytest.raises(StoreError, match="ranked differently"):
        driver.segment(["big", "small"])


def test_a_plan_counts_the_units_of_all_kinds(together: Path, tomogram: Path) -> None:
    store = RunStore.open(together)
    changed = {"match.count": 2}
    plan = planning.plan_run(
        open_tomogram(tomogram), settings_for("texture+random-walker", changed), planning.Options(diameter=140, kinds=2)
    )
    units = {one.name: one.units for one in plan.stages}
    for stage in ("query", "negative", "label"):
        names = [name for name in origin.stages(store) if name.partition("/")[0] == stage]
        assert units[stage] == sum(len(marks.done(store, name)) for name in names)
    assert plan.prompts == 2 * (1 + 2)
    alone = planning.plan_run(
        open_tomogram(tomogram), settings_for("texture+random-walker", changed), planning.Options(diameter=140)
    )
    assert "negative" not in {one.name for one in alone.stages}
    assert [s.units * 2 for s in alone.stages if s.name in ("match", "project", "query")] == [
        s.units for s in plan.stages if s.name in ("match", "project", "query")
    ]
    with pytest.raises(SettingsError, match="0 kinds"):
        planning.Options(kinds=0)


# --- one kind: as it always was ---


def test_a_run_of_one_kind_has_the_fingerprints_it_always_had() -> None:
    """Stores that were made before there were kinds go on: what their marks say is what stages say now."""
    chosen = preset("texture+random-walker", "texture", "random-walker")
    points = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    shape = (30, 48, 64)
    prompts = segment.plan(shape, chosen.propagation, "up", segment.PROMPTS, "a", points)
    proposals = segment.plan(shape, chosen.propagation, "up", segment.PROPOSALS, "a", points)
    assert prompts.fingerprint == PROMPTS
    assert proposals.fingerprint == PROPOSALS
    store = type("Store", (), {"shape": shape})()
    boxes = np.array([[0, 0, 0, 5, 5, 5], [2, 2, 2, 9, 9, 9]])
    assert label.plan(store, "a", boxes, [(0, 1, 2), (0, 0, 1)], "up").fingerprint == LABELS


PROMPTS = "21e750446dbb0a1fa5a76e542299d12c4eeaab9735645f9c8f79d1addb880f46"
PROPOSALS = "cd89122375ec21baba974d344b6a6434b19cac42aacd45ffcab6faec780172c4"
LABELS = "78473cbbeac404411ce3f7ab08499557f175a0be3ab5462b4acb51d72854c5dd"


def test_a_run_of_one_kind_has_no_trace_of_others(bare: Callable[..., Driver]) -> None:
    driver = bare()
    driver.query("big", BIG[:1], BUILTIN)
    driver.match("big")
    driver.segment("big")
    store = driver.store
    assert not {"negatives"} & set(store.names())
    assert sorted(store.names("picks/big")) == sorted(
        [*picks.COLUMNS, "position_z", "position_y", "position_x", "zarr.json"]
    )
    assert dict(store.group("picks/big").attrs) == {"segmented": len(places(Path(driver.url), "big")), "kept": 2}
    assert set(dict(store.group("queries/big").attrs)) == {"settings", "structure"}
    assert "against" not in (marks.found_stage(store, "segment/instances/big") or {})["settings"]
    assert "kinds" not in (marks.found_stage(store, "label/big") or {})["settings"]


# --- negative points ---


def test_negative_points_are_of_the_query_and_can_be_changed(bare: Callable[..., Driver]) -> None:
    driver = bare()
    driver.query("small", SMALL[:1], BUILTIN, BIG[:1])
    store = driver.store
    assert dict(store.group("queries/small").attrs)["negatives"] == BIG[:1]
    assert store.array("negatives/small/features").shape[0] == 1
    assert len(negative.profiles(store, "small")) >= 1
    with pytest.raises(StoreError, match="negatives: 12,11,11 → none"):
        bare().query("small", SMALL[:1], BUILTIN)
    again = bare(overwrite=True)
    again.query("small", SMALL[:1], BUILTIN, BIG)
    # what was clicked stays as it was segmented
    assert "segment/queries/small" not in ran(again)
    assert "query/small" not in ran(again)
    assert driver.store.array("negatives/small/features").shape[0] == 2
    again.query("small", SMALL[:1], BUILTIN)
    assert "negatives/small/features" not in driver.store


def test_in_the_published_ranking_the_mean_feature_decides(bare: Callable[..., Driver]) -> None:
    driver = bare()
    driver.query("small", SMALL[:1], SIMILAR, SMALL[1:2])
    driver.match("small")
    driver.segment("small")
    store = driver.store
    group = layout.group(layout.instances("small"), 0)
    rival, own = store.read(f"{group}/rival"), store.read(f"{group}/similarity")
    prompted = store.read(f"{group}/prompt") < 1
    kept = set(picks.read(store, "small")["member"])
    assert (rival > own).any()
    assert kept <= set(np.flatnonzero((own >= rival) | prompted))
    assert any("more similar to a negative" in note for note in driver.notes)
    # of the best K, some went to what is not wanted
    words = "they were among the best 8 places (match.count); with more, others may be found"
    assert words in driver.notes
    store.group(layout.proposals("small")).attrs[propose.FULL] = False
    assert words not in select.select(store, "small", 1, SIMILAR).notes


def test_a_negative_where_nothing_can_be_segmented_is_said_and_used(bare: Callable[..., Driver]) -> None:
    driver = bare()
    driver.query("big", BIG[:1], BUILTIN, [[24.0, 40.0, 2.0]])
    assert driver.store.array("negatives/big/points").shape == (1, 3)
    found = driver.store.array("negatives/big/features").shape[0]
    assert found == 1 or any("negative point 24,40,2" in note for note in driver.notes)
    assert len(negative.profiles(driver.store, "big")) >= 1
    with pytest.raises(InputError, match="outside"):
        driver.query("other", BIG[:1], BUILTIN, [[99.0, 0.0, 0.0]])


def profiles_of(rng: np.random.Generator, level: float, count: int) -> np.ndarray:
    return level * np.ones((count, 8)) + 0.3 * rng.normal(size=(count, 8))


@pytest.mark.parametrize("present", [True, False])
def test_look_alikes_are_told_from_the_kind_and_do_not_teach_it(present: bool) -> None:
    """A kind at level 2 and a look-alike at 2.6, with and without any of the kind."""
    rng = np.random.default_rng(0)
    kind, like = profiles_of(rng, 2.0, 20 if present else 0), profiles_of(rng, 2.6, 30)
    noise = profiles_of(rng, 0.0, 200)
    every, at = np.concatenate([kind, like, noise]), rng.uniform(0, 1000, (len(kind) + 230, 3))
    clicked, unwanted = profiles_of(rng, 2.0, 1), profiles_of(rng, 2.6, 2)
    background = profiles_of(rng, 0.0, 300)
    without = likeness.distances(at, every, clicked, background, 1.0, background)
    told = likeness.distances(at, every, clicked, background, 1.0, background, unwanted)
    n = len(kind)
    assert np.isinf(told[n : n + 30]).mean() > 0.8
    assert np.isfinite(told[:n]).mean() > 0.9 if present else True
    assert np.isfinite(without).all()
    assert (likeness.distances(at, every, clicked, background, 1.0, background, unwanted[:0]) == without).all()


# --- of several kinds, the best ---


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.5, 0.8, 1.0]))
def test_of_one_place_the_best_stays_and_the_runner_up_is_known(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 12, (14, 3))
    boxes = np.concatenate([low, low + rng.integers(2, 7, (14, 3))], axis=1)
    masks = [rng.random(b[3:] - b[:3]) < 0.8 for b in boxes]
    for mask in masks:
        mask[0, 0, 0] = True
    sizes, scores = np.array([m.sum() for m in masks]), rng.random(14).astype(np.float32)
    kinds = rng.integers(0, 3, 14)
    met: list[tuple[int, int]] = []
    kept = merging.distinct(
        boxes, sizes, scores, masks.__getitem__, share, kinds=kinds, met=lambda i, j: met.append((i, j))
    )
    assert kept.tolist() == merging.distinct(boxes, sizes, scores, masks.__getitem__, share).tolist()
    full = np.zeros((14, 20, 20, 20), bool)
    for i, (box, mask) in enumerate(zip(boxes, masks, strict=True)):
        full[i, box[0] : box[3], box[1] : box[4], box[2] : box[5]] = mask
    for better, worse in met:
        assert better in kept
        assert scores[better] > scores[worse]
        assert kinds[better] != kinds[worse]
        assert (full[better] & full[worse]).sum() > share * min(sizes[better], sizes[worse])


def synthetic(url: Path, scores: dict[str, list[float]], boxes: dict[str, list[list[int]]]) -> RunStore:
    """A store with solid boxes as instances of each kind, ranked by similarity."""
    store = RunStore.create(url, {"shape": [32, 40, 48], "voxel_size": [10.0] * 3, "origin": [0.0] * 3})
    for name, found in scores.items():
        own = boxes[name]
        masks = [np.ones([b[i + 3] - b[i] for i in range(3)], bool) for b in own]
        collected = stored.collect(list(range(len(own))), own, masks, [1.0] * len(own), found)
        stored.write(store, layout.group(layout.instances(name), 0), collected)
        store.group(layout.proposals(name)).attrs["given"] = 0
    return store


def test_contested_voxels_go_to_the_better_kind(tmp_path: Path) -> None:
    boxes = {
        "a": [[2, 2, 2, 10, 10, 10], [2, 2, 20, 10, 10, 30], [20, 2, 2, 28, 10, 10]],
        "b": [[2, 2, 3, 10, 10, 10], [2, 2, 26, 10, 10, 36], [20, 20, 20, 28, 28, 28]],
    }
    scores = {"a": [0.9, 0.6, 0.5], "b": [0.8, 0.7, 0.4]}
    store = synthetic(tmp_path / "s.zarr", scores, boxes)
    chosen = select.compete(store, {"a": 1, "b": 1}, {"a": SIMILAR, "b": SIMILAR})
    a, b = chosen
    assert a.table["score"].tolist() == pytest.approx([0.9, 0.6, 0.5])
    assert b.table["score"].tolist() == pytest.approx([0.7, 0.4])  # the first lies in a better one of a
    assert a.table["second"].tolist() == [2, 0, 0]
    assert a.table["margin"].tolist() == pytest.approx([0.1, 0.6, 0.5], abs=1e-6)
    painted = {}
    for one in [*chosen, None]:
        name = layout.KINDS if one is None else one.name
        boxes_, sources = select.combined(chosen) if one is None else (one.boxes, one.sources)
        stage = label.plan(store, name, boxes_, sources, "", ["a", "b"])
        label.prepare(store, name, ["a", "b"])
        for unit in stage.units:
            label.work(Context(store.url), stage.settings, unit)
        painted[name] = store.read(layout.labels(name))
    assert not ((painted["a"] > 0) & (painted["b"] > 0)).any()
    assert (painted["kinds"] == (painted["a"] > 0) + 2 * (painted["b"] > 0)).all()
    assert (painted["a"][2:10, 2:10, 20:30] > 0).sum() == 8 * 8 * 6  # four columns are of the better one of b
    assert (painted["b"][2:10, 2:10, 26:36] > 0).all()
    assert sorted(np.unique(painted["b"])) == [0, 1, 2]


# --- queries in files ---


@pytest.fixture(scope="module")
def files(together: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("queries")
    for name in CLICKS:
        outputs.export(together, folder / f"{name}.json", what="query", name=name)
    return {name: folder / f"{name}.json" for name in CLICKS}


def test_a_file_is_the_query(files: dict[str, Path], together: Path) -> None:
    loan, there = query_file.read(files["big"]), borrow.take(RunStore.open(together), "big")
    assert loan.params == there.params
    assert loan.origin == there.origin
    assert loan.settings == there.settings
    assert (loan.name, loan.weights, loan.voxel_size) == (there.name, there.weights, there.voxel_size)
    assert loan.origin["negatives"] == CLICKS["small"]
    assert len(loan.params["negative_profiles"]) >= 1
    assert files["big"].stat().st_size < 100_000


def test_what_a_file_says_of_itself_is_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    about = json.loads(files["big"].read_text())
    about["origin"]["tomogram"] = "a.mrc\n\x1b[2J"
    del about["sha256"]
    about["sha256"] = query_file._digest(about)
    (tmp_path / "q.json").write_text(json.dumps(about))
    assert query_file.read(tmp_path / "q.json").origin["tomogram"].isprintable()
    (tmp_path / "q.json").write_text(json.dumps(about | {"version": "1\n\x1b[2J"}))
    with pytest.raises(InputError) as error:
        query_file.read(tmp_path / "q.json")
    assert str(error.value).isprintable()


def test_files_find_both_kinds_in_another_tomogram(
    files: dict[str, Path], together: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other, out = write_balls(tmp_path / "other.mrc", seed=5), tmp_path / "other.zarr"
    loans = take(list(files.values()), None)
    loans["small"] = replace(loans["small"], settings=BUILTIN.replace({"match.tau_sim": 0.1}))
    made = go(other, out, query=loans, settings=None)
    differing = "(match.tau_sim: 0.1 → 0.0)"
    assert f"small: searched for as the others, not as where the query is from {differing}" in made.notes
    assert places(out, "big") == centres(BIG)
    assert places(out, "small") == centres(SMALL)
    assert ran(go(other, out, query=together, name=["big", "small"], settings=None)) == {}
    described = outputs.describe(out)
    assert described["queries"]["big"]["from"]["negatives"] == CLICKS["small"]
    lent_on = borrow.take(RunStore.open(out), "small")
    assert np.allclose(lent_on.params["negative_profiles"], query_file.read(files["small"]).params["negative_profiles"])
    assert not caplog.messages
    # a negative point that was added here is not of the query, and whoever takes it is told
    Driver(out, SerialExecutor(), overwrite=True).borrow("small", files["small"], None, BIG[1:])
    assert borrow.take(RunStore.open(out), "small").params == lent_on.params
    assert "negative points that it was given there are not lent on" in caplog.text


def test_a_query_whose_negatives_are_not_finished_is_not_lent(copied: Path) -> None:
    (copied / "marks/negative/big/c/0").unlink()
    with pytest.raises(StoreError, match="no finished query called 'big'"):
        borrow.take(RunStore.open(copied), "big")
    with pytest.raises(StoreError, match="negative points of 'big' are not finished"):
        Driver(copied, SerialExecutor()).match("big")


def test_names_of_borrowed_queries(files: dict[str, Path], together: Path) -> None:
    assert list(take(list(files.values()), None)) == ["big", "small"]
    assert list(take(files["big"], ["mine"])) == ["mine"]
    assert list(take(together, ["small", "big"])) == ["small", "big"]
    with pytest.raises(StoreError, match="no finished query called 'particle'"):
        take(together, None)
    with pytest.raises(InputError, match="two queries called 'big'; take both from files"):
        take([files["big"], files["big"]], None)
    assert list(take([files["big"], files["big"]], ["mine", "yours"])) == ["mine", "yours"]
    with pytest.raises(InputError, match="3 names of 2 files"):
        take(list(files.values()), ["a", "b", "c"])


def _change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(about: dict[str, Any]) -> None:
        part = about
        *path, last = key.split(".")
        for step in path:
            part = part[step]
        part[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change("format", "other"), "not a query of cryosam_dask"),
        (_change("version", 2), "version 2, this program reads 1"),
        (_change("name", "../x"), "can't be used"),
        (_change("name", 5), "its name is no text"),
        (_change("settings", {}), "settings that can't be"),
        (_change("weights", {"features": 1}), "weights"),
        (_change("weights", {"other": "x"}), "weights of models"),
        (_change("voxel_size", [10, 0, 10]), "voxel size"),
        (_change("voxel_size", "x"), "voxel_size is not made of numbers"),
        (_change("origin", {}), "where it is from"),
        (_change("origin.points", [[1, 2]]), "not positions"),
        (_change("params", []), "not those of a query"),
        (_change("params.extra", 1), "not those of a query"),
        (_change("params.feature", [[1]]), "feature is not made of finite numbers"),
        (_change("params.feature", [1, [2]]), "feature is not made of numbers"),
        (_change("params.sizes", [0.5]), "sizes are not whole"),
        (_change("params.radius", -1), "profiles are not complete"),
        (_change("params.radius", 1), "profiles are not of particles of its radius"),
        (_change("params.profiles", [[1.0, 2.0]]), "profiles have 2 numbers"),
        (_change("params.negative_profiles", [[1.0]]), "negative_profiles have 1 numbers"),
        (_change("params.negative_features", [[1.0]]), "other channels"),
    ],
)
def test_a_file_is_checked_whoever_signed_it(
    change: Callable[[dict[str, Any]], None], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    about = json.loads(files["big"].read_text())
    change(about)
    (tmp_path / "damaged.json").write_text(json.dumps(about))
    with pytest.raises(CryosamError, match=r"damaged|not a query|version"):
        query_file.read(tmp_path / "damaged.json")
    del about["sha256"]
    about["sha256"] = query_file._digest(about)
    (tmp_path / "signed.json").write_text(json.dumps(about))
    with pytest.raises(CryosamError, match=message) as error:
        query_file.read(tmp_path / "signed.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"\xff\xfe", "not text"),
        (b"[]", "not a query"),
        (b"9" * 5000, "not JSON"),
    ],
)
def test_what_is_no_query_is_one_line(raw: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_bytes(raw)
    with pytest.raises(InputError, match=message):
        query_file.read(tmp_path / "q.json")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "q.json").open("wb") as file:
        file.truncate(query_file.MOST_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    with pytest.raises(InputError, match="a query has at most"):
        query_file.read(tmp_path / "q.json")
    with pytest.raises(InputError, match="no such file"):
        query_file.read(tmp_path / "none.json")


def test_a_signed_link_to_a_file_is_read_and_its_signature_never_shown(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = files["big"].read_text()
    monkeypatch.setattr(query_file, "_text", lambda url: text)
    (loan,) = take("https://host/big.json?signature=secret", None).values()
    assert (loan.name, loan.url) == ("big", "https://host/big.json")


# --- commands ---


def test_the_commands_stage_by_stage(bare: Callable[..., Driver], together: Path) -> None:
    run = bare().url
    for words in (
        ["query", run, "--kind", "big=12,11,11", "--kind", "small=12,12,32", "--models", "texture+random-walker"],
        ["match", run, "--name", "big", "--name", "small"],
        ["segment", run, "--name", "big", "--name", "small"],
    ):
        result = CliRunner().invoke(app, [*words, "--workers", "0"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert contents(Path(run)) == contents(together)
    assert "2 instances of 'big'" in result.output
    assert "3 instances of 'small'" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "big"], "expected NAME=Z,Y,X"),
        (["--kind", "big=1,2"], "expected three numbers"),
        (["--kind", "big=1,2,3", "--point", "1,2,3"], "not both"),
        (["--point", "1,2,3", "--not", "1,2"], "--not 1,2: expected three numbers"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], message: str, tomogram: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    result = CliRunner().invoke(
        app, ["run", str(tomogram), "--out", str(out), "--models", "texture+random-walker", *words]
    )
    assert isinstance(result.exception, CryosamError)
    assert message in str(result.exception)
    assert not out.exists()


def test_a_point_without_a_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("z,y,x,kind\n12,11,11,big\n12,12,32,\n")
    with pytest.raises(InputError, match=r"clicks.csv: the point 12,12,32 has no kind"):
        Prompts(kinds=tmp_path / "clicks.csv").by_kind()


def test_kinds_of_a_file_in_several_tomograms(tomogram: Path, tmp_path: Path) -> None:
    clicks = tmp_path / "clicks.csv"
    rows = [f"{z},{y},{x},{kind}" for kind, points in CLICKS.items() for z, y, x in points]
    clicks.write_text("\n".join(["z,y,x,kind", *rows]))
    other, out = write_balls(tmp_path / "other.mrc", seed=3, small=False), tmp_path / "out"
    words = [
        "run",
        str(tomogram),
        str(other),
        "--out",
        str(out),
        "--kinds",
        str(clicks),
        "--models",
        "texture+random-walker",
    ]
    result = CliRunner().invoke(app, [*words, "--workers", "0"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "2 tomograms: 2 done; 7 instances" in result.output  # and none of the small ones where there are none
    table = read_points(out / "picks.csv", tomogram_name="*", kind="*")
    assert table.groupby(["tomogram", "kind"]).size().to_dict() == {
        ("balls", "big"): 2, ("balls", "small"): 3, ("other", "big"): 2,
    }  # fmt: skip
    assert len(read_points(out / "picks_big.star", tomogram_name="*")) == 4
    summary = run_many([tomogram, other], CLICKS, out, settings=BUILTIN, executor=SerialExecutor())
    assert [row.status for row in summary.rows] == ["skipped", "skipped"]
