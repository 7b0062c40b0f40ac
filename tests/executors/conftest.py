"""Two local workers for the whole session: starting them takes seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # spawned workers get this process's path, and `toy_stage` with it

from cryosam_dask.executors.local import close_local, local_client


@pytest.fixture(scope="session")
def two_workers() -> Iterator[object]:
    client = local_client(2)
    yield client
    close_local(client)
