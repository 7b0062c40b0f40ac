"""The plan of a run, against runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from benchmarks.simulation import job_of, simulate
from numpy.typing import NDArray

from cryosam_dask import cli, planning
from cryosam_dask.errors import SettingsError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.models.catalog import encoder_info, segmenter_info
from cryosam_dask.models.vit_catalog import VITS
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.planning import costs, waves
from cryosam_dask.planning.words import duration
from cryosam_dask.settings import PropagationRules
from cryosam_dask.stages.segment import group_prompts
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Float32, Prediction

POINT = [20.0, 20.0, 20.0]
BALL = 140.0
"""Diameter in ångström of the balls of `ball_tomogram`."""


def plan(
    tomogram: Path, models: str = "texture+random-walker", changes: dict[str, Any] | None = None, **options: Any
) -> Any:
    chosen = planning.Options(**{"diameter": BALL, **options})
    return planning.plan_run(open_tomogram(tomogram), settings_for(models, changes), chosen)


@pytest.fixture(scope="module")
def ran(ball_tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A run with the built-in models that proposes the other three balls."""
    driver = Driver(tmp_path_factory.mktemp("planned") / "run.zarr", SerialExecutor())
    settings = settings_for("texture+random-walker", {"match.count": 4})
    driver.ingest(ball_tomogram)
    driver.features(settings)
    driver.query("query", [POINT], settings)
    driver.match("query")
    driver.segment("query")
    return driver


def stage_of(name: str) -> str:
    """Our name of a stage that ran: without the query's."""
    return name.partition("/")[0]


def test_units_and_memory_are_those_of_the_run(ran: Driver, ball_tomogram: Path) -> None:
    made = {stage.name: stage for stage in plan(ball_tomogram, changes={"match.count": 4}).stages}
    assert set(made) == {stage_of(name) for name in ran.timings}
    for name, timings in ran.timings.items():
        stage = made[stage_of(name)]
        if stage.name in ("embeddings", "segment", "rank", "label"):
            continue  # these depend on what is found
        assert stage.units == len(timings), name
        if stage.name != "query":  # which is of the particle's own box, once that is known
            assert stage.memory + stage.model == ran.memory[name][0], name
    for name in ("embeddings", "segment", "rank"):
        count = sum(len(timings) for key, timings in ran.timings.items() if stage_of(key) == name)
        assert count / 3 <= made[name].units <= 3 * count, name


def test_planes_are_as_many_as_were_embedded(ran: Driver, ball_tomogram: Path) -> None:
    reach = plan(ball_tomogram, changes={"match.count": 4}).planes
    embedded = int(marks.done(RunStore.open(ran.url), "embeddings").sum())
    assert reach.all == 37 + 62 + 90
    assert reach.least <= embedded <= reach.most
    assert embedded / 2 < reach.expected < 2 * embedded


def test_bytes_are_those_of_the_store(ran: Driver, ball_tomogram: Path) -> None:
    made = {one.kind: one for one in plan(ball_tomogram, changes={"match.count": 4}).stored}
    store = RunStore.open(ran.url)

    def held(*paths: str) -> tuple[int, int]:
        arrays = [store.array(path) for path in paths]
        return sum(a.nbytes for a in arrays), sum(a.nchunks for a in arrays)

    ratios = (1, 4, 8, 16)
    levels = range(layout.level_count(store.shape))
    names = ("query", layout.semantic_name("query"))
    for kind, paths in {
        "tomogram": [layout.tomogram(level) for level in levels],
        "latents": [layout.latents(ratio, axis) for ratio in ratios for axis in AXES],
        "Gram maps": [layout.gram(ratio, axis) for ratio in ratios for axis in AXES],
        "dense features": [layout.dense(16)],
        "similarity": [layout.similarity("query", 4)],
        "labels": [layout.labels(name, level) for name in names for level in levels],
    }.items():
        assert (made[kind].bytes, made[kind].chunks) == held(*paths), kind
    known = sum(one.bytes for one in made.values() if one.kind not in ("embeddings", "instances"))
    there = [a for path, a in store.root.members(max_depth=None) if isinstance(a, zarr.Array) and not path.startswith(
        ("embeddings/", "marks/", "queries/", "proposals/", "instances/", "picks/")
    )]  # fmt: skip
    assert known == pytest.approx(sum(a.nbytes for a in there), rel=0.01)


def test_compressed_bytes_are_near_those_on_disk(ran: Driver, ball_tomogram: Path) -> None:
    made = {one.kind: one for one in plan(ball_tomogram, changes={"match.count": 4}).stored}
    root = Path(ran.url)
    for kind, folders in {
        "tomogram": ["scale0/tomogram"],
        "latents": [layout.latents(1, axis) for axis in AXES],
    }.items():
        files = [file for folder in folders for file in (root / folder / "c").rglob("*") if file.is_file()]
        share = sum(file.stat().st_size for file in files) / sum(zarr.open_array(root / f).nbytes for f in folders)
        assert made[kind].compressed / made[kind].bytes == pytest.approx(share, abs=0.12), kind


@pytest.mark.parametrize("models", ["paper", "dinov3-vitl16+sam2.1-tiny", "dinov2-vits14=/none/such.pth+random-walker"])
def test_planning_needs_no_weights_no_torch_and_writes_nothing(
    ball_tomogram: Path, tmp_path: Path, models: str
) -> None:
    program = (
        "import sys\nfrom cryosam_dask.cli import main\nmain()\n"
        "print(sorted({'torch', 'timm', 'distributed', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "CRYOSAM_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", ball_tomogram, "--models", models, "--json"],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
    found = json.loads(done.stdout)
    assert {stage["name"] for stage in found["stages"]} >= {"ingest", "features", "embeddings", "segment", "label"}
    assert all(stage["memory"] > 0 and stage["seconds"] > 0 for stage in found["stages"])
    assert list(tmp_path.iterdir()) == []


def test_more_workers_take_less_time_to_an_end(ball_tomogram: Path) -> None:
    made = plan(ball_tomogram, "paper")
    seconds = [time.seconds for time in made.times]
    assert [time.workers for time in made.times] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert seconds == sorted(seconds, reverse=True)
    assert made.times[0].limit == "workers"
    assert made.times[-1].limit == "order"
    total = sum(stage.seconds for stage in made.stages)
    assert total <= seconds[0] <= 1.05 * total + made.waves
    assert seconds[0] / 256 < seconds[-1]


@pytest.mark.parametrize("workers", [1, 16, 256])
@pytest.mark.parametrize("models", ["paper", "texture+random-walker"])
def test_times_are_near_those_of_the_simulation(ball_tomogram: Path, models: str, workers: int) -> None:
    made = plan(ball_tomogram, models, workers=(workers,), bandwidth=200e6)
    cluster = planning.Cluster(workers, made.options.driver_seconds, made.options.bandwidth)
    simulated = simulate(job_of(made.bulks).tasks, cluster).makespan
    assert made.times[0].seconds == pytest.approx(simulated, rel=0.25)


def test_faster_workers_and_slower_storage_are_seen(ball_tomogram: Path) -> None:
    slow, fast = (plan(ball_tomogram, "paper", machine=planning.machine(s), workers=(1,)) for s in ("0.1", "0.2"))
    cost = {stage.name: stage.seconds for stage in slow.stages}
    assert {s.name for s in fast.stages if s.seconds < 0.9 * cost[s.name]} == {"features", "embeddings", "segment"}
    narrow = plan(ball_tomogram, "paper", machine=planning.machine("h100"), workers=(256,), bandwidth=10e6).times[0]
    assert narrow.limit == "storage"
    moved = sum(bulk.count * (bulk.work.read + bulk.work.write) for bulk in slow.bulks)
    assert narrow.seconds >= moved / 10e6


def test_views_are_standardized_slice_by_slice_on_many_workers(ball_tomogram: Path) -> None:
    made = plan(ball_tomogram)
    (bulk,) = (bulk for bulk in made.bulks if bulk.stage == "features-standardization")
    (stage,) = (stage for stage in made.stages if stage.name == bulk.stage)
    assert stage.units == 3, "of which a journal tells"
    assert bulk.count == 3 * 12
    assert bulk.count * bulk.work.seconds == pytest.approx(stage.seconds)


def test_planes_that_the_rule_does_not_look_at_are_not_read(ball_tomogram: Path) -> None:
    """The published rule goes by embeddings alone; a group reads the tomogram's planes where another one is chosen."""
    plain, guarded = (
        sum(bulk.count * bulk.work.read for bulk in plan(ball_tomogram, "paper", rule).bulks if bulk.stage == "segment")
        for rule in ({}, {"propagation.rule": "guarded"})
    )
    assert plain < guarded


def test_a_slow_driver_is_seen(ball_tomogram: Path) -> None:
    made = plan(ball_tomogram, "texture+random-walker", workers=(256,), driver_seconds=1.0)
    assert made.times[0].limit == "driver"
    assert made.times[0].seconds >= sum(stage.units for stage in made.stages)


def test_more_prompts_mean_more_planes_up_to_all(ball_tomogram: Path) -> None:
    few, many, all_ = (plan(ball_tomogram, changes={"match.count": k}).planes for k in (1, 4, 2000))
    assert few.expected < many.expected < all_.expected == all_.all
    # the walk ends at the volume's border
    assert few.least <= 3 * few.each


@pytest.mark.parametrize(
    ("name", "tokens", "giga"),
    [
        ("dino-vitb16", 196, 2 * 17.5),
        ("dino-vits16", 196, 2 * 4.6),
        ("sam-vith", 4096, 2 * 2980),
        ("sam-vitb", 4096, 2 * 487),
    ],
)
def test_operations_are_the_published_ones(name: str, tokens: int, giga: float) -> None:
    """Multiply-adds as timm and fvcore count them, in 10⁹, twice."""
    assert VITS[name].operations(tokens) / 1e9 == pytest.approx(giga, rel=0.06)


def test_the_reference_machine_takes_the_measured_seconds() -> None:
    cpu = costs.MACHINES["cpu"]
    sam = segmenter_info("sam-vitb")
    assert costs.embed_seconds(sam, (928, 960), "float32", cpu) == pytest.approx(6.8, rel=0.15)
    assert costs.embed_seconds(sam, (928, 960), "bfloat16", cpu) == pytest.approx(4.5, rel=0.15)
    assert costs.predict_seconds(sam, 5, 5, "bfloat16", cpu) == pytest.approx(10 * 0.032, rel=0.15)
    settings = settings_for("dinov2-vitl14+sam-vitb", {"features.precision": "float32"}).features
    shape, info = (8, 518, 518), encoder_info("dinov2-vitl14")
    assert costs.encode_seconds(shape, "z", settings, info, cpu) == pytest.approx(6.2, rel=0.15)
    half = replace(cpu, half=2 * cpu.half)
    settings = settings.model_copy(update={"precision": "bfloat16"})
    slow, fast = (costs.encode_seconds(shape, "z", settings, info, worker) for worker in (cpu, half))
    assert slow == pytest.approx(4.0, rel=0.15)
    assert fast == pytest.approx(slow / 2)


def test_a_plan_knows_what_each_segmenter_takes(ball_tomogram: Path) -> None:
    plans = {name: plan(ball_tomogram, f"texture+{name}") for name in ("sam-vith", "mobile-sam", "sam2.1-tiny")}
    seconds, stored = (
        {
            name: next(row for row in getattr(made, rows) if getattr(row, key) == "embeddings")
            for name, made in plans.items()
        }
        for rows, key in (("stages", "name"), ("stored", "kind"))
    )
    assert seconds["sam-vith"].seconds > 15 * seconds["sam2.1-tiny"].seconds > 40 * seconds["mobile-sam"].seconds
    assert stored["sam-vith"].bytes == stored["mobile-sam"].bytes
    assert stored["sam2.1-tiny"].bytes == pytest.approx(4 * stored["sam-vith"].bytes, rel=0.01)
    assert seconds["sam-vith"].model > 15 * seconds["sam2.1-tiny"].model > 15 * seconds["mobile-sam"].model


class Balls:
    """A segmenter that sees, on the planes up to `length` − 1 from a prompt's, the same disc; its embedding says which
    plane it is of."""

    name = identity = "balls"
    batch = 3

    def __init__(self, points: NDArray[np.float64], length: int) -> None:
        self.points, self.length = points, length

    def predict(self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Float32 | None) -> Prediction:
        axis, index = (int(v) for v in embedding)
        rows, columns = np.indices(plane)
        masks = np.zeros((len(points), 1, *plane), bool)
        across = [i for i in range(3) if i != axis]
        for b, point in enumerate(points):
            own = np.abs(self.points[:, across] - point).sum(1) < 1.5
            if (np.abs(np.floor(self.points[own, axis] + 0.5) - index) < self.length).any():
                masks[b, 0] = (rows - point[0]) ** 2 + (columns - point[1]) ** 2 < 9
        return Prediction(masks, np.ones((len(points), 1), np.float32), masks.astype(np.float32))

    def peak(self, logits: Float32, plane: tuple[int, int]) -> Float32:
        rows, columns = np.indices(plane)
        return np.array(
            [[(rows * one).sum() / one.sum(), (columns * one).sum() / one.sum()] for one in logits], np.float32
        )


def test_waves_are_those_of_the_propagation() -> None:
    """The driver's loop with a segmenter that sees balls embeds the same planes, in the same turns."""
    shape, length = (30, 40, 50), 6
    points = np.array([[15, 20, 10], [15, 10, 25], [10, 30, 38], [22, 22, 24]], float)
    groups = group_prompts(points, 2)
    segmenter = Balls(points, length)
    rules = PropagationRules(rule="plain")
    work = [Propagation.start([tuple(points[i]) for i in g], shape, rules) for g in groups]
    embedded: set[tuple[Any, int]] = set()
    expected = []
    while any(one.needed() for one in work):
        missing = {plane for one in work for plane in one.needed()} - embedded
        embedded |= missing
        for one in work:
            while ready := [plane for plane in sorted(one.needed()) if plane in embedded]:
                for axis, index in ready:
                    size = tuple(n for i, n in enumerate(shape) if i != AXES.index(axis))
                    one.step(segmenter, axis, index, np.array([AXES.index(axis), index]), np.zeros(size, np.uint8))  # type: ignore[arg-type]
        expected.append(missing)
    found = waves.play(shape, points, groups, length)
    assert [set(wave.planes) for wave in found] == expected
    assert sum(turn.first for wave in found for turn in wave.turns) == 3 * len(points)
    assert waves.play(shape, points, groups, length, embedded)[0].planes == ()


def test_a_prompt_at_the_border_goes_one_way_only() -> None:
    found = waves.play((20, 20, 20), np.array([[0.0, 10.0, 19.0]]), [[0]], 4)
    assert sum(len(wave.planes) for wave in found) == 5 + 9 + 5
    assert sum(turn.further for wave in found for turn in wave.turns) == 4 + 8 + 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speed", "fast"], "speed 'fast': expected cpu, a100, h100 or TFLOP/s"),
        (["--speed", "-1"], "above 0"),
        (["--speed", "nan"], "above 0"),
        (["--workers", "4,0"], "workers 4,0: expected numbers from 1"),
        (["--workers", "many"], "workers many: expected whole numbers"),
        (["--bandwidth", "0"], "bandwidth 0: expected a number above 0"),
        (["--driver", "-1"], "driver seconds per unit -0.001: expected 0 or more"),
        (["--tomograms", "0"], "0 tomograms"),
        (["--tomograms", "9", "--at-once", "0"], "9 tomograms, 0 at once: expected 1 or more"),
        (["--diameter", "inf"], "diameter inf: expected a number above 0"),
        (["--diameter", "5000"], "more than the tomogram's 90"),
        (["--models", "dinov9+sam-vith"], "dinov9"),
        (["--count", "0"], "match.count"),
        (["--set", "match.tau=1"], "no setting"),
    ],
)
def test_bad_input_is_one_line(
    ball_tomogram: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["cryosam", "plan", str(ball_tomogram), *arguments])
    with pytest.raises(SystemExit) as leave:
        cli.main()
    assert leave.value.code == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert err.startswith("cryosam: error: ")
    assert "\n" not in err


def test_the_command_prints_aligned_tables(ball_tomogram: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments = [
        "--models",
        "texture+random-walker",
        "--count",
        "4",
        "--workers",
        "1,8",
        "--diameter",
        "140",
        "--bandwidth",
        "100",
    ]
    monkeypatch.setattr(sys, "argv", ["cryosam", "plan", str(ball_tomogram), *arguments])
    cli.main()
    out = capsys.readouterr().out
    assert out.startswith("37 × 62 × 90 voxels (z, y, x), float32, 10 Å; models: texture+random-walker")
    lines = out.splitlines()
    assert "\x1b" not in out
    assert "…" not in out
    assert not any(line.endswith(" ") for line in lines)
    made = plan(ball_tomogram, changes={"match.count": 4}, workers=(1, 8), bandwidth=100e6)
    for stage in made.stages:
        line = next(line for line in lines if line.split(" ")[0] == stage.name)
        assert line.split()[1] == str(stage.units)
    assert f"about {made.planes.expected} of {made.planes.all}" in out
    assert "--bandwidth says otherwise" not in out
    assert "one by one" not in out


def test_many_tomograms_are_planned_at_once(ball_tomogram: Path, cryosam: Any) -> None:
    arguments = ["--models", "texture+random-walker", "--count", "4", "--diameter", "140", "--workers", "2,16"]
    code, out, _ = cryosam("plan", ball_tomogram, *arguments, "--tomograms", "100", "--json")
    assert code == 0
    two, sixteen = json.loads(out)["many"]
    assert two["at_once"] == 3
    assert 3 < sixteen["at_once"] <= 17
    assert two["busy"] > 0.8
    for row in (two, sixteen):
        assert row["runs"] == 100
        assert row["seconds"] < row["in_turn"]
    code, out, _ = cryosam("plan", ball_tomogram, *arguments, "--tomograms", "100", "--at-once", "1")
    assert code == 0
    header, *rows = out[out.index("workers   at once") :].splitlines()[:3]
    assert "100 tomograms" in header
    for row, count in zip(rows, ("2", "16"), strict=True):
        assert row.split()[:2] == [count, "1"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (7.46, "7.5 s"),
        (59.4, "59 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (18_600, "5 h 10 min"),
        (86_399, "1 d 0 h"),
        (183_600, "2 d 3 h"),
    ],
)
def test_durations_are_said_in_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_machine_is_a_name_or_a_number() -> None:
    assert planning.machine("a100").rate("float32") < planning.machine("a100").rate("bfloat16")
    assert planning.machine("0.5").rate("float16") == 5e11
    with pytest.raises(SettingsError, match="speed"):
        planning.machine("")


def test_an_extended_structure_is_not_ranked_by_profiles(ball_tomogram: Path) -> None:
    made = plan(ball_tomogram, changes={"match.structure": "extended"})
    assert "rank" not in {stage.name for stage in made.stages}
    assert any("extended structure" in note for note in made.notes)


def test_a_segmenter_of_volumes_is_planned_without_planes(ball_tomogram: Path) -> None:
    made = plan(ball_tomogram, "builtin")
    stages = {stage.name: stage for stage in made.stages}
    assert {"segment", "recognize"} <= set(stages)
    assert not {"embeddings", "rank"} & set(stages)
    assert all(stage.memory > 0 and stage.seconds > 0 for stage in made.stages)
    assert "planes to embed" not in planning.in_words(made)
    assert not any(array.kind == "embeddings" and array.bytes for array in made.stored)
    faster = plan(ball_tomogram, "builtin", machine=planning.machine("a100"))
    assert {s.name for s in faster.stages if s.seconds < 0.9 * stages[s.name].seconds} == {"segment", "recognize"}
