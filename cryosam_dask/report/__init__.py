"""A run, or a folder of runs, as one page that needs nothing but a browser."""

from cryosam_dask.report.page import write_report

__all__ = ["write_report"]
