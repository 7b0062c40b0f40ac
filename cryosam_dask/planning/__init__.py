"""What a run will cost, before anything runs: units, memory, bytes, planes, and time on N workers."""

from cryosam_dask.planning.costs import MACHINES, Machine, machine
from cryosam_dask.planning.estimate import Bulk, Cluster, estimate
from cryosam_dask.planning.like import measured
from cryosam_dask.planning.many import ManyRuns, at_once, estimate_many
from cryosam_dask.planning.plan import WORKERS, Measured, Options, Plan, plan_run, to_json, worker_counts
from cryosam_dask.planning.words import in_words

__all__ = [
    "MACHINES",
    "WORKERS",
    "Bulk",
    "Cluster",
    "Machine",
    "ManyRuns",
    "Measured",
    "Options",
    "Plan",
    "at_once",
    "estimate",
    "estimate_many",
    "in_words",
    "machine",
    "measured",
    "plan_run",
    "to_json",
    "worker_counts",
]
