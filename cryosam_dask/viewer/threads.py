"""Threads for what would block the server's loop, and a bound on how much may wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from cryosam_dask.viewer.status import BusyError

T = TypeVar("T")


class Threads:
    """A pool of threads.

    count : threads; waiting : calls that may wait for one
    """

    def __init__(self, name: str, count: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=f"view-{name}")
        self._most, self._waiting = count + waiting, 0

    def begin(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have a function called in a thread; `BusyError` if too many wait. Call this in the loop's thread."""
        if self._waiting >= self._most:
            raise BusyError("too many requests wait; ask again soon")
        self._waiting += 1
        future = self._pool.submit(function, *arguments)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: _quietly(loop, self._ended))
        return future

    def _ended(self) -> None:
        self._waiting -= 1

    def close(self) -> None:
        """Drop what waits, and don't wait for what runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _quietly(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)
