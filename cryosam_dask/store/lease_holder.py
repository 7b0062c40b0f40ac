"""Who holds a run: what the file of a lease says, and whether the process that wrote it lives."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import psutil

from cryosam_dask.version import __version__

_FIRST_TIME_SPACE = "time:[4026531834]"
"""What Linux calls the clocks since boot of all processes that were not given others."""

held_here: set[str] = set()
"""Tokens of the leases that this process holds, or is about to take."""


@dataclass(frozen=True)
class Holder:
    """Who holds a run.

    Attributes
    ----------
    token : of this very lease; host, user : for people
    machine : this boot of a machine, and the spaces in which `pid` and `started` mean something
    started : when the process began, seconds since `machine` did, which tells it from a later one of the same number
    since, beat : when the lease was taken and last written, seconds since 1970; version : of the program
    """

    token: str
    host: str
    machine: str
    pid: int
    started: float
    user: str
    version: str
    since: float
    beat: float

    @classmethod
    def new(cls) -> Self:
        """This process as the holder of a lease that begins now."""
        from cryosam_dask.store.journal import user

        now = time.time()
        return cls(
            token=secrets.token_hex(8),
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            user=user(),
            version=__version__,
            since=now,
            beat=now,
        )

    @property
    def words(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"{self.user} on {self.host}, process {self.pid}, since {since}"

    @property
    def lives(self) -> bool | None:
        """Whether its process lives; None where this machine can't know."""
        if self.machine != _machine():
            return None
        if self.pid == os.getpid():
            # one that could not be given back, as the storage failed, must not keep its own process out
            return self.token in held_here
        try:
            same = abs(_started(self.pid) - self.started) < 2
            return bool(same and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return None

    @classmethod
    def read(cls, text: bytes | None) -> Self | None:
        """The holder that a lease file names; None if the file can't be understood."""
        try:
            said = json.loads(text or b"")
            read: dict[str, Any] = {name: float(said[name]) for name in ("started", "since", "beat")}
            read |= {name: str(said[name]) for name in ("token", "host", "machine", "user", "version")}
            return cls(pid=int(said["pid"]), **read)
        except (ValueError, TypeError, KeyError):
            return None

    def text(self) -> bytes:
        """The content of the lease file, as of now."""
        return json.dumps(asdict(replace(self, beat=time.time())), indent=1).encode()


def same_lease(now: bytes | None, before: bytes) -> bool:
    """Whether what is read now is the lease that was read before, however often it has been written since."""
    held, read = Holder.read(now), Holder.read(before)
    return now == before or (held is not None and read is not None and held.token == read.token)


def _started(pid: int) -> float:
    """When a process began, by a clock that nobody sets; elsewhere than on Linux in seconds since 1970.

    psutil reckons from the time of day, by which processes that live on begin at another time once the clock was set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return float(psutil.Process(pid).create_time())


def _machine() -> str:
    """A host's boot, with the spaces of its process numbers and clocks: containers of one host may each have a process
    7, and count the time since boot from elsewhere."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        numbers = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
    try:
        clocks = str(Path("/proc/self/ns/time").readlink())
    except OSError:  # Linux before 5.6
        clocks = _FIRST_TIME_SPACE
    return f"{boot} {numbers}" + ("" if clocks == _FIRST_TIME_SPACE else f" {clocks}")
