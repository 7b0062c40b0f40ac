"""One BLAS thread while units run, however many of them run at once in a process."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class OneBlasThread:
    """Keeps BLAS to one thread while any thread of this process is within `held`.

    Sums round differently on another number of threads, and units must give the same bytes wherever they run.

    Some libraries have one number of threads for the whole process: the first unit sets it and the last one restores
    it. threadpoolctl needs one thread to do both, so a thread kept for this purpose does. Others (those built on
    OpenMP) have a number for each thread, so each unit sets that of its own, too.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._keeper = ThreadPoolExecutor(1, thread_name_prefix="blas-limit")
        self._kept = contextlib.ExitStack()
        self._inside = 0
        self._modules = 0
        self._libraries: Any = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        import scipy.linalg  # noqa: F401 - brings a BLAS of its own, which must be there to be found

        libraries = self._enter()
        try:
            with libraries.limit(limits=1, user_api="blas"):
                yield
        finally:
            self._leave()

    def _enter(self) -> Any:
        with self._guard:
            if self._look() or not self._inside:
                self._keeper.submit(self._limit).result()
            self._inside += 1
            return self._libraries

    def _leave(self) -> None:
        with self._guard:
            self._inside -= 1
            if not self._inside:  # the last limit ends first, so that the numbers before the first one are restored
                self._keeper.submit(self._kept.close).result()

    def _limit(self) -> None:
        self._kept.enter_context(self._libraries.limit(limits=1, user_api="blas"))

    def _look(self) -> bool:
        """Look for libraries if there may be new ones. It takes milliseconds, and only an import brings any."""
        from threadpoolctl import ThreadpoolController

        if self._modules == len(sys.modules):
            return False
        self._libraries, self._modules = ThreadpoolController(), len(sys.modules)
        return True


one_blas_thread = OneBlasThread()
"""The instance that the whole process shares, since the limits are the process's."""
