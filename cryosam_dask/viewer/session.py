"""The session of a page: what it shows of a run, and who is told when that changes.

The page owns no state. What the snapshot says is read from the run, and what `act` returned for is on the disk: pages
and commands of other processes see it, and a session that begins after this one was killed goes on from there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryosam_dask.errors import CryosamError, InputError
from cryosam_dask.executors.base import Executor
from cryosam_dask.io.listing import is_many, run_names
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.kernels.instance import Instance
from cryosam_dask.pipeline import models_of, settings_for
from cryosam_dask.settings import Settings
from cryosam_dask.storage.address import is_local, local_path
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json
from cryosam_dask.viewer import actions, shown, tables
from cryosam_dask.viewer.desk import Desk
from cryosam_dask.viewer.jobs import BusyError

logger = logging.getLogger(__name__)

POLL = 1.0
"""Seconds between two looks at what other processes have changed, while somebody is told of it."""

REMOTE_POLL = 8.0
"""The same for a run in object storage, where nothing has changed for a while; each time costs a few requests."""

AFRESH = 120.0
"""Seconds after which a run in object storage is looked at all over again, whatever there are signs of."""


class Session:
    """A page's session with a run.

    Parameters
    ----------
    source : a run, or a tomogram, which is then ingested into `out`; path or URL
    out : the run of a tomogram; None: beside it, with its name
    settings : of what is made; None: those of the run's features, else of the built-in models
    make_executor : makes what jobs run on; None: workers on this machine
    reading : `voxel_size` and `unsigned` of the tomogram's file
    device : for masks of clicks, which are made in this process
    by : who decides; None: the user

    Raises `InputError` for a source that is neither.
    """

    def __init__(
        self,
        source: str | Path,
        out: str | Path | None = None,
        *,
        settings: Settings | None = None,
        make_executor: Callable[[], Executor] | None = None,
        reading: dict[str, Any] | None = None,
        device: str = "auto",
        by: str | None = None,
    ) -> None:
        told = dict(reading or {})
        url, tomogram = place_of(str(source), None if out is None else str(out), told)
        known = RunStore.open(url) if RunStore.exists(url) and not RunStore.is_removed(url) else None
        chosen = settings or settings_for(usual_models(known))
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._revision, self._content, self._wrong = 0, dict[str, Any](), ""
        self._closed, self._awake = threading.Event(), threading.Event()
        self._signs: object = None
        self._last_look = self._last_change = time.monotonic()
        self.desk = Desk(url, tomogram, told, chosen, make_executor, device, by, self._look, self._awake.set)
        self._look()
        if tomogram and (known is None or "statistics" not in known.info):
            with contextlib.suppress(BusyError):  # another process ingests it: that is shown as it comes
                self.act("ingest", {})
        self._poller = threading.Thread(target=self._poll, name="session", daemon=True)
        self._poller.start()

    @property
    def store(self) -> RunStore | None:
        """The run; None before there is one."""
        return self.desk.store

    def snapshot(self) -> Json:
        """The page's state. Its revision grows whenever anything of it changes."""
        with self._lock:
            return {"revision": self._revision, **self._content}

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have a function called, in any thread, whenever the snapshot changes; the returned function ends that."""
        with self._lock:
            self._listeners.append(callback)
        self._awake.set()

        def end() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._listeners.remove(callback)

        return end

    def act(self, name: str, body: Json) -> Json:
        """Do what the page asks for. What this returns for is on the disk. `CryosamError` where it can't be done."""
        try:
            return actions.act(self.desk, name, body)
        except OSError as error:
            what = os.strerror(error.errno) if error.errno else str(error)
            raise InputError(f"{name}: {what}; it was not done: mend that and try again") from error
        finally:
            self._look()

    def preview(self, version: str) -> Instance | None:
        """The mask of a click."""
        mask = self.desk.previews.version(version)
        store = self.desk.store
        if mask is None and store is not None and (prompt := shown.prompt_of(version)) is not None:
            mask = self.desk.prompted(store, prompt[0]).get(prompt[1])
        return None if mask is None else mask.instance

    def candidates(self, name: str) -> Json:
        """See `tables.candidates`; nothing where there are none (any more)."""
        store = self.desk.need_store()
        if self.desk.kind_state(store, name).candidates is None:
            return {"positions": [], "scores": [], "states": []}
        return tables.candidates(store, name)

    def picks(self, name: str) -> Json:
        """See `tables.table`."""
        store = self.desk.need_store()
        return tables.table(store, name, self.desk.kind_state(store, name), self.desk.decided(store, name))

    def report(self) -> Path | None:
        """The run's report, if it was made."""
        return shown.report(self.desk)

    def download(self, name: str) -> Path | None:
        """A file that was exported."""
        with contextlib.suppress(OSError):
            for path in self.desk.folder.iterdir():
                if path.name == name and path.is_file() and not path.is_symlink():
                    return path
        return None

    def close(self) -> None:
        """End jobs and workers. What was done is in the run. Closing twice is allowed."""
        self._closed.set()
        self._awake.set()
        self.desk.close()

    def _look(self) -> None:
        """Look at the run again; if anything has changed, tell everybody."""
        if self._closed.is_set() or not hasattr(self, "desk"):
            return
        with self.desk.lock:  # looks follow each other, and so do revisions
            try:
                content = shown.content(self.desk)
            except (CryosamError, OSError, ValueError, KeyError) as error:  # it is being replaced
                self._tell(str(error))
                content = {**(self._content or shown.nothing(self.desk)), **shown.around(self.desk)}
            with self._lock:
                if content == self._content:
                    return
                self._content, self._revision = content, self._revision + 1
                listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def _tell(self, error: str) -> None:
        """Say what is wrong with the run, once."""
        logger.info("the run could not be read: %s", error)
        if error != self._wrong:
            self._wrong = error
            self.desk.say(error, "error")

    def _poll(self) -> None:
        remote = not is_local(self.desk.url)
        while not self._closed.is_set():
            pause = REMOTE_POLL if remote and time.monotonic() - self._last_change > REMOTE_POLL else POLL
            told = self._awake.wait(pause if self._listeners else None)
            self._awake.clear()
            if not remote or self._others_wrote() or told:
                self._look()
            self._closed.wait(POLL if remote else 0.05)

    def _others_wrote(self) -> bool:
        """Whether a run in object storage may have changed since this was asked last; what is known of it is then
        forgotten."""
        now = time.monotonic()
        try:
            signs = self.desk.state.signs()
        except (CryosamError, OSError, ValueError):
            return True
        if signs == self._signs and now - self._last_look < AFRESH:
            return False
        if signs != self._signs:
            self._last_change = now
        self._signs, self._last_look = signs, now
        with self.desk.lock:
            self.desk.state.forget()
        return True


def usual_models(store: RunStore | None) -> str:
    """Those of a run's features, else the built-in ones."""
    return models_of(store) if store is not None and store.info.get("features") else "builtin"


def place_of(source: str, out: str | None, reading: dict[str, Any]) -> tuple[str, str]:
    """Where the run of a source is, and its tomogram; the run of a tomogram is beside it unless `out` says where.

    `InputError` where the source is neither a run nor a tomogram that can be read.
    """
    if RunStore.exists(source):
        if out is not None:
            raise InputError(f"--out {out}: {source} is a run already; leave --out away, or give its tomogram")
        store = RunStore.open(source)
        return source, str(store.info.get("input", {}).get("path", ""))
    if out is None and is_many([source]):
        raise InputError(f"{source}: several tomograms; the page shows one: give its path")
    open_tomogram(source, **reading)
    return out if out is not None else _beside(source), source


def _beside(tomogram: str) -> str:
    name = run_names([tomogram])[0]
    folder = Path.cwd()
    if is_local(tomogram) and "://" not in tomogram:
        folder = Path(local_path(tomogram)).expanduser().absolute().parent
        if not os.access(folder, os.W_OK):
            folder = Path.cwd()
    path = folder / f"{name}.zarr"
    if path.exists() and not RunStore.exists(path) and not RunStore.is_removed(path):
        path = folder / f"{name}_run.zarr"
    return str(path)
