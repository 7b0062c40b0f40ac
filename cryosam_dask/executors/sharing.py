"""What executors know of each other that share the workers of one cluster, each for a run in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

UNITS_PER_SLOT = 3
"""Units in flight for each thread (or GPU): enough that no worker waits for the driver, few enough for a scheduler."""

_LOOK = 0.5


class Sharing:
    """The units that each of several executors has in flight, and whether one of them has the workers to itself.

    Executors are told apart by any object of their own. Everything may be called from any thread.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._flying: dict[object, int] = {}
        self._alone: object | None = None

    def tell(self, own: object, flying: int) -> None:
        """An executor has so many units in flight."""
        with self._changed:
            if flying:
                self._flying[own] = flying
            else:
                self._flying.pop(own, None)
            self._changed.notify_all()

    def window(self, own: object, slots: int) -> int:
        """Units that an executor may have in flight: enough for all workers if it has them to itself, and as many as
        run at once however many others have. None while another one is `alone`."""
        with self._changed:
            if self._alone not in (None, own):
                return 0
            others = sum(count for other, count in self._flying.items() if other is not own)
            return max(slots, slots * UNITS_PER_SLOT - others)

    @contextlib.contextmanager
    def alone(self, own: object, check: Callable[[], object]) -> Iterator[None]:
        """Have the workers to itself, once what others have in flight has landed. What `check`, which is called while
        it waits, raises ends that."""
        with self._changed:
            self._await(lambda: self._alone is None, check)
            self._alone = own
        try:
            with self._changed:
                self._await(lambda: not self._flying.keys() - {own}, check)
            yield
        finally:
            with self._changed:
                self._alone = None
                self._changed.notify_all()

    def _await(self, what: Callable[[], bool], check: Callable[[], object]) -> None:
        while not self._changed.wait_for(what, _LOOK):
            check()
