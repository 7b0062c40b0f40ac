"""Peak memory of a whole job: workers and driver, on a tomogram of any size, against what was projected.

    python tests/benchmarks/memory.py --shape 160,1792,1792 --limit 512 --workers 2 [--double z] [--count 64]

The tomogram is a small simulated one, repeated, with fresh noise in each block, written block by block as float32.
The job (built-in models) runs in a process of its own on Dask workers of a given memory limit, with Dask's own rules in
force: a worker at 60 % of its limit would spill, one at 95 % is killed. Peaks are the kernel's high-water marks of
resident memory, mapped files included. Prints one JSON line: size of the tomogram, peak of each worker and of the
driver, and per stage the seconds of its units, with bytes projected and measured for the largest. With --double the
tomogram of twice the length along an axis runs too, and the line says by how much its peaks differ.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.types import Shape3

NAME = "particle"
BLOCK: Shape3 = (32, 256, 256)
SPECIES = "ribosome"
INTERVAL = 0.05


def make(path: Path, shape: Shape3, snr: float) -> tuple[float, float, float]:
    """Write the tomogram; a particle of it, in voxels."""
    import mrcfile

    from cryosam_dask.simulate import preset, simulate

    small = simulate(preset(SPECIES, snr=snr))
    deviation = np.float32((small.tomogram - small.signal).std())
    noise = np.random.default_rng(0)
    file = mrcfile.new_mmap(path, shape, mrc_mode=2, overwrite=True)
    file.voxel_size = small.settings.voxel_size
    file.close()
    for box in geometry.boxes(shape, BLOCK):
        # the map is opened anew, so that its pages do not add up
        voxels = np.memmap(path, "<f4", mode="r+", offset=1024, shape=shape)
        wrapped = np.ix_(*(np.arange(a, b) % n for (a, b), n in zip(box, small.signal.shape, strict=True)))
        block = small.signal[wrapped]
        voxels[geometry.box_slices(box)] = block + deviation * noise.standard_normal(block.shape, np.float32)
        del voxels
    middle = np.array([min(a, b) for a, b in zip(shape, small.signal.shape, strict=True)]) / 2
    centres = small.centres(SPECIES)
    z, y, x = centres[np.linalg.norm(centres - middle, axis=1).argmin()].round().tolist()
    return z, y, x


def status(process: int | str, field: str) -> int:
    """Bytes of a field of /proc/PROCESS/status; 0 if the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


@contextmanager
def watched(processes: list[int]) -> Iterator[dict[int, int]]:
    """High-water marks of processes, read again and again since units reset them."""
    peaks = dict.fromkeys(processes, 0)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(INTERVAL):
            for process in processes:
                peaks[process] = max(peaks[process], status(process, "VmHWM"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def job(options: argparse.Namespace, click: list[float]) -> dict[str, Any]:
    """Run the job on a cluster of this process; what it took."""
    import dask
    from distributed import Client, LocalCluster

    from cryosam_dask.pipeline import run, settings_for

    changes = {"match.count": options.count} if options.count else {}
    settings = settings_for("builtin", changes)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": environment}),
        LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            memory_limit=options.limit << 20,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        processes = list(client.run(os.getpid).values())
        base = [status(process, "VmRSS") for process in processes]
        busy = [sum(times[:2]) for times in client.run(os.times).values()]
        start = time.perf_counter()
        with watched(processes) as peaks:
            driver = run(options.tomogram, [click], options.store, name=NAME, settings=settings, client=client)
        seconds = time.perf_counter() - start
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        spilled = sum(worker["metrics"]["spilled_bytes"]["disk"] for worker in workers)
        replaced = set(client.run(os.getpid).values()) - set(processes)
        busy = [sum(times[:2]) - before for times, before in zip(client.run(os.times).values(), busy, strict=True)]
    for timings in driver.timings.values():
        for timing in timings:
            process = int(timing.worker.rpartition(":")[2])
            peaks[process] = max(peaks.get(process, 0), timing.peak)
    return {
        "seconds": round(seconds, 1),
        "worker_cpu_seconds": [round(n, 1) for n in busy],
        "driver_cpu_seconds": round(sum(os.times()[:2]), 1),
        "limit_mb": options.limit,
        "base_mb": [mb(n) for n in base],
        "worker_peak_mb": [mb(n) for n in peaks.values()],
        "driver_peak_mb": mb(status("self", "VmHWM")),
        "spilled_bytes": spilled,
        "workers_killed": len(replaced),
        "notes": driver.notes,
        "stages": stages(driver),
    }


def stages(driver: Any) -> dict[str, dict[str, float]]:
    """Per stage what its units took, and projected beside measured bytes of the largest."""
    rows = {}
    for name, (projected, measured) in driver.memory.items():
        timings = driver.timings[name]
        rows[name] = {
            "units": len(timings),
            "seconds": round(sum(timing.seconds for timing in timings), 2),
            "projected_mb": mb(projected),
            "measured_mb": mb(measured),
            "ratio": round(projected / max(measured, 1), 2),
            "peak_mb": mb(max(timing.peak for timing in timings)),
        }
    return rows


def mb(size: int) -> float:
    return round(size / 2**20, 1)


def measure(options: argparse.Namespace, shape: Shape3, folder: Path) -> dict[str, Any]:
    """Make a tomogram and run the job on it in a process of its own."""
    tomogram, store = folder / "tomogram.mrc", folder / "run.zarr"
    click = make(tomogram, shape, options.snr)
    command = [sys.executable, __file__, "--job", json.dumps(click), "--tomogram", str(tomogram), "--store", str(store)]
    command += ["--workers", str(options.workers), "--limit", str(options.limit), "--count", str(options.count)]
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    row: dict[str, Any] = json.loads(out.splitlines()[-1])
    size = math.prod(shape) * 4
    return {"shape": list(shape), "tomogram_mb": mb(size), "times_limit": round(size / (options.limit << 20), 2), **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="64,384,384")
    parser.add_argument("--limit", type=int, default=1024, help="MiB of each worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--count", type=int, default=64, help="proposals to segment; 0: found from the scores")
    parser.add_argument("--snr", type=float, default=1.0)
    parser.add_argument("--double", choices=("z", "y", "x"), default=None)
    parser.add_argument("--folder", type=Path, default=None, help="where the tomogram and the store go, and stay")
    for hidden in ("--job", "--tomogram", "--store"):
        parser.add_argument(hidden, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(job(options, json.loads(options.job))))
        return
    z, y, x = (int(v) for v in options.shape.split(","))
    rows = [_measured(options, (z, y, x))]
    if options.double:
        z, y, x = (2 * n if axis == options.double else n for axis, n in zip("zyx", (z, y, x), strict=True))
        rows.append(_measured(options, (z, y, x)))
    line: dict[str, Any] = {"runs": rows}
    if options.double:
        one, two = (max(row["worker_peak_mb"]) for row in rows)
        line["worker_difference"] = round(two / one - 1, 3)
        line["driver_difference"] = round(rows[1]["driver_peak_mb"] / rows[0]["driver_peak_mb"] - 1, 3)
    print(json.dumps(line))


def _measured(options: argparse.Namespace, shape: Shape3) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)) / "x".join(map(str, shape))
        folder.mkdir(parents=True, exist_ok=True)
        return measure(options, shape, folder)


if __name__ == "__main__":
    main()
