"""One driver at a time: a lease on a run's output, in the file `RUN.zarr.lock` beside it.

The file says who holds the run, and is written again every few seconds. It is taken over at once when its process ran
on this machine and lives no more, and from another machine when it has not been written for a while. Where two want
it at once, one gets it: by an exclusive link on a local file system, by a conditional write on an object store that has
those, else by writing and reading back.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import psutil

from cryosam_dask import __version__
from cryosam_dask.errors import StoreError
from cryosam_dask.store.address import is_local
from cryosam_dask.store.filesystem import filesystem, local_path

SUFFIX = ".lock"
BEAT = 15.0
"""Seconds between two writes of the lease."""

EXPIRY = 90.0
"""Seconds without a write after which a lease on another machine is taken to be left behind."""

SETTLE = 0.5
"""Seconds before a lease that could not be written conditionally is read back."""

_UNREADABLE = 5.0
"""Seconds that a lease without sense may take to get some: where there are no links, it is made before it is filled."""

_TRIES = 100
"""How often a lease may come and go just before it is taken."""


@dataclass(frozen=True)
class Holder:
    """Who holds a run.

    Attributes
    ----------
    token : of this very lease; host, user : for people
    machine : this boot of a machine, and the space of process numbers in which `pid` means something
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
            return self.token in _held
        try:
            same = abs(_started(self.pid) - self.started) < 2
            return bool(same and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return None

    @classmethod
    def read(cls, text: bytes) -> Holder | None:
        """What a lease file says; None where it has no sense."""
        try:
            found = json.loads(text)
            read: dict[str, Any] = {name: float(found[name]) for name in ("started", "since", "beat")}
            read |= {name: str(found[name]) for name in ("token", "host", "machine", "user", "version")}
            return cls(pid=int(found["pid"]), **read)
        except (ValueError, TypeError, KeyError):
            return None


_held: set[str] = set()
"""Tokens of the leases that this process holds, or is about to take."""


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
        mine = _holder()
        _held.add(mine.token)
        tries = 0
        try:
            while not self._file.create(_text(mine), self._settle):
                self._clear(mine)
                tries += 1
                if tries == _TRIES:
                    raise StoreError(f"{self.url}: its lease {self._file.name} is taken again and again; try later")
        except StoreError:
            _held.discard(mine.token)
            raise
        except OSError as error:
            _held.discard(mine.token)
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
            alone = held is not None and time.time() - held.beat < self._expiry
            if alone or not self._file.unchanged(text, _UNREADABLE if held is None else 1.5 * self._beat):
                raise StoreError(self._refusal(Holder.read(self._file.read() or b"") or held))
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
                held = Holder.read(text) if text else None
                if held is None or held.token != mine.token:
                    taker = f"taken over by {held.words if held else 'another command'}"
                    self._lost = f"its lease was {taker}" if text else f"its lease {self._file.name} is gone"
                    return
                self._file.write(_text(Holder(**{**asdict(mine), "beat": time.time()})))
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
        if mine is not None:
            _held.discard(mine.token)
        with contextlib.suppress(OSError, StoreError):
            text = self._file.read()
            held = Holder.read(text) if text else None
            if mine is not None and text is not None and held is not None and held.token == mine.token:
                self._file.remove(text, mine.token)


def holder(url: str | Path) -> Holder | None:
    """Who writes a run at this moment, as far as is known here; None where nobody does."""
    try:
        text = _file(str(url)).read()
    except (OSError, StoreError):
        return None
    held = Holder.read(text) if text else None
    return None if held is None or held.lives is False or time.time() - held.beat > EXPIRY else held


class _File(Protocol):
    """The lease's file, wherever it is."""

    name: str

    def read(self) -> bytes | None: ...

    def create(self, text: bytes, settle: float) -> bool:
        """Make it if it is not there; False if it is."""
        ...

    def write(self, text: bytes) -> None:
        """Replace it, at once."""
        ...

    def remove(self, text: bytes, token: str) -> None:
        """Remove it if it is still the one that was read."""
        ...

    def unchanged(self, text: bytes, seconds: float) -> bool:
        """Whether it stays as it was read for so long."""
        ...


class _Watched:
    def read(self) -> bytes | None:
        raise NotImplementedError

    def unchanged(self, text: bytes, seconds: float) -> bool:
        looks = max(10, math.ceil(seconds / 0.5))
        for _ in range(looks):  # not until a time: whoever was stopped in one of the pauses has not watched
            time.sleep(seconds / looks)
            if self.read() != text:
                return False
        return True


class _LocalFile(_Watched):
    """Exclusive by a link, which appears with its content; where there are no links, by O_EXCL."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def read(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def create(self, text: bytes, settle: float) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._temporary(text) as temporary:
            try:
                os.link(temporary, self._path)
            except FileExistsError:
                return False
            except OSError:
                return self._create_exclusively(text)
        self._tidy()
        return True

    def _tidy(self) -> None:
        """Remove what processes that were killed in between have left of their own."""
        for path in self._path.parent.glob(f"{glob.escape(self._path.name)}.*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > EXPIRY:
                    path.unlink()

    def _create_exclusively(self, text: bytes) -> bool:
        try:
            with self._path.open("xb") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def write(self, text: bytes) -> None:
        with self._temporary(text) as temporary:
            temporary.replace(self._path)

    def remove(self, text: bytes, token: str) -> None:
        # on one machine one at a time; of several machines one gets it by its name, and if another lease has come
        # meanwhile, it is put back
        aside = self._path.with_name(f"{self._path.name}.{token}")
        with self._alone():
            if not _same_lease(self.read(), text):
                return
            try:
                self._path.rename(aside)
            except FileNotFoundError:
                return
            if not _same_lease(aside.read_bytes(), text):
                with contextlib.suppress(OSError):
                    os.link(aside, self._path)
            aside.unlink()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Without others of this machine, where its file system lets a folder be locked."""
        try:
            import fcntl

            folder = os.open(self._path.parent, os.O_RDONLY)
        except (ImportError, OSError):
            yield
            return
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)  # which unlocks it

    @contextlib.contextmanager
    def _temporary(self, text: bytes) -> Any:
        path = self._path.with_name(f"{self._path.name}.{secrets.token_hex(8)}")
        try:
            path.write_bytes(text)
            yield path
        finally:
            path.unlink(missing_ok=True)


class _RemoteFile(_Watched):
    """Exclusive by a conditional write where the storage knows those, and always by reading back."""

    def __init__(self, filesystem: Any, path: str) -> None:
        self.name = path
        self._filesystem, self._path = filesystem, path

    def read(self) -> bytes | None:
        try:
            return bytes(self._filesystem.cat_file(self._path))
        except FileNotFoundError:
            return None

    def create(self, text: bytes, settle: float) -> bool:
        if self.read() is not None:
            return False
        try:
            self._filesystem.pipe_file(self._path, text, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError, ValueError):
            self._filesystem.pipe_file(self._path, text)
        except OSError:
            if self.read() is not None:  # refused, in whatever words
                return False
            self._filesystem.pipe_file(self._path, text)
        time.sleep(settle)
        return self.read() == text

    def write(self, text: bytes) -> None:
        self._filesystem.pipe_file(self._path, text)

    def remove(self, text: bytes, token: str) -> None:
        if _same_lease(self.read(), text):
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.rm_file(self._path)


def _same_lease(now: bytes | None, before: bytes) -> bool:
    """Whether what is read now is the lease that was read before, however often it has been written since."""
    held, read = Holder.read(now or b""), Holder.read(before)
    return now == before or (held is not None and read is not None and held.token == read.token)


def _file(url: str) -> _File:
    if is_local(url):
        return _LocalFile(Path(local_path(url).rstrip("/") + SUFFIX).absolute())
    remote, path = filesystem(url)
    return _RemoteFile(remote, path.rstrip("/") + SUFFIX)


def _text(mine: Holder) -> bytes:
    return json.dumps(asdict(mine), indent=1).encode()


def _holder() -> Holder:
    from cryosam_dask.store.journal import user

    now = time.time()
    return Holder(
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
    """A host's boot, with the space of its process numbers: containers of one host may each have a process 7."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
