"""Jobs of SLURM, one by one: how many are wanted, their scripts and certificates, and their scheduler.

Needs dask-jobqueue.
"""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dask_jobqueue.slurm import SLURMJob
from distributed import Scheduler, Security, SpecCluster

from cryosam_dask.errors import ExecutionError, SettingsError
from cryosam_dask.executors.base import one_line
from cryosam_dask.executors.cluster import GPU
from cryosam_dask.executors.cluster_file import SlurmFile
from cryosam_dask.executors.machine import ALLOCATION, LOOPBACK, MEMORY_SETTINGS, NO_PAGES, THREAD_VARIABLES
from cryosam_dask.executors.security import TLS, write_private

DEATH_TIMEOUT = 120
"""Seconds that a worker looks for its scheduler before its job ends."""

_OPEN = ("waiting", "no-worker", "queued", "processing")
_TLS_PARTS = {"ca_file": "ca.pem", "cert": "cert.pem", "key": "key.pem"}


@dataclass(eq=False)
class Held:
    """A job that was submitted and has not ended."""

    kind: str
    name: str
    job: SLURMJob
    workers: frozenset[str]
    joined: bool = False
    leaving: bool = False
    unneeded_since: float | None = None


def new_job(file: SlurmFile, kind: str, name: str, scheduler: str, tls: dict[str, str]) -> SLURMJob:
    """A job of this kind, not submitted yet; `tls` maps ca_file, cert and key to paths."""
    of = file.kinds[kind]
    processes, threads = file.processes(kind), file.threads(kind)
    extra = ["--no-dashboard", "--lifetime", f"{of.seconds - of.margin:.0f}s"]
    extra += ["--lifetime-stagger", f"{of.margin / 2:.0f}s"]
    if kind == "gpu":
        extra += ["--resources", f"{GPU}=1"]
        extra += ["--preload", "cryosam_dask.executors.one_gpu"] if processes > 1 else []
    log = shlex.quote(str(log_path(file, kind, "%j")))
    quoted = {f"tls_worker_{part}": shlex.quote(tls[part]) for part in ("cert", "key")}
    try:
        return SLURMJob(
            scheduler=scheduler,
            name=name,
            job_name=f"cryosam-{kind}",
            cores=processes * threads,
            job_cpu=of.cores,
            memory=of.memory,
            processes=processes,
            walltime=of.walltime,
            queue=of.queue,
            account=of.account,
            interface=of.interface or file.interface,
            protocol=TLS,
            security=Security(tls_ca_file=shlex.quote(tls["ca_file"]), **quoted),
            death_timeout=DEATH_TIMEOUT,
            local_directory=of.local_directory,
            worker_extra_args=extra,
            job_extra_directives=[f"--output={log}", *of.directives],
            job_script_prologue=[*_environment(of.cores // processes), *of.prologue],
            python=file.quoted_python(),
        )
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{kind}: no job can be made of this ({one_line(error)})") from error


def log_path(file: SlurmFile, kind: str, job_id: str) -> Path:
    return file.shared / "logs" / f"cryosam-{kind}-{job_id}.log"


def _environment(cores: int) -> list[str]:
    """What a worker's process needs before it starts: see `local.local_client`."""
    lines = [f"export {name}={value}" for name, value in ALLOCATION.items()]
    lines += [f"export {name}={cores}" for name in THREAD_VARIABLES]
    lines += ["export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'"]
    return lines + [
        f"export DASK_{name.upper().replace('.', '__').replace('-', '_')}={value}"
        for name, value in MEMORY_SETTINGS.items()
    ]


def shared_files(file: SlurmFile, security: Security, folder: Path) -> dict[str, str]:
    """Make the folders that jobs share with this process, and return the paths of a worker's certificates. Certificates
    that are only in memory are written to `folder`, readable by its owner alone."""
    paths: dict[str, str] = {}
    try:
        (file.shared / "logs").mkdir(parents=True, exist_ok=True)
        for part, value in security.get_tls_config_for_role("worker").items():
            if part in _TLS_PARTS and value:
                paths[part] = str(write_private(folder, _TLS_PARTS[part], value)) if "\n" in value else value
    except OSError as error:
        raise ExecutionError(
            f"shared_directory {file.shared}: can't be written ({error.strerror}); jobs read there"
        ) from error
    return paths


def start_scheduler(file: SlurmFile, security: Security) -> Any:
    """A `SpecCluster` without workers, whose scheduler listens on the interface that the file names, else on the one
    that leads outside.

    `SettingsError` if there is no such interface, `ExecutionError` if it does not start.
    """
    import dask
    from distributed.utils import get_ip, get_ip_interface

    try:
        host = file.host or (get_ip_interface(file.interface) if file.interface else get_ip())
    except (ValueError, OSError) as error:
        raise SettingsError(f"interface {file.interface}: {one_line(error)}") from None
    shown = {"dashboard_address": file.dashboard or f"{LOOPBACK}:0", "dashboard": file.dashboard is not None}
    scheduler = {
        "cls": Scheduler,
        "options": {"host": host, "port": file.port, "protocol": TLS, "security": security, **shown},
    }
    try:
        with dask.config.set({} if file.dashboard else NO_PAGES):
            return SpecCluster({}, scheduler, security=security, silence_logs=logging.CRITICAL, name="cryosam")
    except (OSError, RuntimeError, ValueError) as error:
        raise ExecutionError(f"the scheduler did not start on this machine ({one_line(error)})") from error


def demand(scheduler: Scheduler, file: SlurmFile) -> Counter[str]:
    """Units that run or wait now, by the kind of job that they wait for."""
    return Counter(file.kind_of(needs_gpu(ts)) for ts in scheduler.tasks.values() if ts.state in _OPEN)


def needs_gpu(task: Any) -> bool:
    """Whether a task of the scheduler waits for a GPU, or runs on one."""
    return GPU in (task.resource_restrictions or {})


def wanted(file: SlurmFile, kind: str, units: int) -> int:
    """Jobs of a kind that so many units keep busy, within its limits."""
    limits = file.kinds[kind]
    return max(limits.minimum, min(limits.maximum, -(-units // file.units(kind))))


def last_line(error: BaseException) -> str:
    """The last line that a command of the batch system printed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
