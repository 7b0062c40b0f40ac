"""One job of SLURM: its script, its certificates, and where its scheduler listens. Needs dask-jobqueue."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from dask_jobqueue.slurm import SLURMJob
from distributed import Security

from cryosam_dask.errors import SettingsError
from cryosam_dask.executors.base import one_line
from cryosam_dask.executors.cluster_file import SlurmFile
from cryosam_dask.executors.dask import GPU
from cryosam_dask.executors.local import LOOPBACK, MEMORY_SETTINGS, THREAD_VARIABLES
from cryosam_dask.executors.security import TLS, write_private

DEATH_TIMEOUT = 120
"""Seconds that a worker looks for its scheduler before its job ends."""

_TLS_PARTS = {"ca_file": "ca.pem", "cert": "cert.pem", "key": "key.pem"}


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
    lines = ["export MALLOC_TRIM_THRESHOLD_=65536"]
    lines += [f"export {name}={cores}" for name in THREAD_VARIABLES]
    lines += ["export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'"]
    return lines + [
        f"export DASK_{name.upper().replace('.', '__').replace('-', '_')}={value}"
        for name, value in MEMORY_SETTINGS.items()
    ]


def tls_files(security: Security, folder: Path) -> dict[str, str]:
    """Paths of a worker's certificates; what is only in memory is written to `folder`, for its owner alone."""
    found: dict[str, str] = {}
    for part, value in security.get_tls_config_for_role("worker").items():
        if part in _TLS_PARTS and value:
            found[part] = str(write_private(folder, _TLS_PARTS[part], value)) if "\n" in value else value
    return found


def scheduler_options(file: SlurmFile) -> dict[str, Any]:
    """Where the scheduler listens: on the interface that the file names, else on the one that leads outside.

    `SettingsError` if there is no such interface.
    """
    from distributed.utils import get_ip, get_ip_interface

    try:
        host = file.host or (get_ip_interface(file.interface) if file.interface else get_ip())
    except (ValueError, OSError) as error:
        raise SettingsError(f"interface {file.interface}: {one_line(error)}") from None
    shown = {"dashboard_address": file.dashboard or f"{LOOPBACK}:0", "dashboard": file.dashboard is not None}
    return {"host": host, "port": file.port, "protocol": TLS, **shown}


def last_line(error: BaseException) -> str:
    """What a command of the batch system said at the end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
