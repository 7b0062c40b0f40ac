"""A query of one run used in another: what is found, what is refused, and what is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import zarr

import cryosam_dask as cs
from cryosam_dask import outputs
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.executors import DaskExecutor, LocalWorkers
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.kernels import likeness
from cryosam_dask.kernels.peaks import auto_cut
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.stages import borrow, rank
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore

NAME = "ball"
CLICK = [11, 12, 12]
OTHERS = ((12, 26, 34),)
SETTINGS = settings_for("texture+random-walker")


def write_tomogram(path: Path, seed: int, *, noise: float = 1.0, scale: float = 1.0, offset: float = 0.0) -> Path:
    """A small tomogram with a bright ball at `CLICK` and at each of `OTHERS`."""
    shape = (24, 40, 48)
    z, y, x = np.indices(shape)
    values = noise * np.random.default_rng(seed).normal(size=shape)
    for a, b, c in (CLICK, *OTHERS):
        values += 3.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 36)
    with mrcfile.new(path, (scale * values + offset).astype(np.float32)) as file:
        file.voxel_size = 10
    return path


def driver(url: Path, **options: Any) -> Driver:
    return Driver(url, SerialExecutor(), **options)


def apply(tomogram: Path, donor: Path, out: Path, **options: Any) -> Driver:
    return cs.run(tomogram, None, out, query=donor, name=NAME, **{"workers": 0, **options})


def missed(run: Path) -> list[tuple[int, int, int]]:
    """The balls that no pick is within 3 voxels of."""
    points = picks.read(RunStore.open(run), NAME)[["z", "y", "x"]].to_numpy()
    centres = [(CLICK[0], CLICK[1], CLICK[2]), *OTHERS]
    return [c for c in centres if not len(points) or np.linalg.norm(points - c, axis=1).min() >= 3]


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has come as far as its query. Tests must not change it."""
    folder = tmp_path_factory.mktemp("donor")
    own = driver(folder / "donor.zarr")
    own.ingest(write_tomogram(folder / "clicked.mrc", 0))
    own.features(SETTINGS)
    own.query(NAME, [CLICK], SETTINGS)
    return folder / "donor.zarr"


@pytest.fixture(scope="module")
def tomogram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tomogram(tmp_path_factory.mktemp("other") / "other.mrc", 1)


@pytest.fixture(scope="module")
def applied(donor: Path, tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The donor's query applied to the other tomogram. Tests must not change it."""
    out = tmp_path_factory.mktemp("applied") / "applied.zarr"
    apply(tomogram, donor, out)
    return out


@pytest.fixture
def copied(applied: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(applied, tmp_path / "copied.zarr"))


@pytest.fixture(scope="module")
def bare(tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Driver]:
    """`bare(folder)`: the driver of a run of the other tomogram that has features and no query."""
    made = tmp_path_factory.mktemp("bare") / "bare.zarr"
    first = driver(made)
    first.ingest(tomogram)
    first.features(SETTINGS)
    return lambda folder: driver(Path(shutil.copytree(made, folder / "bare.zarr")))


# --- what is found ---


def test_the_particle_is_found_in_another_tomogram(applied: Path) -> None:
    assert missed(applied) == []
    table = picks.read(RunStore.open(applied), NAME)
    assert len(table) == 2
    labels = RunStore.open(applied).read(layout.labels(NAME))
    assert len(np.unique(labels)) == 3


def test_no_prompt_is_claimed_to_lie_here(applied: Path) -> None:
    store = RunStore.open(applied)
    assert store.read(f"{layout.query(NAME)}/points").shape == (0, 3)
    assert not picks.read(store, NAME)["prompted"].any()


def test_the_store_says_where_the_query_is_from(applied: Path, donor: Path) -> None:
    origin = borrow.origin(RunStore.open(applied), NAME)
    assert origin is not None
    assert {k: v for k, v in origin.items() if k != "digest"} == {
        "tomogram": "clicked.mrc",
        "query": NAME,
        "points": [CLICK],
    }
    texts = [path.read_text() for path in (applied / "queries").rglob("zarr.json")]
    assert not any(str(donor.parent) in text for text in texts)
    assert borrow.origin(RunStore.open(donor), NAME) is None
    assert borrow.origin(RunStore.open(donor), "none") is None


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_it_is_found_where_noise_and_grey_values_differ(noise: float, donor: Path, tmp_path: Path) -> None:
    """Grey values are anybody's; with less noise a particle stands out more against their deviation."""
    other = write_tomogram(tmp_path / "t.mrc", 1, noise=noise, scale=250.0, offset=-4000.0)
    apply(other, donor, tmp_path / "r.zarr")
    assert missed(tmp_path / "r.zarr") == []
    assert len(picks.read(RunStore.open(tmp_path / "r.zarr"), NAME)) <= 3


def test_profiles_come_in_this_tomograms_grey_values(
    donor: Path, bare: Callable[[Path], Driver], tmp_path: Path
) -> None:
    taker = bare(tmp_path)
    taker.borrow(NAME, donor)
    there, here = RunStore.open(donor), taker.store
    for array in ("profiles", "unmoved", "template"):
        own, taken = (np.asarray(store.read(f"queries/{NAME}/{array}"), float) for store in (there, here))
        shells = own.shape[-1] // 2
        a, b = (store.info["statistics"] for store in (there, here))
        standard = (own[..., :shells] - a["mean"]) / a["std"]
        assert (taken[..., :shells] - b["mean"]) / b["std"] == pytest.approx(standard)
        assert taken[..., shells:] / b["std"] == pytest.approx(own[..., shells:] / a["std"])
    assert rank.query_radius(here, NAME) == rank.query_radius(there, NAME)


@pytest.mark.parametrize("like", [1, 2, 6])
@pytest.mark.parametrize("contrast", [0.5, 1.0, 2.0])
def test_the_contrast_is_found_from_one_of_a_kind(contrast: float, like: int) -> None:
    rng = np.random.default_rng(3)
    query = np.array([3.0, 2.0, 1.0, 0.0, 1.0, 0.8, 0.5, 0.2])
    level = np.array([5.0] * 4 + [0.0] * 4)
    noise, fitted = (rng.normal(scale=0.1, size=(200, 8)) + level for _ in range(2))
    found = rng.normal(scale=0.1, size=(like, 8)) + level + contrast * query
    profiles = np.concatenate([found, rng.normal(scale=0.1, size=(50, 8)) + level])
    centres = rng.uniform(0, 500, (len(profiles), 3))
    options = [(level + query)[None]]
    best, _ = likeness.best_contrasted(centres, profiles, options, list(borrow.CONTRASTS), 5.0, noise, 1.0, fitted)
    assert best == pytest.approx((level + contrast * query)[None])


def test_no_contrast_makes_noise_alike() -> None:
    rng = np.random.default_rng(3)
    noise, fitted, profiles = (rng.normal(size=(200, 8)) for _ in range(3))
    centres, query, contrasts = rng.uniform(0, 500, (200, 3)), 5.0 * np.ones((1, 8)), list(borrow.CONTRASTS)
    best, _ = likeness.best_contrasted(centres, profiles, [query], contrasts, 0.0, noise, 1.0, fitted)
    distance = likeness.distances(centres, profiles, best, noise, 1.0, fitted)
    assert (likeness.similarity(distance) >= auto_cut(likeness.similarity(distance)).threshold).mean() < 0.05
    empty, _ = likeness.best_contrasted(np.empty((0, 3)), np.empty((0, 8)), [query], [2.0], 0.0, noise, 1.0, fitted)
    assert empty[0, :4] == pytest.approx(2 * query[0, :4])


def test_workers_give_the_same_bytes(
    applied: Path, donor: Path, bare: Callable[[Path], Driver], tmp_path: Path
) -> None:
    out = Path(bare(tmp_path).url)
    with DaskExecutor(LocalWorkers(2)) as executor:
        taker = Driver(out, executor)
        taker.borrow(NAME, donor)
        taker.match(NAME)
        taker.segment(NAME)

    def contents(run: Path) -> dict[str, bytes]:
        files = (p for p in sorted(run.rglob("c/**/*")) if p.is_file() and "marks" not in p.parts)
        return {str(p.relative_to(run)): p.read_bytes() for p in files}

    one, other = contents(applied), contents(out)
    assert one.keys() == other.keys()
    assert [path for path in one if one[path] != other[path]] == []


def test_a_borrowed_query_can_be_lent_on(
    applied: Path, donor: Path, bare: Callable[[Path], Driver], tmp_path: Path
) -> None:
    third = bare(tmp_path)
    third.borrow(NAME, applied)
    origin = borrow.origin(third.store, NAME)
    assert origin is not None
    assert origin["tomogram"] == "clicked.mrc"
    assert origin["points"] == [CLICK]
    assert (third.store.read(f"queries/{NAME}/feature") == RunStore.open(donor).read(f"queries/{NAME}/feature")).all()


def test_several_queries_of_several_donors_share_the_features(
    applied: Path, donor: Path, tomogram: Path, tmp_path: Path
) -> None:
    second = Path(shutil.copytree(donor, tmp_path / "second.zarr"))
    driver(second).query("two", [OTHERS[0]], SETTINGS)
    run = Path(shutil.copytree(applied, tmp_path / "run.zarr"))
    made = cs.run(tomogram, None, run, query=second, name="two", workers=0)
    assert not made.timings["features"]
    assert picks.names(RunStore.open(run)) == [NAME, "two"]


def test_none_of_the_kind_is_a_result(donor: Path, bare: Callable[[Path], Driver], tmp_path: Path) -> None:
    nothing = bare(tmp_path)
    nothing.borrow(NAME, donor, SETTINGS.replace({"match.tau_sim": 0.99}))
    nothing.match(NAME)
    nothing.segment(NAME)
    assert any("nothing here reaches match.tau_sim = 0.99" in note for note in nothing.notes)
    assert len(picks.read(nothing.store, NAME)) == 0
    assert not nothing.store.read(layout.labels(NAME)).any()
    outputs.export(nothing.url, tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text() == "z,y,x,score,instance\n"
    again = driver(Path(nothing.url))
    again.match(NAME)
    again.segment(NAME)
    assert not any(again.timings.values())


def test_the_published_ranking_needs_no_profiles(bare: Callable[[Path], Driver], donor: Path, tmp_path: Path) -> None:
    settings = SETTINGS.replace({"match.rank": "similarity", "match.count": 3, "match.ratios": [16, 4]})
    taker = bare(tmp_path)
    taker.borrow(NAME, donor, settings)
    taker.match(NAME)
    taker.segment(NAME)
    assert 1 <= len(picks.read(taker.store, NAME)) <= 3
    with pytest.raises(StoreError, match=r"match.rank: similarity → profile"):
        driver(tmp_path / "bare.zarr").borrow(NAME, _published(donor, tmp_path), SETTINGS)


def _published(donor: Path, folder: Path) -> Path:
    copy = Path(shutil.copytree(donor, folder / "published.zarr"))
    driver(copy, overwrite=True).query(NAME, [CLICK], SETTINGS.replace({"match.rank": "similarity"}))
    return copy


# --- going on ---


def test_the_same_command_again_runs_nothing(copied: Path, donor: Path, tomogram: Path) -> None:
    assert not any(apply(tomogram, donor, copied).timings.values())


def test_a_changed_donor_is_noticed(copied: Path, donor: Path, tomogram: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(donor, tmp_path / "changed.zarr"))
    driver(changed, overwrite=True).query(NAME, [OTHERS[0]], SETTINGS)
    before = RunStore.open(copied).read(layout.labels(NAME))
    with pytest.raises(
        StoreError, match=r"changed.zarr: query 'ball' has changed since .*copied.zarr was made with it"
    ):
        apply(tomogram, changed, copied)
    assert (RunStore.open(copied).read(layout.labels(NAME)) == before).all()
    assert not any(apply(tomogram, donor, copied).timings.values())
    made = apply(tomogram, changed, copied, overwrite=True)
    assert not made.timings["features"]
    assert made.timings[f"query/{NAME}"]
    assert missed(copied) == []
    origin = borrow.origin(RunStore.open(copied), NAME)
    assert origin is not None
    assert origin["points"] == [[float(v) for v in OTHERS[0]]]


def test_another_donor_is_noticed(copied: Path, donor: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(donor, tmp_path / "second.zarr"))
    store = RunStore.open(other, "r+")
    store.update_info(input={**store.info["input"], "name": "second.mrc"})
    store.array(f"queries/{NAME}/feature")[0] = 0.5
    with pytest.raises(StoreError, match=r"query 'ball' is from clicked.mrc, not from second.mrc"):
        driver(copied).borrow(NAME, other)


def test_points_and_loans_do_not_replace_each_other(
    copied: Path, donor: Path, bare: Callable[[Path], Driver], tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"query 'ball' was taken from a run of clicked.mrc; use another --name"):
        driver(copied).query(NAME, [CLICK], SETTINGS)
    assert missed(copied) == []
    own = bare(tmp_path)
    own.query(NAME, [CLICK], SETTINGS)
    with pytest.raises(StoreError, match=r"query 'ball' was made from points in this tomogram; use another --name"):
        own.borrow(NAME, donor)
    with pytest.raises(StoreError, match="was made from points in this tomogram"):
        own.borrow(NAME, own.url)
    driver(Path(own.url), overwrite=True).borrow(NAME, donor)
    assert borrow.origin(own.store, NAME) is not None
    own.store.delete(layout.marks(f"query/{NAME}"))  # as if it was interrupted before its only unit
    driver(Path(own.url), overwrite=True).query(NAME, [CLICK], SETTINGS)
    assert borrow.origin(own.store, NAME) is None


# --- what is refused, before anything is written ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features.thickness": 3}, r"other settings \(features.thickness: 5 → 3\)"),
        ({"features.standardize": "none"}, r"features.standardize: whiten → none"),
        (
            {"propagation.plane_thickness": 3, "propagation.tau_iou": 0.5},
            r"plane_thickness: 5 → 3; propagation.tau_iou",
        ),
    ],
)
def test_other_settings_are_refused_by_name(
    changes: dict[str, Any], message: str, donor: Path, tomogram: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=message):
        apply(tomogram, donor, tmp_path / "r.zarr", settings=SETTINGS.replace(changes))
    assert not (tmp_path / "r.zarr").exists()


def test_settings_of_work_alone_may_differ(donor: Path) -> None:
    loan = borrow.take(RunStore.open(donor), NAME)
    changes = {"features.batch": 1, "propagation.group": 2, "features.dense_ratios": [], "match.tau_sim": 0.3}
    borrow.check(loan, SETTINGS.replace(changes), (10.0, 10.0, 10.0), "t.mrc")


def test_other_weights_are_refused(donor: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(donor, tmp_path / "donor.zarr")
    array = zarr.open_array(copy, path=layout.marks("features"), mode="r+")
    array.attrs["settings"] = {**dict(array.attrs["settings"]), "weights": "texture:old"}  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=r"features.weights: texture:old → "):
        borrow.check(borrow.take(RunStore.open(copy), NAME), SETTINGS, (10.0, 10.0, 10.0), "t.mrc")
    loan = borrow.take(RunStore.open(donor), NAME)
    short = replace(loan, params={**loan.params, "feature": [1.0, 2.0]})
    with pytest.raises(StoreError, match=r"the feature of query 'ball' has 2 numbers, expected \d+ from texture"):
        borrow.check(short, SETTINGS, (10.0, 10.0, 10.0), "t.mrc")


@pytest.mark.parametrize(("size", "fits"), [(10.0, True), (10.15, True), (9.85, True), (10.3, False), (20.0, False)])
def test_voxel_sizes_must_agree(size: float, fits: bool, donor: Path) -> None:
    loan = borrow.take(RunStore.open(donor), NAME)
    if fits:
        borrow.check(loan, SETTINGS, (10.0, size, 10.0), "t.mrc")
        return
    with pytest.raises(StoreError, match=rf"t.mrc: its voxels are of 10 × {size:g} × 10 Å, .*within 2%"):
        borrow.check(loan, SETTINGS, (10.0, size, 10.0), "t.mrc")


def test_a_voxel_size_is_refused_before_anything_is_written(donor: Path, tomogram: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"other.mrc: its voxels are of 5 × 5 × 5 Å"):
        apply(tomogram, donor, tmp_path / "r.zarr", voxel_size=5)
    assert not (tmp_path / "r.zarr").exists()


def test_a_run_without_that_query_is_no_donor(donor: Path, tomogram: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no finished query called 'wall' \(there are: ball\)"):
        cs.run(tomogram, None, tmp_path / "r.zarr", query=donor, name="wall", workers=0)
    unfinished = RunStore.open(shutil.copytree(donor, tmp_path / "half.zarr"), "r+")
    unfinished.delete(layout.marks(f"query/{NAME}"))
    with pytest.raises(StoreError, match="no finished query called 'ball'"):
        borrow.take(unfinished, NAME)
    with pytest.raises(StoreError, match="no run found here"):
        apply(tomogram, tmp_path / "nowhere.zarr", tmp_path / "r.zarr")
    assert not (tmp_path / "r.zarr").exists()


def test_either_points_or_a_donor(donor: Path, tomogram: Path, tmp_path: Path) -> None:
    for points, query in (([CLICK], donor), (None, None)):
        with pytest.raises(InputError, match="give points in the tomogram, or a run to take the query from"):
            cs.run(tomogram, points, tmp_path / "r.zarr", query=query, name=NAME, workers=0)


def test_a_loan_is_plain_numbers(donor: Path) -> None:
    """It travels to workers and could be written down."""
    loan = borrow.take(RunStore.open(donor), NAME)
    again = json.loads(json.dumps({**loan.params, **loan.origin}))
    assert again == {**loan.params, **loan.origin}
    assert borrow.take(RunStore.open(donor), NAME).origin == loan.origin
