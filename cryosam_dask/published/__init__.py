"""Published benchmarks as commands: the paper's tables on EMPIAR-10499, and the classes of the CZII challenge."""

from cryosam_dask.published.data import Entry, Truth, find
from cryosam_dask.published.jobs import Asked
from cryosam_dask.published.paper import TABLES, Config, Table, tables
from cryosam_dask.published.records import Record, Records
from cryosam_dask.published.work import run

__all__ = ["TABLES", "Asked", "Config", "Entry", "Record", "Records", "Table", "Truth", "find", "run", "tables"]
