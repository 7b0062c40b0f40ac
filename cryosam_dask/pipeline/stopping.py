"""When the tomograms that are left of a batch are not tried: what failed one of them would fail them, too."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

from cryosam_dask.errors import CryosamError, DeviceError, ExecutionError, ModelError, StoreError
from cryosam_dask.executors.connection import ConnectionLostError

BROKEN = 3
"""How many tomograms in a row units or workers may fail on before the rest is not tried."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Failures:
    """The tomograms that failed so far, of some in their order. They may end in any other."""

    def __init__(self, order: Sequence[int]) -> None:
        self._places = {index: place for place, index in enumerate(order)}
        self._broken: set[int] = set()

    def add(self, index: int, error: Exception) -> int:
        """A tomogram failed; with how many in a row, this one among them, the workers failed.

        In a row means in their order: those that are bad fail sooner than others are done.
        """
        # an input is at fault alone; what was thrown by workers or by a defect may be thrown again
        if isinstance(error, CryosamError) and not isinstance(error, ExecutionError):
            return 0
        first = last = self._places[index]
        self._broken.add(first)
        while first - 1 in self._broken:
            first -= 1
        while last + 1 in self._broken:
            last += 1
        return last - first + 1


def why_stop(error: Exception, broken: int, fail_fast: bool) -> str:
    """Why the tomograms after one that failed are not tried; empty if they are."""
    if fail_fast:
        return "the first failure ends it, as asked"
    if isinstance(error, DeviceError | ModelError):
        return "the models can't run, and so on no other tomogram"
    if any(isinstance(cause, ConnectionLostError) for cause in _chain(error)):
        return "the scheduler is gone"
    if any(_is_full(cause) for cause in _chain(error)):
        return "results can't be written, and so of no other tomogram"
    if broken >= BROKEN:
        return f"{broken} tomograms in a row failed on the workers"
    return ""


def _is_full(error: BaseException) -> bool:
    """Whether the disk is full or read-only. What a worker raised has lost its cause on the way, but not its words."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, StoreError) and any(os.strerror(number) in str(error) for number in _FULL)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all that led to it."""
    if error is not None:
        yield error
        yield from _chain(error.__cause__)
        if error.__context__ is not error.__cause__:
            yield from _chain(error.__context__)
