"""`cryosam run --scheduler` on a cluster started from the command line, as deploy/README.md says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cryosam_dask as cs
from cryosam_dask import outputs
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "60s"}
PROGRAM = "from cryosam_dask.cli import main; main()"


@contextlib.contextmanager
def started(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`dask …` in a process group of its own, which is gone afterwards."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            stdout=file,
            stderr=file,
            env=ENVIRONMENT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        finally:  # a nanny's worker may outlive it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(120)


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """Address of a scheduler with two workers of one thread, all on the loopback."""
    where = tmp_path / "scheduler.json"
    with contextlib.ExitStack() as running:
        first = running.enter_context(
            started(
                "scheduler",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--no-dashboard",
                "--scheduler-file",
                str(where),
                log=tmp_path / "scheduler.log",
            )
        )
        deadline = time.monotonic() + 300
        while not (where.exists() and where.read_text().strip().endswith("}")):
            assert first.poll() is None, (tmp_path / "scheduler.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = json.loads(where.read_text())["address"]
        for index in range(2):
            running.enter_context(
                started(
                    "worker",
                    address,
                    "--nthreads",
                    "1",
                    "--nworkers",
                    "1",
                    "--memory-limit",
                    "2GiB",
                    "--host",
                    "127.0.0.1",
                    "--no-dashboard",
                    "--local-directory",
                    str(tmp_path / f"worker{index}"),
                    log=tmp_path / f"worker{index}.log",
                )
            )
        from distributed import Client

        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=300)
        yield address


def cryosam(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT,
        timeout=600,
    )  # fmt: skip


def test_a_run_on_a_scheduler_equals_one_in_this_process(scheduler: str, ball_tomogram: Path, tmp_path: Path) -> None:
    point = "20,20,20"
    out, serial = tmp_path / "cluster.zarr", tmp_path / "serial.zarr"
    common = ["--models", "texture+random-walker", "--count", "3"]
    done = cryosam("run", ball_tomogram, "--point", point, "--out", out, "--scheduler", scheduler, *common)
    assert done.returncode == 0, done.stderr
    assert f"{out}: " in done.stdout
    assert "Traceback" not in done.stderr

    from cryosam_dask.pipeline import settings_for

    settings = settings_for("texture+random-walker", {"match.count": 3})
    cs.run(ball_tomogram, [[20, 20, 20]], serial, settings=settings, workers=0)
    one, two = RunStore.open(out), RunStore.open(serial)
    assert len(picks.read(one, "particle")) >= 3
    assert picks.read(one, "particle").equals(picks.read(two, "particle"))
    for path in (layout.labels("particle"), layout.latents(1, "x"), layout.similarity("particle", 4)):
        assert np.array_equal(one.read(path), two.read(path), equal_nan=True)
    described = outputs.describe(out)["stages"]
    assert all(s["done"] == s["units"] for name, s in described.items() if name != "embeddings")
