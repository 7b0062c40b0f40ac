"""Where units run: in this process, or on a Dask cluster."""

from cryosam_dask.executors.base import Execution, Executor, Failure, Finished, Observer, Timing, execute
from cryosam_dask.executors.choice import make_executor
from cryosam_dask.executors.dask import DaskExecutor
from cryosam_dask.executors.local import LocalExecutor, local_client
from cryosam_dask.executors.progress import NullProgress, Progress
from cryosam_dask.executors.serial import SerialExecutor

__all__ = [
    "DaskExecutor",
    "Execution",
    "Executor",
    "Failure",
    "Finished",
    "LocalExecutor",
    "NullProgress",
    "Observer",
    "Progress",
    "SerialExecutor",
    "Timing",
    "execute",
    "local_client",
    "make_executor",
]
