"""Where units run: in this process, or on a Dask cluster."""

from cryosam_dask.executors.base import Execution, Executor, Failure, Finished, Observer, Timing, execute
from cryosam_dask.executors.choice import make_executor
from cryosam_dask.executors.dask import DaskExecutor
from cryosam_dask.executors.joined import JoinedScheduler, UserClient
from cryosam_dask.executors.local import LocalWorkers, local_client
from cryosam_dask.executors.progress import NullProgress, Progress
from cryosam_dask.executors.serial import SerialExecutor

__all__ = [
    "DaskExecutor",
    "Execution",
    "Executor",
    "Failure",
    "Finished",
    "JoinedScheduler",
    "LocalWorkers",
    "NullProgress",
    "Observer",
    "Progress",
    "SerialExecutor",
    "Timing",
    "UserClient",
    "execute",
    "local_client",
    "make_executor",
]
