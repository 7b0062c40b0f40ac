"""One of several processes that want a lease at once. In a module of its own: new processes import it by its name."""

from __future__ import annotations

import os
from typing import Any

from cryosam_dask.errors import StoreError
from cryosam_dask.store.lease import Lease


def race(url: str, rounds: int, barrier: Any, won: Any, inside: Any) -> None:
    """Try once a round, all at the same time; who gets it says so, and must be alone while it holds it."""
    for _ in range(rounds):
        barrier.wait()
        try:
            with Lease(url):
                with inside.get_lock():
                    inside.value += 1
                    assert inside.value == 1
                won.put(os.getpid())
                barrier.wait()
                with inside.get_lock():
                    inside.value -= 1
        except StoreError:
            barrier.wait()
        barrier.wait()
