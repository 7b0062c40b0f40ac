"""What a unit costs besides its work: the driver's time with its scheduler, and a worker's.

    python tests/benchmarks/driver.py [--units 2000] [--workers 2] [--threads 1] [--payload 0] [--seconds 0] [--profile]

Runs units that only write a file of one byte through `execute` on local workers, and prints one JSON line; times are in
milliseconds per unit. `driver` is CPU time of the driver's process, in which the scheduler lives too, `driver_thread`
the part of its main thread, `dask` what as many tasks that only sleep take there without anything of ours; `worker` is
CPU time of the workers' processes, `unit` the median wall time of a unit on its worker. `keeps_busy`: how many workers
a driver serves whose units take one second. With more `--threads` in each worker more units are in flight, as with more
workers, and messages to the driver come in larger bundles. `--payload N` gives each unit a list of N numbers as a
parameter, `--seconds` has it sleep so long, so that units end one by one as real ones do. `--profile` prints where time
goes: in the driver's main thread, in the thread of Dask's loop, and in a worker's unit.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import importlib
import json
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryosam_dask.executors import DaskExecutor, LocalWorkers, SerialExecutor, UserClient, execute
from cryosam_dask.stages.base import Context, Stage, Unit, UnitResult
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json


def tick(context: Context, settings: Json, unit: Unit) -> UnitResult:
    """Write one byte, after a while."""
    time.sleep(settings["seconds"])
    path = Path(settings["folder"], str(unit.params["index"]))
    path.write_bytes(b"1")
    return UnitResult({"path": str(path)})


def plan(name: str, folder: Path, units: int, payload: int, seconds: float = 0.0) -> Stage:
    # workers load the function by name, which this file has only where it is imported
    work = importlib.import_module(Path(__file__).stem).tick
    numbers = list(range(payload))
    made = tuple(Unit(f"unit {i}", (i,), {"index": i, "numbers": numbers}) for i in range(units))
    return Stage(name, work, {"folder": str(folder), "seconds": seconds}, "", made, units)


@contextlib.contextmanager
def started(workers: int, threads: int) -> Iterator[DaskExecutor]:
    """Local workers as the program starts them, or some with more threads."""
    if threads == 1:
        with DaskExecutor(LocalWorkers(workers)) as executor:
            yield executor
        return
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=threads, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
        DaskExecutor(UserClient(client), "cpu") as executor,
    ):
        yield executor


def profile_unit(stage: Stage, store: RunStore, units: int) -> cProfile.Profile:
    """Profile of units that run in this process, which none of the figures hold."""
    profiler = cProfile.Profile()
    profiler.enable()
    execute(stage, store, SerialExecutor(), units=stage.units[:units])
    profiler.disable()
    return profiler


def worker_time(executor: DaskExecutor) -> float:
    """CPU seconds of all workers' processes so far."""
    return float(sum(executor.client.run(time.process_time).values()))


def dask_alone(executor: DaskExecutor, units: int, seconds: float) -> float:
    """CPU seconds of this process for as many tasks that only sleep, all submitted at once by Dask's own client."""
    before = time.process_time()
    executor.client.gather(executor.client.map(time.sleep, [seconds] * units, pure=False))
    return time.process_time() - before


def profile_loop(executor: DaskExecutor, profiler: cProfile.Profile, on: bool) -> None:
    """Begin or end profiling of the thread that client and scheduler share."""

    async def switch() -> None:
        (profiler.enable if on else profiler.disable)()

    executor.client.sync(switch)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    store = RunStore.create(folder / "run.zarr", {})
    main, loop = cProfile.Profile(), cProfile.Profile()
    with started(options.workers, options.threads) as executor:
        execute(plan("warm-up", folder, 20 * options.workers, options.payload), store, executor)
        stage = plan("measured", folder, options.units, options.payload, options.seconds)
        if options.profile:
            profile_loop(executor, loop, True)
            main.enable()
        before = worker_time(executor), time.perf_counter(), time.process_time(), time.thread_time()
        done = execute(stage, store, executor)
        after = time.perf_counter(), time.process_time(), time.thread_time()
        main.disable()
        if options.profile:
            profile_loop(executor, loop, False)
        workers = worker_time(executor) - before[0]
        alone = dask_alone(executor, options.units, options.seconds)
    wall, process, thread = (b - a for a, b in zip(before[1:], after, strict=True))
    if options.profile:
        unit = profile_unit(plan("profiled", folder, options.units, options.payload), store, 500)
        for profiler in (main, loop, unit):
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    return {
        "units": options.units,
        "workers": options.workers,
        "threads": options.threads,
        "payload": options.payload,
        "seconds": options.seconds,
        "units_per_second": round(options.units / wall, 1),
        "driver": round(1e3 * process / options.units, 2),
        "dask": round(1e3 * alone / options.units, 2),
        "driver_thread": round(1e3 * thread / options.units, 2),
        "worker": round(1e3 * workers / options.units, 2),
        "unit": round(1e3 * statistics.median(timing.seconds for timing in done.timings), 2),
        "keeps_busy": int(options.units / process),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", default=2000, type=int)
    parser.add_argument("--workers", default=2, type=int)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--payload", default=0, type=int)
    parser.add_argument("--seconds", default=0.0, type=float)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder))))


if __name__ == "__main__":
    main()
