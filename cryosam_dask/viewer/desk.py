"""What actions work with: the run with its logs and its state, the jobs, and the masks of clicks."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryosam_dask.errors import CryosamError, InputError, SettingsError
from cryosam_dask.executors.base import Executor
from cryosam_dask.executors.choice import make_executor as usual_executor
from cryosam_dask.executors.progress import NullProgress
from cryosam_dask.pipeline import Driver, uses_torch_of
from cryosam_dask.settings import Settings
from cryosam_dask.stages.click import Mask
from cryosam_dask.storage.address import is_local, local_path
from cryosam_dask.store import lease
from cryosam_dask.store.clicks import COLORS, Click, ClickLog, Clicks, Kind
from cryosam_dask.store.reviews import Decision, ReviewLog, ReviewReader
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json
from cryosam_dask.viewer import tables
from cryosam_dask.viewer.jobs import BusyError, Job, JobCancelled, Jobs
from cryosam_dask.viewer.preview import Previews
from cryosam_dask.viewer.state import KindState, RunState

MESSAGES = 20

Work = Callable[[Callable[[], Driver]], None]
"""What a job does, with a function that makes drivers whose progress is shown."""


class Desk:
    """A run on which a session works; used by several threads.

    Parameters
    ----------
    url : the run; tomogram : what it is made from, "" where that is not known; reading : how that is read
    settings, make_executor, device, by : as of the session
    changed : called when the run may have changed; soon : the same, for what may wait a moment
    """

    def __init__(
        self,
        url: str,
        tomogram: str,
        reading: dict[str, Any],
        settings: Settings,
        make_executor: Callable[[], Executor] | None,
        device: str,
        by: str | None,
        changed: Callable[[], None],
        soon: Callable[[], None],
    ) -> None:
        self.url, self.tomogram, self.reading, self.settings, self.by = url, tomogram, reading, settings, by
        self.lock = threading.RLock()
        self.state = RunState(url)
        self.messages: deque[Json] = deque(maxlen=MESSAGES)
        self._message_count = 0
        self._log: ClickLog | None = None
        self._reviews: dict[str, ReviewLog] = {}
        self._decided: dict[str, ReviewReader] = {}
        self.previews = Previews(changed, device)
        self.jobs = Jobs(make_executor or self._usual_executor, soon, self._ended, changed)

    def close(self) -> None:
        """End jobs and workers."""
        self.previews.close()
        self.jobs.close()

    @property
    def store(self) -> RunStore | None:
        """The run; None before there is one."""
        return self.state.store()

    @property
    def folder(self) -> Path:
        """Where exported files go: beside the run, or in the current folder where that is an address."""
        own = Path(local_path(self.url)) if is_local(self.url) else Path(self.url.rstrip("/").rpartition("/")[2])
        return own.expanduser().absolute().with_name(f"{own.stem}_exported")

    def need_store(self) -> RunStore:
        """The run; `BusyError` before there is one."""
        store = self.store
        if store is None:
            raise BusyError(f"{self.url}: there is no run yet; wait until the tomogram is being read")
        return store

    def kind_state(self, store: RunStore, name: str) -> KindState:
        """What the run has of a kind."""
        with self.lock:
            return self.state.kind(store, name)

    def log(self, store: RunStore) -> ClickLog:
        """The log of kinds and clicks."""
        with self.lock:
            if self._log is None:
                self._log = ClickLog(store, self.by)
            return self._log

    def review_log(self, store: RunStore, name: str) -> ReviewLog:
        """The log of decisions about a kind's picks."""
        with self.lock:
            if name not in self._reviews:
                self._reviews[name] = ReviewLog(RunStore.open(store.url, "r+"), name, self.by)
            return self._reviews[name]

    def clicks(self, store: RunStore) -> Clicks:
        """All kinds, those of queries that were made without the page too, with their clicks."""
        clicks = self.log(store).read()
        with self.lock:
            for name in self.state.names(store):
                if name not in clicks.kinds and name not in clicks.removed:
                    clicks.kinds[name] = self._adopted(store, name, len(clicks.kinds))
        return clicks

    def _adopted(self, store: RunStore, name: str, number: int) -> Kind:
        """The kind of a query that was made elsewhere."""
        state = self.state.kind(store, name)
        both = [(point, True) for point in state.points] + [(point, False) for point in state.negatives]
        clicks = [Click(f"q{i}", (p[0], p[1], p[2]), positive) for i, (p, positive) in enumerate(both)]
        return Kind(name, COLORS[number % len(COLORS)], clicks)

    def decided(self, store: RunStore, name: str) -> list[Decision]:
        """Current decisions about a kind's picks."""
        with self.lock:
            reader = self._decided.setdefault(name, ReviewReader(store, name))
        return reader.current(tables.radius_of(self.kind_state(store, name)))

    def start(self, words: str, action: str, body: Json, work: Work) -> None:
        """Start a job; `BusyError` while another one, or another process, is at work on the run."""
        self.jobs.check_free()
        held = lease.holder(self.url)
        if held is not None:
            raise BusyError(f"{self.url}: is being written by {held.words}; wait until it is done, or stop it")

        def run(executor: Executor, progress: NullProgress) -> None:
            drivers: list[Driver] = []

            def driver() -> Driver:
                drivers.append(Driver(self.url, executor, progress))
                return drivers[-1]

            try:
                work(driver)
            finally:
                for note in dict.fromkeys(note for each in drivers for note in each.notes):
                    self.say(note)

        store = self.store
        if store is not None:
            self.log(store).write([{"do": "asked", "action": action, "body": body}])
        self.jobs.start(Job(words, run))

    def say(self, text: str, kind: str = "note") -> None:
        """Show a message on the page."""
        with self.lock:
            self._message_count += 1
            self.messages.append({"id": self._message_count, "kind": kind, "text": " ".join(text.split())[:1000]})

    def prompted(self, store: RunStore, name: str) -> dict[int, Mask]:
        """The masks of a query's prompts, by their numbers."""
        with self.lock:
            return self.state.prompted(store, name)

    def _ended(self, job: Job, error: BaseException | None) -> None:
        """A job has ended."""
        if isinstance(error, JobCancelled):
            self.say(f"{job.words}: cancelled; what is finished is kept, and the same goes on from there")
        elif error is not None:
            self.say(str(error), "error")
        store = self.store
        if store is not None and (error is None or isinstance(error, InputError | SettingsError)):
            with contextlib.suppress(CryosamError):
                self.log(store).write([{"do": "asked", "action": "", "body": {}}])

    def _usual_executor(self) -> Executor:
        return usual_executor(uses_torch=uses_torch_of(self.settings))
