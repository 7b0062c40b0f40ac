"""One driver at a time: a lease on a run's output, in the file `RUN.zarr.lock` beside it.

The file says who holds the run, and is written again every few seconds. It is taken over at once if its process ran on
this machine and has ended, and after a while without a write if it ran on another machine. If two processes want it at
once, one gets it: by an exclusive link on a local file system, by a conditional write on an object store that has
those, else by writing and reading back.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from cryosam_dask.errors import StoreError
from cryosam_dask.storage.address import is_local, local_path
from cryosam_dask.storage.filesystem import filesystem
from cryosam_dask.store.lease_holder import Holder, held_here, same_lease
from cryosam_dask.store.lease_local import LocalFile
from cryosam_dask.store.lease_remote import RemoteFile

SUFFIX = ".lock"
BEAT = 15.0
"""Seconds between two writes of the lease."""

EXPIRY = 90.0
"""Seconds without a write after which a lease on another machine is taken to be left behind."""

SETTLE = 0.5
"""Seconds before a lease that could not be written conditionally is read back."""

_UNREADABLE = 5.0
"""Seconds that an unreadable lease may take to become readable: where there are no links, it is created before it is
filled."""

_TRIES = 100
"""How often a lease may come and go just before it is taken."""


class Lease:
    """The right to write a run, from `with` to its end. May be entered again by the thread that holds it.

    Parameters
    ----------
    url : of the run, a path or an fsspec URL; it need not be there yet
    beat, expiry, settle : see `BEAT`, `EXPIRY`, `SETTLE`
    """

    def __init__(self, url: str | Path, *, beat: float = BEAT, expiry: float = EXPIRY, settle: float = SETTLE) -> None:
        self.url = str(url)
        self._beat, self._expiry, self._settle = beat, expiry, settle
        self._file = _file(self.url)
        self._depth = 0
        self._owner = 0
        self._mine: Holder | None = None
        self._lost = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._depth and self._owner != threading.get_ident():
            raise StoreError(f"{self.url}: is being written by another thread of this process; wait until it is done")
        if not self._depth:
            self._take()
            self._owner = threading.get_ident()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._give_back()

    def check(self) -> None:
        """`StoreError` if the lease was taken away or could not be kept. Costs nothing."""
        if self._lost:
            raise StoreError(f"{self.url}: {self._lost}; this run stops, finished units are kept")

    def _take(self) -> None:
        self._lost = ""
        mine = Holder.new()
        held_here.add(mine.token)
        try:
            for _ in range(_TRIES):
                if self._file.create(mine.text(), self._settle):
                    break
                self._clear(mine)
            else:
                raise StoreError(f"{self.url}: its lease {self._file.name} is taken again and again; try later")
        except (StoreError, OSError) as error:
            held_here.discard(mine.token)
            if isinstance(error, StoreError):
                raise
            what = error.strerror or str(error) or type(error).__name__
            raise StoreError(f"{self.url}: can't be written: {self._file.name} can't be made ({what})") from None
        self._mine = mine
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(mine, self._stop), name="lease", daemon=True)
        self._thread.start()

    def _clear(self, mine: Holder) -> None:
        """Take a lease away that was left behind; `StoreError` where its holder lives, or may."""
        text = self._file.read()
        if text is None:
            return
        held = Holder.read(text)
        if held is None or held.lives is None:
            # clocks of two machines may differ: what counts is whether it is written while one watches
            fresh = held is not None and abs(time.time() - held.beat) < self._expiry
            if fresh or not _unchanged(self._file, text, _UNREADABLE if held is None else 1.5 * self._beat):
                raise StoreError(self._refusal(Holder.read(self._file.read()) or held))
        elif held.lives:
            raise StoreError(self._refusal(held))
        self._file.remove(text, mine.token)

    def _refusal(self, held: Holder | None) -> str:
        who = held.words if held else "another command"
        advice = "wait until it is done, or stop it"
        if held is not None and held.lives is None:
            advice += f"; if it is not there any more, try again in {self._expiry:.0f} s"
        elif held is not None and held.pid == os.getpid():
            who = f"this very process ({held.pid})"
        return f"{self.url}: is being written by {who}; {advice}, or choose another output"

    def _keep(self, mine: Holder, stop: threading.Event) -> None:
        """Write the lease again and again, until it is given back or lost."""
        written = time.monotonic()
        while not stop.wait(self._beat):
            try:
                text = self._file.read()
                held = Holder.read(text)
                if held is None or held.token != mine.token:
                    taker = f"taken over by {held.words if held else 'another command'}"
                    self._lost = f"its lease was {taker}" if text else f"its lease {self._file.name} is gone"
                    return
                self._file.write(mine.text())
                written = time.monotonic()
            except Exception as error:  # noqa: BLE001 - a file system may fail for a while
                if time.monotonic() - written > self._expiry:
                    self._lost = f"its lease {self._file.name} could not be written for {self._expiry:.0f} s ({error})"
                    return

    def _give_back(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=self._beat)
        mine, self._mine, self._thread = self._mine, None, None
        if mine is None:
            return
        held_here.discard(mine.token)
        with contextlib.suppress(OSError, StoreError):
            text = self._file.read()
            if text is not None and same_lease(text, mine.text()):
                self._file.remove(text, mine.token)


def holder(url: str | Path) -> Holder | None:
    """Who writes a run at this moment, as far as this machine knows; None if nobody does."""
    try:
        text = _file(str(url)).read()
    except (OSError, StoreError):
        return None
    held = Holder.read(text)
    return None if held is None or held.lives is False or time.time() - held.beat > EXPIRY else held


class _File(Protocol):
    """The lease's file, wherever it is."""

    name: str

    def read(self) -> bytes | None: ...

    def create(self, text: bytes, settle: float) -> bool:
        """Create the file if it is not there; False if it is."""
        ...

    def write(self, text: bytes) -> None:
        """Replace the file, in one step."""
        ...

    def remove(self, text: bytes, token: str) -> None:
        """Remove the file if it is still the one that was read."""
        ...


def _file(url: str) -> _File:
    if is_local(url):
        return LocalFile(Path(local_path(url).rstrip("/") + SUFFIX).absolute())
    remote, path = filesystem(url)
    return RemoteFile(remote, path.rstrip("/") + SUFFIX)


def _unchanged(file: _File, text: bytes, seconds: float) -> bool:
    """Whether a file stays as it was read for so long."""
    looks = max(10, math.ceil(seconds / 0.5))
    for _ in range(looks):  # not until a time: whoever was stopped in one of the pauses has not watched
        time.sleep(seconds / looks)
        if file.read() != text:
            return False
    return True
