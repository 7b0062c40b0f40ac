"""This machine's GPUs with dask-cuda: one worker for each."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from cryosam_dask.errors import DeviceError, ExecutionError, SettingsError
from cryosam_dask.executors.base import one_line
from cryosam_dask.executors.cluster import GPU, UNITS_PER_GPU, WORKER_TIMEOUT, Cluster
from cryosam_dask.executors.connection import quiet_dask
from cryosam_dask.executors.machine import LOOPBACK, MEMORY_SETTINGS, visible_gpus
from cryosam_dask.executors.memory import USABLE, available_memory
from cryosam_dask.executors.security import TLS, temporary_security

if TYPE_CHECKING:
    from distributed import Client, Security

CUDA = "cuda"


class CudaWorkers(Cluster):
    """A `dask_cuda.LocalCUDACluster`.

    device : auto, cuda or cuda:N; security : certificates, instead of some of its own

    Raises
    ------
    SettingsError : the device is no GPU
    DeviceError : there is no GPU
    ExecutionError : dask-cuda is not installed, or the workers did not start
    """

    def __init__(self, device: str = "auto", security: Security | None = None) -> None:
        if device == "cpu":
            raise SettingsError("--cluster cuda and --device cpu contradict each other; leave one of them out")
        self.device, self.expects_gpu, self.worker_timeout = None, True, WORKER_TIMEOUT
        gpus = _gpus(device)
        with contextlib.ExitStack() as opening:
            opening.enter_context(quiet_dask())
            self._client = _start(gpus, security, opening)
            self._opened = opening.pop_all()

    def connect(self) -> Client:
        return self._client

    def close(self) -> None:
        """Stop the workers."""
        self._opened.close()


def _start(gpus: list[str], security: Security | None, opened: contextlib.ExitStack) -> Client:
    """A worker for each of these GPUs, and a connection to them; both end with `opened`."""
    import dask
    from distributed import Client

    try:
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        raise not_installed("dask-cuda", "cuda", error) from error
    options = {
        "CUDA_VISIBLE_DEVICES": gpus,
        "threads_per_worker": UNITS_PER_GPU,
        "memory_limit": int(available_memory() * USABLE / len(gpus)),
        "device_memory_limit": None,  # models and units are no Dask data that could be spilled
        "resources": {GPU: 1},
        "host": LOOPBACK,
        "protocol": TLS,
        "security": security or temporary_security(),
        "dashboard_address": f"{LOOPBACK}:0",
        "silence_logs": logging.CRITICAL,
    }
    try:
        with dask.config.set(MEMORY_SETTINGS):
            cluster = opened.enter_context(LocalCUDACluster(**options))
        client: Client = opened.enter_context(Client(cluster, set_as_default=False))
    except Exception as error:
        raise ExecutionError(
            f"dask-cuda's workers did not start ({one_line(error)}); without --cluster cuda, workers for the GPUs "
            "start without dask-cuda"
        ) from error
    return client


def _gpus(device: str) -> list[str]:
    from cryosam_dask.models.registry import resolve_device

    gpus = visible_gpus(resolve_device(CUDA if device == "auto" else device, True))
    if not gpus:
        raise DeviceError(f"device {device}: there is no GPU here; leave --cluster cuda out to run on the CPU")
    return gpus


def not_installed(package: str, extra: str, error: ImportError) -> ExecutionError:
    """The error for a package of one of our extras that is not installed."""
    return ExecutionError(
        f"--cluster needs {package}, which can't be loaded here ({one_line(error)}); pip install "
        f"'cryosam-dask[{extra}]'"
    )
