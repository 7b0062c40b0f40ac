"""The cores and GPUs of this machine for workers, and the settings that their processes start with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from cryosam_dask.executors.cluster import GPU, UNITS_PER_GPU

LOOPBACK = "127.0.0.1"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
ALLOCATION = {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}
"""Memory that is free goes back to the system, so that units take what is projected. Blocks of up to 32 MiB, the most
that glibc takes, are kept for the next of their kind as long as something lies above them: with a threshold for giving
back, glibc would ask the system for each of 128 kB, and a third of a unit's time could go there."""

MEMORY_SETTINGS = {f"distributed.worker.memory.{name}": False for name in ("target", "spill", "pause")}
"""Units are known to fit, and leave nothing behind to spill. A worker that holds a large model must not be paused."""

NO_PAGES: dict[str, list[str]] = {f"distributed.{who}.http.routes": [] for who in ("scheduler", "worker")}
"""Dask's web pages ask for no certificate: on a shared machine they would show other users what runs."""


def default_workers(device: str) -> int:
    """One per GPU on a GPU device, else one per core that this process may use."""
    from dask.system import CPU_COUNT

    return len(visible_gpus(device)) or int(CPU_COUNT)


def visible_gpus(device: str) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` calls the GPUs of a device: all for "cuda", one for "cuda:N", none for "cpu"."""
    if not device.startswith("cuda"):
        return []
    from cryosam_dask.models.registry import gpu_count

    count = gpu_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = named[:count] if len(named) >= count else [str(i) for i in range(count)]
    _, _, number = device.partition(":")
    return [names[int(number)]] if number else names


def worker_options(count: int, device: str) -> list[dict[str, Any]]:
    """Threads of each of `count` workers, and the GPU of those that have one."""
    gpus = visible_gpus(device)
    if not gpus:
        return [{"nthreads": 1}] * count
    own = {"nthreads": max(1, min(UNITS_PER_GPU, _cores(count))), "resources": {GPU: 1}}
    with_gpu = [own | {"env": {"CUDA_VISIBLE_DEVICES": gpu}} for gpu in gpus[:count]]
    return with_gpu + [{"nthreads": 1, "env": {"CUDA_VISIBLE_DEVICES": ""}}] * (count - len(with_gpu))


def _cores(count: int) -> int:
    """Cores for each of `count` workers."""
    from dask.system import CPU_COUNT

    return int(max(1, CPU_COUNT // count))


def spawn_environment(count: int) -> dict[str, str]:
    """Threads of the numerical libraries, which read them when they are imported, and how memory is given back."""
    return ALLOCATION | dict.fromkeys(THREAD_VARIABLES, str(_cores(count)))


@contextlib.contextmanager
def environment_kept() -> Iterator[None]:
    """Undo what Dask sets in this process's own environment to hand it down to its workers."""
    names = (*THREAD_VARIABLES, *ALLOCATION, "PYTHONHASHSEED")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
