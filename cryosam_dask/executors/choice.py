"""Choose an executor: decide from the user's options where units run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import SettingsError
from cryosam_dask.executors.base import Executor
from cryosam_dask.executors.dask import UNIT_TIMEOUT, DaskExecutor
from cryosam_dask.executors.joined import JoinedScheduler, UserClient
from cryosam_dask.executors.local import LocalWorkers
from cryosam_dask.executors.machine import default_workers
from cryosam_dask.executors.security import secured
from cryosam_dask.executors.serial import SerialExecutor

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Client, Security


def make_executor(
    workers: int | None = None,
    scheduler: str | None = None,
    device: str = "auto",
    client: Client | None = None,
    *,
    uses_torch: bool = True,
    cluster: str | Path | None = None,
    security: Security | None = None,
    unit_timeout: float | None = UNIT_TIMEOUT,
) -> Executor:
    """Choose where units run.

    A `client` is used and left open. A `scheduler` address is connected to. A `cluster`, "cuda" or a file, is started
    and stopped. Otherwise they run here: on `workers` processes (None: one per GPU, or else one per core), started when
    the first stage needs them, or in this process if that is fewer than two.

    security : certificates for `scheduler` or `cluster`; clusters that are started here make their own without
    unit_timeout : seconds after which a unit is taken to hang and runs elsewhere; None: never

    Raises
    ------
    SettingsError : arguments contradict each other, or are not valid
    DeviceError : a GPU was asked for and there is none
    ExecutionError : the scheduler does not answer, or the cluster did not start
    """
    _agree(workers, scheduler, client, cluster, security)
    if unit_timeout is not None and not unit_timeout > 0:
        raise SettingsError(f"unit timeout {unit_timeout:g}: expected seconds above 0, or none")
    common: dict[str, Any] = {"uses_torch": uses_torch, "unit_timeout": unit_timeout}
    if client is not None:
        return DaskExecutor(UserClient(client), device, **common)
    if scheduler is not None:
        address, security = secured(scheduler, security)
        return DaskExecutor(JoinedScheduler(address, security=security), device, **common)
    if cluster is not None:
        from cryosam_dask.executors.clusters import open_cluster

        return open_cluster(cluster, device=device, security=security, **common)
    from cryosam_dask.models.registry import resolve_device

    device = resolve_device(device, uses_torch)
    count = default_workers(device) if workers is None else workers
    return DaskExecutor(LocalWorkers(count, device), **common) if count > 1 else SerialExecutor(device)


def _agree(
    workers: int | None,
    scheduler: str | None,
    client: Client | None,
    cluster: str | Path | None,
    security: Security | None,
) -> None:
    """`SettingsError` if it is not clear where units shall run."""
    if workers is not None and workers < 0:
        raise SettingsError(f"workers {workers} is not possible; expected 0 (this process) or more")
    places = {"--workers": workers, "--scheduler": scheduler, "a client": client, "--cluster": cluster}
    given = [name for name, place in places.items() if place is not None]
    if len(given) > 1:
        raise SettingsError(f"{' and '.join(given)} are different places to run at; give one of them")
    if security is not None and scheduler is None and cluster is None:
        raise SettingsError(
            "certificates are for a scheduler or a cluster; give --scheduler or --cluster with them (local workers "
            "make their own)"
        )
