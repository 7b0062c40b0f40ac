"""Masks of clicks, made one after the other in the background, newest wishes last."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from cryosam_dask.errors import CryosamError
from cryosam_dask.executors.base import one_line
from cryosam_dask.executors.machine import default_workers
from cryosam_dask.models.catalog import segmenter_entry
from cryosam_dask.models.registry import ensure_weights, preferred_precision, resolve_device
from cryosam_dask.settings import Settings
from cryosam_dask.stages.click import Looker, Mask
from cryosam_dask.store.clicks import Click
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Point

logger = logging.getLogger(__name__)

KEPT = 2000
"""Masks that are kept; more clicks than that are looked at again when they are shown."""

REPLACED = 16
"""Masks that were replaced or taken back, and are kept for pages that have just been told of them."""


@dataclass(frozen=True)
class Preview:
    """The mask of a click. version : of the mask, by which it is asked for; error : why there is none"""

    version: str
    mask: Mask | None = None
    error: str = ""


class _Stopped(Exception):  # noqa: N818 - never leaves this module
    """The click was taken back, or the page is closed."""


class Previews:
    """Makes masks of clicks in a thread, in the order in which they are asked for.

    changed : called, from that thread, whenever there is news
    """

    def __init__(self, changed: Callable[[], None], device: str = "auto") -> None:
        self._changed, self._asked_device = changed, device
        self._waiting: OrderedDict[str, Point] = OrderedDict()
        self._known: OrderedDict[str, Preview] = OrderedDict()
        self._replaced: deque[Preview] = deque(maxlen=REPLACED)
        self._opened: tuple[RunStore, Settings] | None = None
        self._current = ""
        self._news = threading.Condition()
        self._closed = False
        self._digest = ""
        self._thread = threading.Thread(target=self._work, name="previews", daemon=True)
        self._thread.start()

    def open(self, store: RunStore, settings: Settings) -> None:
        """Begin to look at a run's tomogram, once it is ingested. The model is loaded at once."""
        with self._news:
            if self._opened is None:
                self._opened = store, settings
                self._news.notify()

    def _make_looker(self, store: RunStore, settings: Settings) -> Looker:
        chosen = settings.propagation
        segmenter, _ = segmenter_entry(chosen.segmenter)
        device = resolve_device(self._asked_device, segmenter.uses_torch)
        precision = preferred_precision(device) if segmenter.uses_torch else "float32"
        if chosen.precision != "auto":
            precision = chosen.precision
        decided = settings.replace({"propagation.precision": precision})
        self._digest = hashlib.sha256(decided.propagation.model_dump_json().encode()).hexdigest()[:6]
        return Looker(store, decided, device, default_workers("cpu"))

    def of(self, click: Click) -> Preview | None:
        """The mask of a click, as far as there is one; else it is asked for."""
        with self._news:
            if (known := self._known.get(click.id)) is not None:
                if known.error or (known.mask is not None and known.mask.final):
                    return known
                if click.id == self._current:
                    return known
            if click.id not in self._waiting and click.id != self._current and not self._closed:
                self._waiting[click.id] = click.position
                self._news.notify()
            return known

    def version(self, version: str) -> Mask | None:
        """The mask of a version."""
        with self._news:
            known = self._known.get(version.partition(".")[0])
            every = [*self._replaced, *([] if known is None else [known])]
            return next((preview.mask for preview in every if preview.version == version), None)

    def forget(self, click: str) -> None:
        """The click was taken back: it is not looked at any more."""
        with self._news:
            self._waiting.pop(click, None)
            self._replace(click)
            if self._current == click:
                self._current = ""

    def close(self) -> None:
        """Stop."""
        with self._news:
            self._closed, self._current = True, ""
            self._waiting.clear()
            self._news.notify()
        self._thread.join(5)

    def _work(self) -> None:
        with self._news:
            self._news.wait_for(lambda: self._opened is not None or self._closed)
            opened = self._opened
        looker: Looker | None = None
        if opened is not None and not self._closed:
            with contextlib.suppress(Exception):  # the first click says what is wrong
                looker = self._make_looker(*opened)
                looker.load()
        try:
            while opened is not None and (asked := self._next()) is not None:
                looker = self._look(looker, opened, *asked)
        finally:
            if looker is not None:
                looker.close()

    def _next(self) -> tuple[str, Point] | None:
        """The next click and its position; None when the page is closed."""
        with self._news:
            self._current = ""
            self._news.wait_for(lambda: bool(self._waiting) or self._closed)
            if self._closed:
                return None
            click, position = self._waiting.popitem(last=False)
            self._current = click
            return click, position

    def _look(
        self, looker: Looker | None, opened: tuple[RunStore, Settings], click: str, position: Point
    ) -> Looker | None:
        def check() -> None:
            if self._current != click:
                raise _Stopped

        try:
            looker = looker or self._make_looker(*opened)
            ensure_weights(looker.segmenter)
            for number, mask in enumerate(looker.masks(position, check)):
                self._keep(click, Preview(f"{click}.{self._digest}.{number}", mask))
        except _Stopped:
            pass
        except CryosamError as error:
            self._keep(click, Preview("", error=str(error)))
        except Exception as error:
            logger.exception("the mask of a click failed")
            self._keep(click, Preview("", error=one_line(error)))
        return looker

    def _keep(self, click: str, preview: Preview) -> None:
        with self._news:
            if self._current != click:
                return
            self._replace(click)
            self._known[click] = preview
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._changed()

    def _replace(self, click: str) -> None:
        if (known := self._known.pop(click, None)) is not None:
            self._replaced.append(known)
