"""Loaded by local workers when they start."""

from __future__ import annotations

import signal


def dask_setup(worker: object) -> None:
    """Leave Ctrl-C to the driver, which stops its workers in order; a terminal sends it to all of them at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
