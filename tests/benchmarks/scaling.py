"""What more workers bring: two against one, measured here, and 1 to 256, simulated from measured units.

    python tests/benchmarks/scaling.py [--measure] [--simulate] [--many] [--scale] [--driver-ms 2] [--planes 4]
        [--repeats 2]

Prints one JSON line; without `--measure`, `--simulate`, `--many` and `--scale` it does the first two.

`measured`: seconds of the feature and the embedding stage on one and on two local workers of one thread each, run in
turn (the best of each counts), and their ratio, with the built-in models and with random weights of DINOv2 ViT-S and of
SAM ViT-B (`--planes 0` leaves SAM out). `turn`: seconds that beginning and ending a stage costs besides its units.

`simulated`: a tomogram of 200 × 928 × 960 voxels. Units and what they wait for are the plan's; their seconds too, times
what the stages of a real run of the built-in models on a small simulated tomogram took over what its plan says
(`taken_over_planned`). The models `paper` run at the speeds that the plan assumes. For each bandwidth of the shared
storage and each number of workers: makespan in seconds, speed-up, busy shares of workers, driver and storage, and what
limits. Then seconds on 1, 2, 4 … 256 workers without limit of bandwidth under other rules (`Rules`): `waves` as it is,
`spread`: bundles of planes no larger than leaves one for every worker, `chained`: a group of prompts goes on as soon as
its own planes are embedded.

`many`: 100 such tomograms on 1, 2, 4 … 256 workers, storage without limit, one after the other and as many at once as
`planning.at_once` says: seconds, busy shares of workers and driver, and what `cryosam plan` gives for the same.

`scale`: one tomogram and 500 on 1, 2, 4 … 256 GPUs (`h100`), storage of 1, 10 and 100 GB/s: seconds, busy shares of
workers, driver and storage, and what limits. Each row goes to stderr as well, as one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from simulation import Job, limit, limits, simulate

from cryosam_dask import demo
from cryosam_dask.executors import DaskExecutor, Executor, SerialExecutor, UserClient, execute
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.models import get_encoder, get_segmenter
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.planning import Cluster, Options, at_once, estimate_many, machine, plan_run
from cryosam_dask.planning.plan import plan_stages
from cryosam_dask.planning.stages import Planner, Round
from cryosam_dask.planning.waves import Wave
from cryosam_dask.settings import Settings
from cryosam_dask.stages import embed, features
from cryosam_dask.stages.base import Stage
from cryosam_dask.stages.cost import Cost
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Point, Shape3

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WORKERS = tuple(1 << i for i in range(9))
BANDWIDTHS = (200.0, 1000.0, 5000.0, math.inf)
TARGET: Shape3 = (200, 928, 960)
DIAMETER = 250.0
RUNS = 100
MANY = 500
SHARED = (1.0, 10.0, 100.0)
"""GB/s of storage that all workers share, for `--scale`."""


@dataclass(frozen=True)
class Header:
    """A tomogram that is only planned."""

    shape: Shape3
    dtype: np.dtype[Any]
    voxel_size: Point = (10.0, 10.0, 10.0)
    origin: Point = (0.0, 0.0, 0.0)
    notes: tuple[str, ...] = ()
    chunk: Shape3 = (1, 1, 1)
    scratch: int = 0

    @property
    def identity(self) -> dict[str, Any]:
        return {}

    def read(self, slices: Any) -> Any:
        raise NotImplementedError


@contextlib.contextmanager
def one_thread_workers(count: int) -> Iterator[DaskExecutor]:
    """Local workers of one thread, whatever torch would take."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=count, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
        DaskExecutor(UserClient(client), "cpu") as executor,
    ):
        client.run(_one_torch_thread)
        yield executor


def _one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _load(settings: Settings, model: str) -> None:
    """Load a model where units will find it."""
    if model == "encoder":
        get_encoder(settings.features.encoder, "cpu", "float32")
    else:
        get_segmenter(settings.propagation.segmenter, "cpu", "float32")


def noise(folder: Path, shape: Shape3) -> Driver:
    """A driver of a run whose tomogram is noise."""
    path = folder / f"noise{'x'.join(map(str, shape))}.mrc"
    with mrcfile.new(path, np.random.default_rng(0).standard_normal(shape, np.float32)) as file:
        file.voxel_size = 10
    driver = Driver(path.with_suffix(".zarr"), SerialExecutor())
    driver.ingest(path)
    return driver


def random_weights(folder: Path, name: str) -> str:
    """The spec of a model with a file of random weights."""
    import torch
    from segment_anything import sam_model_registry

    from cryosam_dask.models import vit
    from cryosam_dask.models.vit_catalog import VITS

    path = folder / f"{name}.pth"
    if not path.exists():
        torch.manual_seed(0)
        segments = name.startswith("sam-")
        model = sam_model_registry["vit_b"]() if segments else vit.build(VITS[name].architecture)
        torch.save(model.state_dict(), path)
    return f"{name}={path}"


def feature_stage(store: RunStore, settings: Settings) -> Stage:
    features.prepare(store, settings.features)
    return features.plan(store.shape, settings.features, "")


def embedding_stage(store: RunStore, settings: Settings, planes: int | None) -> Stage:
    """All planes, or a few along y that lie in chunks of their own."""
    embed.prepare(store, settings.propagation)
    wanted: list[embed.Plane] = [(axis, i) for axis, n in zip(AXES, store.shape, strict=True) for i in range(n)]
    if planes is not None:
        wanted = [("y", layout.CHUNK[1] * i) for i in range(planes)]
    return embed.plan(store.shape, settings.propagation, "", wanted)


@dataclass(frozen=True)
class Case:
    """A stage to measure, with the model that its units load."""

    store: RunStore
    stage: Stage
    settings: Settings
    model: str


def cases(folder: Path, planes: int) -> dict[str, Case]:
    """What is measured, by name."""
    texture = settings_for(
        "builtin", {"features.standardize": "none", "features.dense_ratios": [], "features.precision": "float32"}
    )
    large, small = noise(folder, (64, 256, 256)).store, noise(folder, (32, 96, 96)).store
    spec = f"{random_weights(folder, 'dinov2-vits14')}+random-walker"
    vit = settings_for(spec, {"features.slice_size": 112, "features.dense_ratios": [], "features.precision": "float32"})
    found = {
        "features, texture": Case(large, feature_stage(large, texture), texture, "encoder"),
        "features, dinov2-vits14": Case(small, feature_stage(small, vit), vit, "encoder"),
        "embeddings, random-walker": Case(large, embedding_stage(large, texture, None), texture, "segmenter"),
    }
    if planes:
        wide = noise(folder, (32, 64 * planes, 64)).store
        sam = settings_for(f"texture+{random_weights(folder, 'sam-vitb')}", {"propagation.precision": "float32"})
        found["embeddings, sam-vitb"] = Case(wide, embedding_stage(wide, sam, planes), sam, "segmenter")
    return found


def run_stage(case: Case, executor: Executor, units: int | None = None) -> tuple[float, float]:
    """Seconds of a stage from its beginning, nothing of it being done; those of its units together."""
    case.store.delete(layout.marks(case.stage.name))
    start = time.perf_counter()
    done = execute(case.stage, case.store, executor, units=case.stage.units[:units])
    return time.perf_counter() - start, sum(timing.seconds for timing in done.timings)


def measured(folder: Path, planes: int, repeats: int) -> dict[str, Any]:
    """One worker and two in turn; both stand all the time, the one that is not asked idle."""
    out: dict[str, Any] = {}
    with one_thread_workers(1) as one, one_thread_workers(2) as two:
        for name, case in cases(folder, planes).items():
            for executor in (one, two):
                executor.client.run(_load, case.settings, case.model)
            best = [math.inf, math.inf]
            for _ in range(1 if "sam" in name else repeats):
                for i, executor in enumerate((one, two)):
                    best[i] = min(best[i], run_stage(case, executor)[0])
            out[name] = {
                "units": len(case.stage.units),
                "one": round(best[0], 2),
                "two": round(best[1], 2),
                "ratio": round(best[0] / best[1], 2),
            }
            if name == "features, texture":
                single = [run_stage(case, two, 1) for _ in range(5)]
                out["turn"] = round(min(whole - own for whole, own in single), 4)
    return out


def run_over_plan(folder: Path) -> dict[str, float]:
    """What each stage of a real run took, over what its plan says, by the plan's names of stages."""
    shape = (64, 256, 256)
    simulation = demo.write_simulation(folder / "small.mrc", "default", {"shape": shape}, species="ribosome")
    point = [float(v) for v in simulation.click.split(",")]
    driver, settings = Driver(folder / "small.zarr", SerialExecutor()), settings_for("builtin")
    driver.ingest(simulation.tomogram)
    driver.features(settings)
    driver.query("query", [point], settings)
    driver.match("query")
    driver.segment("query")
    count = max(1, len(picks.read(driver.store, "query")))
    planned = plan_run(
        open_tomogram(simulation.tomogram), settings.replace({"match.count": count}), Options(diameter=DIAMETER)
    )
    taken: dict[str, float] = {}
    for name, timings in driver.timings.items():
        taken[name.partition("/")[0]] = taken.get(name.partition("/")[0], 0.0) + sum(t.seconds for t in timings)
    return {stage.name: taken[stage.name] / stage.seconds for stage in planned.stages if stage.name in taken}


@dataclass(frozen=True)
class Rules:
    """How the driver proceeds.

    chained : a group goes on as soon as its own planes are embedded, instead of wave by wave
    spread : planes are bundled no larger than leaves a bundle for every worker
    """

    chained: bool = False
    spread: bool = False


class Jobs:
    """The jobs of a plan. Where groups of prompts take turns with embedding, `bulks` are made anew by `Rules`."""

    def __init__(self, models: str, speed: str, factors: dict[str, float], turn: float) -> None:
        header = Header(TARGET, np.dtype("f4"))
        self.planner = Planner(header, settings_for(models), machine(speed), DIAMETER / 10)
        plan_stages(self.planner)
        self.units = sum(bulk.count for bulk in self.planner.bulks)
        self._factors, self.turn = factors, turn

    def scaled(self, stage: str, work: Cost) -> Cost:
        """What a unit takes here."""
        return work._replace(seconds=work.seconds * self._factors.get(stage, 1.0))

    def job(self, rules: Rules, workers: int, runs: int = 1, at_once: int = 1) -> Job:
        """The tasks of so many runs on so many workers; a run begins when that ends which began `at_once` before it."""
        job, ends = Job(), list[tuple[int, ...]]()
        for job.run in range(runs):
            before = ends[job.run - at_once] if job.run >= at_once else ()
            ends.append(self._add(job, rules, workers, before))
        return job

    def _add(self, job: Job, rules: Rules, workers: int, before: tuple[int, ...]) -> tuple[int, ...]:
        """Add a run; its last task."""
        number, turns = 0, _Turns(job, self, rules, workers)
        for bulk in self.planner.bulks:
            if bulk.stage == "segment" and self.planner.whole is None:
                turns.add(self.planner.rounds[number], before)
                number += 1
            elif bulk.stage != "embeddings":
                works = [self.scaled(bulk.stage, bulk.work)] * bulk.count
                seconds = self.turn if bulk.count else bulk.driver
                before = (job.stage(bulk.stage, works, turns.end() or before, seconds),)
        return before

    def bundles(self, wave: Wave, most: int) -> Iterator[tuple[list[embed.Plane], Cost]]:
        """A wave's planes, at most so many together, and what embedding them takes."""
        for unit in self.planner.embeddings(wave).units if wave.planes else ():
            axis = unit.params["axis"]
            offset = sum(self.planner.shape[: AXES.index(axis)])
            for start in range(0, len(unit.marks), most):
                part = replace(unit, marks=unit.marks[start : start + most])
                work = self.scaled("embeddings", embed.STAGE.cost(self.planner, part))
                yield [(axis, mark - offset) for mark in part.marks], work


class _Turns:
    """Embedding and groups of prompts, as tasks."""

    def __init__(self, job: Job, jobs: Jobs, rules: Rules, workers: int) -> None:
        self._job, self._jobs, self._rules, self._workers = job, jobs, rules, workers
        self._embedded: dict[embed.Plane, int] = {}
        self._last: dict[int, int] = {}
        self._barrier: tuple[int, ...] = ()

    def end(self) -> tuple[int, ...]:
        """What must be through before the next stage; a segmentation is over."""
        found, self._last, self._barrier = tuple(self._last.values()) or self._barrier, {}, ()
        return found

    def add(self, this: Round, start: tuple[int, ...]) -> None:
        """A wave, behind the one before it or the barrier before the segmentation."""
        wave = this.wave
        most = max(1, -(-len(wave.planes) // self._workers)) if self._rules.spread else embed.BUNDLE
        begin = self._barrier or start
        asks = {plane: turn.group for turn in reversed(wave.turns) for plane in turn.planes}
        embeds = []
        for planes, work in self._jobs.bundles(wave, most):
            groups = {asks[plane] for plane in planes if plane in asks}
            after = [self._last[group] for group in groups if group in self._last] if self._rules.chained else []
            embeds.append(self._job.add("embeddings", work, after or begin))
            self._embedded.update(dict.fromkeys(planes, embeds[-1]))
        if embeds and not self._rules.chained:
            begin = (self._job.stage("embeddings", [], embeds, self._jobs.turn),)
        turns = []
        for turn, own in zip(wave.turns, this.turns, strict=True):
            needed = set(begin) if turn.group not in self._last else {self._last[turn.group]}
            if self._rules.chained:
                needed |= {self._embedded[plane] for plane in turn.planes}
            work = self._jobs.scaled("segment", own)
            turns.append(self._job.add("segment", work, needed if self._rules.chained else begin))
            self._last[turn.group] = turns[-1]
        if not self._rules.chained:
            self._barrier = (self._job.stage("segment", [], turns, self._jobs.turn),)
            self._last = {}


RULES = {
    "waves": Rules(),
    "spread": Rules(spread=True),
    "chained": Rules(chained=True),
    "chained, spread": Rules(chained=True, spread=True),
}


def simulated(factors: dict[str, float], driver_seconds: float, turn: float) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for models, speed in (("builtin", "cpu"), ("paper", "cpu"), ("paper", "h100")):
        jobs = Jobs(models, speed, factors if models == "builtin" else {}, turn)
        rows: dict[str, Any] = {"units": jobs.units}
        for bandwidth in BANDWIDTHS:
            name = f"{bandwidth:g} MB/s" if math.isfinite(bandwidth) else "any bandwidth"
            rows[name] = table(jobs, Rules(), driver_seconds, bandwidth * 1e6)
        for name, rules in RULES.items():
            rows[name] = [row["seconds"] for row in table(jobs, rules, driver_seconds, math.inf)]
        out[f"{models}, {speed}"] = rows
    return out


def many(driver_seconds: float, turn: float) -> dict[str, Any]:
    """`RUNS` tomograms, in turn and at once."""
    out: dict[str, Any] = {}
    for models, speed in (("builtin", "cpu"), ("paper", "h100")):
        jobs, rows = Jobs(models, speed, {}, turn), []
        for workers in WORKERS:
            cluster = Cluster(workers, driver_seconds)
            planned = estimate_many(jobs.planner.bulks, cluster, RUNS)
            row: dict[str, Any] = {"workers": workers, "at_once": planned.at_once}
            for name, count in (("in_turn", 1), ("together", planned.at_once)):
                found = simulate(jobs.job(Rules(spread=True), workers, RUNS, count).tasks, cluster)
                row[name] = {
                    "seconds": round(found.makespan),
                    "busy": round(found.workers, 3),
                    "driver": round(found.driver, 3),
                }
            row["ratio"] = round(row["in_turn"]["seconds"] / row["together"]["seconds"], 2)
            rows.append(row | {"planned": {"seconds": round(planned.seconds), "busy": round(planned.busy, 3)}})
        out[f"{models}, {speed}"] = rows
    return out


def scale(driver_seconds: float, turn: float) -> list[dict[str, Any]]:
    """A row for each preset, storage, number of workers, and for one tomogram and `MANY` of them."""
    rows: list[dict[str, Any]] = []
    for models in ("builtin", "paper"):
        jobs = Jobs(models, "h100", {}, turn)
        for bandwidth in SHARED:
            for workers in WORKERS:
                cluster = Cluster(workers, driver_seconds, 1e9 * bandwidth)
                together = at_once(jobs.planner.bulks, cluster)
                for runs, count in ((1, 1), (MANY, together)):
                    row = {"models": models, "storage": f"{bandwidth:g} GB/s", "workers": workers}
                    rows.append(row | {"tomograms": runs, "at_once": count} | _share(jobs, cluster, runs, count))
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _share(jobs: Jobs, cluster: Cluster, runs: int, count: int) -> dict[str, Any]:
    """Seconds of so many runs, `count` at once, shares of them that workers, driver and storage are busy, and what
    limits. A worker that waits for its share of the storage is not busy. Of many runs the first and the last few are
    simulated; those in between go on alike."""
    tasks = jobs.job(Rules(spread=True), cluster.workers, min(runs, 4 * count), count).tasks
    outcome = simulate(tasks, cluster)
    seconds, part = outcome.makespan, 1.0
    if runs > 4 * count:
        fewer = simulate(jobs.job(Rules(spread=True), cluster.workers, 2 * count, count).tasks, cluster)
        seconds += (runs - 4 * count) * (outcome.makespan - fewer.makespan) / (2 * count)
        part = runs / (4 * count)
    least = limits(tasks, cluster)
    shares = {"busy": least["workers"] / outcome.makespan, "driver": outcome.driver, "storage_busy": outcome.storage}
    return {
        "seconds": round(seconds, 1),
        **{name: round(share * outcome.makespan * part / seconds, 3) for name, share in shares.items()},
        "limit": limit(tasks, cluster),
    }


def table(jobs: Jobs, rules: Rules, driver_seconds: float, bandwidth: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for workers in WORKERS:
        cluster, tasks = Cluster(workers, driver_seconds, bandwidth), jobs.job(rules, workers).tasks
        found = simulate(tasks, cluster)
        rows.append(
            {
                "workers": workers,
                "seconds": round(found.makespan, 1),
                "speedup": round((rows[0]["seconds"] if rows else found.makespan) / found.makespan, 1),
                "busy": round(found.workers, 3),
                "driver": round(found.driver, 3),
                "storage": round(found.storage, 3),
                "limit": limit(tasks, cluster),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--many", action="store_true")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--driver-ms", default=2.0, type=float)
    parser.add_argument("--turn-ms", default=30.0, type=float, help="where it is not measured")
    parser.add_argument("--planes", default=4, type=int)
    parser.add_argument("--repeats", default=3, type=int)
    options = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    both = options.measure == options.simulate and not options.many and not options.scale
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.measure or both:
            row["measured"] = measured(folder, options.planes, options.repeats)
        if options.simulate or both:
            factors = run_over_plan(folder)
            row["taken_over_planned"] = {stage: round(factor, 2) for stage, factor in factors.items()}
            turn = row.get("measured", {}).get("turn", options.turn_ms / 1000)
            row["simulated"] = simulated(factors, options.driver_ms / 1000, turn)
        if options.many:
            row["many"] = many(options.driver_ms / 1000, options.turn_ms / 1000)
        if options.scale:
            row["scale"] = scale(options.driver_ms / 1000, options.turn_ms / 1000)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
