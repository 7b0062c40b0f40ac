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
    """Numbers of jobs whose processes are there."""
    found = []
    for file in jobs.glob("*.pid"):
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
            pid = int(file.read_text())
            os.killpg(pid, 0)
            if not _is_zombie(pid):
                found.append(int(file.stem))
    return sorted(found)


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def end(jobs: Path, number: int, number_of_signal: int = signal.SIGTERM) -> None:
    """End a job's processes; by force if they don't listen."""
    pid = int((jobs / f"{number}.pid").read_text())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number_of_signal)
        for _ in range(100):
            time.sleep(0.02)
            os.killpg(pid, 0)
            if _is_zombie(pid):
                return
        os.killpg(pid, signal.SIGKILL)


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
