"""Handlers of what the viewer and the gallery read: volumes, meshes, pictures."""

from __future__ import annotations

import json
import re

from cryosam_dask.errors import InputError
from cryosam_dask.view import precomputed
from cryosam_dask.view.handler import FOREVER, Handler
from cryosam_dask.view.status import NotThereError

BINARY = "application/octet-stream"
DEFAULT_SIZE = 96
_MANIFEST = re.compile(r"(\d{1,10}):0")
_FRAGMENT = re.compile(r"(\d{1,10})\.all")


class _Data(Handler):
    def send_volume(self, volume: str, content: bytes, kind: str) -> None:
        """Send a part of a volume; for ever right where the volume's name holds its version."""
        tag = self.application.library.tag(volume)
        self.send(content, kind, cache=None if tag else FOREVER, tag=tag)


class Info(_Data):
    """The description of a volume."""

    async def answer(self, *, volume: str) -> None:  # type: ignore[override]
        info = await self.in_thread(self.application.readers, self.application.library.info, volume)
        self.send_volume(volume, json.dumps(info).encode(), "application/json")


class Chunk(_Data):
    """A chunk of a volume."""

    async def answer(self, *, volume: str, scale: str, chunk: str) -> None:  # type: ignore[override]
        library = self.application.library
        if self.unchanged(library.tag(volume)):
            return
        content = await self.in_thread(self.application.readers, library.chunk, volume, scale, chunk)
        self.send_volume(volume, content, BINARY)


class Mesh(_Data):
    """The meshes of a volume: their description, and of each instance a manifest and a fragment."""

    async def answer(self, *, volume: str, name: str) -> None:  # type: ignore[override]
        if name == "info":
            self.send_volume(volume, json.dumps(precomputed.mesh_info()).encode(), "application/json")
        elif match := _MANIFEST.fullmatch(name):
            manifest = precomputed.manifest(int(match[1]))
            self.send_volume(volume, json.dumps(manifest).encode(), "application/json")
        elif match := _FRAGMENT.fullmatch(name):
            library = self.application.library
            content = await self.in_thread(self.application.readers, library.mesh, volume, int(match[1]))
            self.send_volume(volume, content, BINARY)
        else:
            raise NotThereError("no such mesh")


class Picture(Handler):
    """Close views of an instance."""

    async def answer(self, *, name: str, version: str, label: str) -> None:  # type: ignore[override]
        size = self.get_query_argument("size", str(DEFAULT_SIZE))
        if not size.isdecimal() or len(size) > 4:
            raise InputError("size: expected a number of pixels")
        picture = self.application.library.picture
        content = await self.in_thread(self.application.readers, picture, name, version, int(label), int(size))
        self.send(content, "image/png", cache=FOREVER)
