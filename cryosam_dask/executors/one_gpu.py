"""Loaded by the workers of a job that holds several GPUs: each worker sees one of them."""

from __future__ import annotations

import os
from typing import Protocol


class _Named(Protocol):
    name: object


def dask_setup(worker: _Named) -> None:
    """Leave worker `…-i` the i-th of the GPUs that the job was given; nothing has touched a GPU by now."""
    index = int(str(worker.name).rpartition("-")[2])
    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    os.environ["CUDA_VISIBLE_DEVICES"] = given[index] if index < len(given) else str(index)
