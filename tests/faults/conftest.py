"""Faults are injected by workers and by programs that tests start: they must find these modules by their names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "executors")]

from whole_run import reference  # noqa: E402 - found by its name only now

from cryosam_dask.executors.local import close_local, local_client  # noqa: E402


@pytest.fixture(scope="session")
def undisturbed(ball_tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `ball_tomogram`. Tests must not change it."""
    return reference(ball_tomogram, tmp_path_factory.mktemp("undisturbed") / "run.zarr")


@pytest.fixture(scope="module")
def nannied() -> Iterator[object]:
    """Two local workers, each with a nanny that starts it again."""
    client = local_client(2)
    yield client
    close_local(client)
