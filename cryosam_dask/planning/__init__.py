"""What a run will cost, before anything runs: units, memory, bytes, planes, and time on N workers."""

from cryosam_dask.planning.costs import MACHINES, Machine, machine
from cryosam_dask.planning.like import measured
from cryosam_dask.planning.plan import WORKERS, Measured, Options, Plan, plan_run, to_json, worker_counts
from cryosam_dask.planning.scaling import Bulk, Cluster, Job, Outcome, estimate, job_of, limit, limits, simulate
from cryosam_dask.planning.words import in_words

__all__ = [
    "MACHINES",
    "WORKERS",
    "Bulk",
    "Cluster",
    "Job",
    "Machine",
    "Measured",
    "Options",
    "Outcome",
    "Plan",
    "estimate",
    "in_words",
    "job_of",
    "limit",
    "limits",
    "machine",
    "measured",
    "plan_run",
    "simulate",
    "to_json",
    "worker_counts",
]
