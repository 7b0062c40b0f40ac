"""Published benchmarks as commands: the paper's tables on EMPIAR-10499, and the classes of the CZII challenge."""

from cryosam_dask.benchmark.data import Entry, Truth, find
from cryosam_dask.benchmark.jobs import Asked
from cryosam_dask.benchmark.paper import TABLES, Config, Table, tables
from cryosam_dask.benchmark.records import Record, Records
from cryosam_dask.benchmark.work import run

__all__ = ["TABLES", "Asked", "Config", "Entry", "Record", "Records", "Table", "Truth", "find", "run", "tables"]
