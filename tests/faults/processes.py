"""Schedulers and workers as programs of their own, on the loopback, to be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "60s",
}


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """A scheduler at one port, and workers of one thread with nannies; everything can be killed and started again."""

    def __init__(self, folder: Path, *options: str, scheme: str = "tcp") -> None:
        self.port = free_port()
        self.address = f"{scheme}://127.0.0.1:{self.port}"
        self._folder, self._options = folder, options
        self._running: list[subprocess.Popen[bytes]] = []

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        process = self._start("scheduler", "--port", str(self.port), "--host", self.address.rpartition(":")[0])
        deadline = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return process
            assert process.poll() is None, self.log("scheduler")
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def start_worker(self, *options: str) -> subprocess.Popen[bytes]:
        where = self._folder / f"worker{len(self._running)}"
        host = self.address.rpartition(":")[0]
        return self._start(
            "worker", self.address, "--nthreads", "1", "--memory-limit", "2GiB", "--host", host,
            "--local-directory", str(where), *options,
        )  # fmt: skip

    def _start(self, what: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{what}.log").open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", what, *arguments, "--no-dashboard", *self._options],
                stdout=file,
                stderr=file,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def log(self, what: str) -> str:
        return (self._folder / f"{what}.log").read_text()

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        """The process and all that it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(120)

    def close(self) -> None:
        for process in self._running:
            self.kill(process)


@contextlib.contextmanager
def cluster(folder: Path, *options: str, scheme: str = "tcp") -> Iterator[Cluster]:
    """A `Cluster` of which nothing has been started yet, and of which nothing is left afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Cluster(folder, *options, scheme=scheme)
    try:
        yield made
    finally:
        made.close()
