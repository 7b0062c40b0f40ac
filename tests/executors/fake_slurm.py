"""sbatch, squeue and scancel that run jobs as processes of this machine. State is a folder: one file for each job.

`install(folder)` writes the three commands and returns the folder to put first on PATH.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def install(folder: Path) -> Path:
    """Write the commands; jobs are noted in `folder`/jobs."""
    commands, jobs = folder / "bin", folder / "jobs"
    commands.mkdir(parents=True)
    jobs.mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        path = commands / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {__file__} {name} {jobs} "$@"\n')
        path.chmod(0o755)
    return commands


def sbatch(jobs: Path, script: str) -> int:
    """Start the script in a session of its own, unless the queue is closed (`jobs`/closed holds what sbatch says)."""
    closed = jobs / "closed"
    if closed.exists():
        print(closed.read_text(), file=sys.stderr)  # noqa: T201
        return 1
    number = len(list(jobs.glob("*.sh"))) + 1
    kept = jobs / f"{number}.sh"
    kept.write_text(Path(script).read_text())
    with (jobs / f"{number}.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", str(kept)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (jobs / f"{number}.pid").write_text(str(process.pid))
    print(f"Submitted batch job {number}")  # noqa: T201
    return 0


def running(jobs: Path) -> list[int]:
    """Numbers of jobs that have processes."""
    found, groups = [], _groups()
    for file in jobs.glob("*.pid"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            if int(file.read_text()) in groups:
                found.append(int(file.stem))
    return sorted(found)


def _groups() -> set[int]:
    """All groups of processes; those that have ended, and were not waited for, don't count."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group, *_ = file.read_text().rpartition(")")[2].split()
            if state not in "ZX":
                found.add(int(group))
    return found


def end(jobs: Path, number: int, number_of_signal: int = signal.SIGTERM) -> None:
    """End a job's processes, by force if they don't listen; returns when they are gone."""
    group = int((jobs / f"{number}.pid").read_text())
    looks = 0
    while group in _groups():
        with contextlib.suppress(ProcessLookupError):
            if looks in (0, 100):
                os.killpg(group, number_of_signal if looks == 0 else signal.SIGKILL)
        time.sleep(0.02)
        looks += 1


def main(command: str, folder: str, *arguments: str) -> int:
    jobs = Path(folder)
    if command == "sbatch":
        return sbatch(jobs, arguments[-1])
    if command == "squeue":
        sys.stdout.writelines(f"{number}\n" for number in running(jobs))
        return 0
    for number in arguments:
        end(jobs, int(number))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
