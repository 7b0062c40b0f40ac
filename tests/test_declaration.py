"""A declared stage runs, resumes, is verified, repaired, planned, reported and overwritten by its declaration alone."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from faults.whole_run import NAME, POINT, differences, settings, whole_run

from cryosam_dask import geometry, outputs, planning
from cryosam_dask.errors import StoreError
from cryosam_dask.executors import SerialExecutor
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.pipeline import Driver, integrity
from cryosam_dask.report import facts
from cryosam_dask.settings import Settings
from cryosam_dask.stages import chain
from cryosam_dask.stages.base import Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import cost, written
from cryosam_dask.stages.declaration import Arrays, Declaration
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import open_run
from cryosam_dask.types import Json

SLAB = 10
POWER = 2
CALLS: list[str] = []


def brightness(name: str) -> str:
    return f"brightness/{name}"


def values(name: str) -> str:
    return f"{brightness(name)}/mean"


def plan(store: RunStore, settings: Settings, query: str, upstream: str) -> Stage:
    units = [
        Unit(
            f"slices {a}:{b}", (i,), {"slices": [a, b]}, writes=(Region(values(query), (i,), (i + 1,)),), memory=1 << 20
        )
        for i, (a, b) in enumerate(geometry.slabs(store.shape[0], SLAB))
    ]
    described = {"name": query, "power": POWER}
    return Stage(STAGE.stage_name(query), work, described, upstream, tuple(units), len(units))


def prepare(store: RunStore, settings: Settings, query: str) -> None:
    count = len(geometry.slabs(store.shape[0], SLAB))
    store.new_array(values(query), shape=(count,), dtype="float64", chunks=(1,), dims=("slab",))


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    CALLS.append(unit.name)
    a, b = unit.params["slices"]
    voxels = context.store.read(layout.tomogram(), slice(a, b)).astype(float)
    context.store.array(values(settings["name"]))[unit.marks[0]] = (voxels ** settings["power"]).mean()
    return None


STAGE = Declaration(
    "brightness",
    "segment",
    words="Brightness of slabs",
    per="query",
    made_from=("label",),
    arrays=(Arrays(layout.pattern(values), "stage", lambda store, path: lambda index: index[0], "brightness"),),
    expected=lambda store, query, settings, done: [(values(query), None)],
    places=lambda store, query: (brightness(query),),
    plan=plan,
    prepare=prepare,
    cost=lambda bench, unit: cost(1000, 8 * written(unit), 3.0, "tomogram"),
)


@pytest.fixture(autouse=True)
def _declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "STAGES", (*chain.STAGES, STAGE))
    CALLS.clear()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ball_tomogram: Path) -> Path:
    """A run with the stage."""
    out = tmp_path_factory.mktemp("declared") / "run.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "STAGES", (*chain.STAGES, STAGE))
        whole_run(ball_tomogram, out, SerialExecutor())
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run.zarr"))


def expected(run: Path, power: int = 2) -> np.ndarray:
    voxels = RunStore.open(run).read(layout.tomogram()).astype(float)
    return np.array([(voxels[a:b] ** power).mean() for a, b in geometry.slabs(len(voxels), SLAB)])


def stored(run: Path) -> np.ndarray:
    return np.asarray(RunStore.open(run).read(values(NAME)))


def again(tomogram: Path, run: Path, **options: bool) -> Driver:
    driver = Driver(run, SerialExecutor(), **options)
    with driver.command("run"):
        driver.ingest(tomogram)
        driver.features(settings())
        driver.query(NAME, [POINT], settings())
        driver.match(NAME)
        driver.segment(NAME)
    return driver


def test_it_runs_and_is_part_of_the_results(run: Path) -> None:
    np.testing.assert_allclose(stored(run), expected(run), rtol=1e-12)
    assert open_run(run)[brightness(NAME)]["mean"].dims == ("slab",)
    stages = outputs.describe(run)["stages"]
    assert stages[f"brightness/{NAME}"] == {"done": 4, "units": 4}
    assert f"brightness/{NAME}: 4 of 4 units" in outputs.describe_in_words(outputs.describe(run))


def test_it_resumes(run: Path, ball_tomogram: Path) -> None:
    again(ball_tomogram, run)
    assert CALLS == [], "finished units do not run again"
    store = RunStore.open(run, "r+")
    store.delete(f"{layout.marks(STAGE.stage_name(NAME))}/c/1")
    again(ball_tomogram, run)
    assert CALLS == ["slices 10:20"]


def test_it_is_verified_and_repaired(run: Path, finished: Path, ball_tomogram: Path) -> None:
    chunk = run / values(NAME) / "c" / "2"
    chunk.unlink()
    report = integrity.verify(run)
    assert [(d.array, d.stage, d.unit) for d in report.damages] == [(values(NAME), f"brightness/{NAME}", 2)]
    with pytest.raises(StoreError, match=f"brightness/{NAME} unit 2"):
        again(ball_tomogram, run)
    assert integrity.repair(run, report).units == {f"brightness/{NAME}": 1}
    again(ball_tomogram, run)
    assert CALLS == ["slices 20:30"]
    assert integrity.verify(run).sound
    assert not differences(run, finished)


def test_a_lost_array_is_made_again(run: Path, finished: Path, ball_tomogram: Path) -> None:
    RunStore.open(run, "r+").delete(values(NAME))
    report = integrity.verify(run)
    assert [(d.array, d.kind) for d in report.damages] == [(values(NAME), "missing")]
    assert integrity.repair(run, report).stages == [f"brightness/{NAME}"]
    again(ball_tomogram, run)
    assert not differences(run, finished)


def test_it_is_overwritten_with_its_own_settings(
    run: Path, ball_tomogram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "POWER", 3)
    with pytest.raises(StoreError, match=r"brightness/particle was made with other settings \(power: 2 → 3\)"):
        again(ball_tomogram, run)
    again(ball_tomogram, run, overwrite=True)
    assert len(CALLS) == 4
    np.testing.assert_allclose(stored(run), expected(run, 3), rtol=1e-12)


def test_it_goes_with_what_it_is_made_from(run: Path, ball_tomogram: Path) -> None:
    driver = Driver(run, SerialExecutor(), overwrite=True)
    driver.query(NAME, [(18, 44, 24)], settings())
    store = RunStore.open(run)
    assert brightness(NAME) not in store
    assert marks.found_stage(store, STAGE.stage_name(NAME)) is None
    driver.match(NAME)
    driver.segment(NAME)
    np.testing.assert_allclose(stored(run), expected(run), rtol=1e-12)


def test_it_is_planned(ball_tomogram: Path) -> None:
    result = planning.plan_run(open_tomogram(ball_tomogram), settings())
    [stage] = [one for one in result.stages if one.name == "brightness"]
    assert (stage.units, stage.memory) == (4, 1 << 20)
    assert 12 < stage.seconds < 13
    assert {one.kind for one in result.stored} >= {"brightness"}
    assert "brightness" in planning.in_words(result)


def test_it_is_reported(run: Path) -> None:
    rows = facts.facts(RunStore.open(run)).stages
    assert rows[-1].words == "Brightness of slabs", "in the order of a run"
    assert (rows[-1].units, rows[-1].failed) == (4, 0)
