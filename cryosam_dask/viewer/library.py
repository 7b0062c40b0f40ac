"""The volumes of a page by their names in addresses, and what is kept of them."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np

from cryosam_dask.errors import StoreError
from cryosam_dask.geometry import Box
from cryosam_dask.kernels.instance import Instance
from cryosam_dask.store.arrays import MissingChunkError
from cryosam_dask.store.instances import as_box
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool, Json, Point
from cryosam_dask.viewer import gallery, meshes
from cryosam_dask.viewer.blocks import Blocks, Kept
from cryosam_dask.viewer.segments import Known, Segments, picked, so_far
from cryosam_dask.viewer.status import DamagedError, GoneError, NotThereError, NotYetError
from cryosam_dask.viewer.volumes import Labels, Preview, Similarity, Tomogram, Unfinished, Volume

T = TypeVar("T")

MOST_OPEN = 64
"""Volumes that are kept open, each with what it knows of its masks."""

MOST_SLICES = 20
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
VERSION = r"[A-Za-z0-9._]{1,80}"
_IMAGE = re.compile(rf"(?:tomogram|slab-(?P<half>[1-9]\d?))(?P<jpeg>-jpeg)?(?:-v(?P<version>{VERSION}))?")
_QUERY = re.compile(rf"(?P<what>similarity|labels)-(?P<name>{NAME})-(?P<version>{VERSION})")
CLICK_VERSION = r"[A-Za-z0-9._-]{1,200}"
_PREVIEW = re.compile(rf"preview-(?P<version>{CLICK_VERSION})")


class Readable(Protocol):
    """What the library needs of a session."""

    @property
    def store(self) -> RunStore | None:
        """The run; None before there is one."""

    def snapshot(self) -> Json:
        """The page's state."""

    def preview(self, version: str) -> Instance | None:
        """The mask of a click; None if that version is not there any more."""


class Library:
    """Opens volumes by name. Used by several threads.

    session : whose run it is; snapshot : its latest snapshot, which should be quick to get
    """

    def __init__(self, session: Readable, snapshot: Callable[[], Json]) -> None:
        self._session, self._snapshot = session, snapshot
        self._kept = Kept()
        self._open: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    @staticmethod
    def has_version(volume: str) -> bool:
        """Whether a volume's name says of which version it is; only those of the tomogram may leave it out."""
        match = _IMAGE.fullmatch(volume)
        return match is None or match["version"] is not None

    @staticmethod
    def is_passing(version: str) -> bool:
        """Whether a version is one of picks that are being segmented, which is soon followed by another."""
        return "." in version

    def version(self) -> str:
        """The tomogram's version."""
        return str(self._tomogram()["version"])

    def info(self, volume: str) -> Json:
        """The description of a volume."""
        return self._volume(volume).info()

    def chunk(self, volume: str, scale: str, chunk: str) -> bytes:
        """A chunk of a volume, encoded."""
        return self._reading(lambda: self._volume(volume).chunk(scale, chunk))

    def mesh(self, volume: str, label: int) -> bytes:
        """The surface of one instance of a volume."""

        def make() -> bytes:
            opened = self._volume(volume)
            mask, box = opened.mask(label)
            return meshes.mesh_of(mask, box, opened.scales[0].size)

        return self._reading(make)

    def picture(self, name: str, version: str, label: int, size: int) -> bytes:
        """A PNG of close views of an instance."""

        return self._reading(lambda: self._view(*self._segments(name, version).mask(label), size))

    def click(self, version: str, size: int) -> bytes:
        """A PNG of close views of the mask of a click."""
        instance = self._clicked(version)
        return self._reading(lambda: self._view(instance.mask, as_box(np.asarray(instance.box)), size))

    def _view(self, mask: Bool, box: Box, size: int) -> bytes:
        window = self._tomogram().get("window")
        return gallery.view(self._blocks(), mask, box, size, None if window is None else (window[0], window[1]))

    def _volume(self, name: str) -> Volume:
        if match := _IMAGE.fullmatch(name):
            half = int(match["half"] or 0)
            version = self._tomogram()["version"]
            if half > MOST_SLICES or match["version"] not in (None, version):
                raise NotThereError(f"no volume {name[:80]!r}; the page shows newer ones")
            blocks = self._blocks()
            return Tomogram(blocks, half, "jpeg" if match["jpeg"] else "raw")
        if match := _QUERY.fullmatch(name):
            kind, version = match["name"], match["version"]
            if match["what"] == "similarity":
                finest = int(self._check(kind, "similarity", version).get("ratio") or 1)
                return self._once(("similarity", kind, version), lambda: Similarity(self._store(), kind, finest))
            return self._labels(kind, version)
        if match := _PREVIEW.fullmatch(name):
            return self._once(("preview", match["version"]), lambda: self._preview(match["version"]))
        raise NotThereError(f"no volume {name[:80]!r}")

    def _clicked(self, version: str) -> Instance:
        instance = self._session.preview(version)
        if instance is None:
            raise NotThereError("this click has no mask any more")
        return instance

    def _preview(self, version: str) -> Preview:
        instance = self._clicked(version)
        z, y, x = (size / 10 for size in self._store().voxel_size)
        size: Point = (z, y, x)
        return Preview(instance.mask, as_box(np.asarray(instance.box)), size)

    def _labels(self, kind: str, version: str) -> Volume:
        segments = self._segments(kind, version)
        if self._check(kind, "picks", version).get("complete", True):
            return self._once(("labels", kind, version), lambda: Labels(self._store(), kind, segments))
        return self._once(("unfinished", kind, version), lambda: Unfinished(self._store(), segments))

    def _segments(self, kind: str, version: str) -> Segments:
        complete = self._check(kind, "picks", version).get("complete", True)
        if complete:
            return self._once(("segments", kind, version), lambda: picked(self._store(), kind))
        groups = self._once(("groups", kind, version.partition(".")[0]), Known)
        return self._once(("segments", kind, version), lambda: so_far(self._store(), kind, groups))

    def _check(self, kind: str, what: str, version: str) -> Mapping[str, Any]:
        """What the snapshot says of a kind's similarity or picks; NotThereError unless this is their version.

        While instances are segmented, a version `A.n` has the first n groups of `A`; it may be asked for until the
        page shows more.
        """
        for known in self._snapshot()["kinds"]:
            about = known.get(what) or {}
            now = str(about.get("version", ""))
            earlier = not about.get("complete", True) and version.partition(".")[0] == now.partition(".")[0]
            if known["name"] == kind and now and (version == now or earlier):
                return dict(about)
        raise NotThereError(f"{kind} has no {what} of this version; the page shows newer ones")

    def _blocks(self) -> Blocks:
        about = self._tomogram()
        low, high = about["range"]
        key = ("blocks", str(about["version"]), f"{low},{high}")
        return self._once(key, lambda: Blocks(self._store(), (low, high), "/".join(key), self._kept))

    def _tomogram(self) -> Mapping[str, Any]:
        about = self._snapshot().get("tomogram")
        if not about:
            raise NotYetError("the tomogram is not there yet")
        return dict(about)

    def _store(self) -> RunStore:
        """The run opened anew, since arrays may have been replaced since."""
        store = self._session.store
        if store is None:
            raise NotYetError("there is no run yet")
        return RunStore.open(store.url)

    def _once(self, key: tuple[str, ...], make: Callable[[], T]) -> T:
        """What is open under a key, else made now."""
        with self._lock:
            if key in self._open:
                self._open.move_to_end(key)
                known: T = self._open[key]
                return known
        made = make()
        with self._lock:
            made = self._open.setdefault(key, made)
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        return made

    def _reading(self, read: Callable[[], bytes]) -> bytes:
        """Read, with errors of the run's files in the words of the page."""
        try:
            return read()
        except StoreError as error:
            store = self._session.store
            if store is not None and not RunStore.exists(store.url):
                raise GoneError(f"{store.url}: the run was deleted or moved") from error
            if isinstance(error, MissingChunkError) and not self._snapshot()["run"].get("ingested"):
                raise NotYetError("this part of the tomogram is not there yet") from error
            raise DamagedError(str(error)) from error
