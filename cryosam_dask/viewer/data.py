"""Handlers of what the viewer and the gallery read: volumes, meshes, pictures."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

from cryosam_dask.errors import InputError
from cryosam_dask.viewer import precomputed
from cryosam_dask.viewer.handler import FOREVER, Handler
from cryosam_dask.viewer.status import NotThereError

BINARY, JSON = "application/octet-stream", "application/json"
DEFAULT_SIZE = 96
NOTHING = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
"""A PNG of one pixel, which is transparent."""

_MANIFEST = re.compile(r"(\d{1,10}):0")
_FRAGMENT = re.compile(r"(\d{1,10})\.all")


class _Data(Handler):
    async def send_volume(self, volume: str, read: Callable[[], bytes], kind: str) -> None:
        """Read a part of a volume and send it; it is right for ever where the volume's name holds its version."""
        library, readers = self.application.library, self.application.readers
        tag = None if library.has_version(volume) else await self.in_thread(readers, library.version)
        if not self.unchanged(tag):
            self.send(await self.in_thread(readers, read), kind, cache=FOREVER, tag=tag)


class Info(_Data):
    """The description of a volume."""

    async def answer(self, *, volume: str) -> None:  # type: ignore[override]
        library = self.application.library
        await self.send_volume(volume, lambda: json.dumps(library.info(volume)).encode(), JSON)


class Chunk(_Data):
    """A chunk of a volume."""

    async def answer(self, *, volume: str, scale: str, chunk: str) -> None:  # type: ignore[override]
        library = self.application.library
        await self.send_volume(volume, lambda: library.chunk(volume, scale, chunk), BINARY)


class Mesh(_Data):
    """The meshes of a volume: their description, and of each instance a manifest and a fragment."""

    async def answer(self, *, volume: str, name: str) -> None:  # type: ignore[override]
        library = self.application.library
        if name == "info":
            await self.send_volume(volume, lambda: json.dumps(precomputed.mesh_info()).encode(), JSON)
        elif match := _MANIFEST.fullmatch(name):
            manifest = precomputed.manifest(int(match[1]))
            await self.send_volume(volume, lambda: json.dumps(manifest).encode(), JSON)
        elif match := _FRAGMENT.fullmatch(name):
            label = int(match[1])
            await self.send_volume(volume, lambda: library.mesh(volume, label), BINARY)
        else:
            raise NotThereError("no such mesh")


class Picture(Handler):
    """Close views of an instance."""

    async def answer(self, *, name: str, version: str, label: str) -> None:  # type: ignore[override]
        try:
            await self.show(self.application.library.picture, name, version, int(label))
        except NotThereError:
            if not self.application.library.is_passing(version):
                raise
            self.send(NOTHING, "image/png")  # the page is about to hear of more picks, and asks again

    async def show(self, picture: Callable[..., bytes], *of: Any) -> None:
        """Send a picture in the size that is asked for."""
        size = self.get_query_argument("size", str(DEFAULT_SIZE))
        if not size.isdecimal() or len(size) > 4:
            raise InputError("size: expected a number of pixels")
        content = await self.in_thread(self.application.readers, picture, *of, int(size))
        self.send(content, "image/png", cache=FOREVER)


class ClickPicture(Picture):
    """Close views of the mask of a click."""

    async def answer(self, *, version: str) -> None:  # type: ignore[override]
        await self.show(self.application.library.click, version)
