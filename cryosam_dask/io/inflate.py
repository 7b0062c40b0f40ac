"""Random access to a deflate stream inside a file: gzip files, and members of zip archives.

Such a stream can only be read from its beginning, or from a place where the state of the decoder was kept: its last 32
KiB and its tables. zlib copies a decoder cheaply, so each process keeps copies from the places that it has read, close
together near the last one and far apart before it, and begins at the nearest copy. Boxes that are read in about the
order of the file take each process one pass over it, whatever its length, with a few megabytes of memory and nothing on
a disk.

Formats: RFC 1951 (deflate), RFC 1952 (gzip, of which several members may follow each other).
"""

from __future__ import annotations

import bisect
import io
import os
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown

MOST_GROWTH = 1032
"""A deflate stream decodes to at most so many times its bytes: 258 from two bits (https://zlib.net/zlib_tech.html)."""

_BLOCK, _FED = 1 << 17, 1 << 13  # bytes read together, and given to the decoder together: a copy may hold the second
_PIECE = 1 << 20
_CLOSEST = 1 << 20
_RECENT, _ROUGH = 96, 32  # copies kept where one read last, and over the whole stream; each takes about 50 KiB
KEPT_BYTES = 8 << 20
_FILES = 2


@dataclass(frozen=True)
class Stream:
    """Where a deflate stream lies: bytes `start` to `stop` of the file, in a gzip wrapping or (`raw`) without any;
    `length` of the bytes that it decodes to are of use, and they are mostly read in runs of `run`."""

    start: int
    stop: int
    length: int
    run: int = _CLOSEST
    raw: bool = False

    def decoder(self) -> Any:
        return zlib.decompressobj(wbits=-15 if self.raw else 31)


class _Places:
    """Copies of a stream's decoder: (place in the decoded bytes, place in the file, decoder)."""

    def __init__(self, stream: Stream) -> None:
        self.step = max(_CLOSEST, stream.run // 4)
        self._rough = max(1, stream.length // (self.step * _ROUGH)) * self.step
        self._lock = threading.Lock()
        self._places: list[int] = [0]
        self._kept: dict[int, tuple[int, Any]] = {0: (stream.start, stream.decoder())}
        self._recent: OrderedDict[int, None] = OrderedDict()

    def add(self, place: int, at: int, decoder: Any) -> None:
        with self._lock:
            if place in self._kept:
                return
            self._kept[place] = (at, decoder.copy())
            bisect.insort(self._places, place)
            if place % self._rough == 0:
                return
            self._recent[place] = None
            if len(self._recent) > _RECENT:
                oldest, _ = self._recent.popitem(last=False)
                del self._kept[oldest]
                self._places.remove(oldest)

    def nearest(self, place: int) -> tuple[int, int, Any]:
        """The last one at or before `place`, with a decoder of one's own."""
        with self._lock:
            before = self._places[bisect.bisect_right(self._places, place) - 1]
            at, decoder = self._kept[before]
            return before, at, decoder.copy()

    def is_nearer(self, place: int, than: int) -> bool:
        """Whether one lies after `than` and not after `place`."""
        with self._lock:
            return self._places[bisect.bisect_right(self._places, place) - 1] > than


_files: OrderedDict[tuple[Any, ...], _Places] = OrderedDict()
_lock = threading.Lock()


def _places(file: io.FileIO, path: Path, stream: Stream) -> _Places:
    status = os.fstat(file.fileno())
    key = (str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, stream)
    with _lock:
        places = _files.pop(key, None) or _Places(stream)
        _files[key] = places
        while len(_files) > _FILES:
            _files.popitem(last=False)
    return places


class Inflated:
    """A deflate stream as a file to be read: `seek`, then `readinto` what follows. For one thread.

    `keep`: whether to keep decoders for later reads of the stream in this process.

    Raises InputError, with `path` in it, where the stream is cut or damaged. gzip's checksum is compared where the
    stream was read to its end.
    """

    def __init__(self, file: io.FileIO, path: Path, stream: Stream, *, keep: bool = True) -> None:
        self._file, self._path, self._stream = file, path, stream
        self._known = _places(file, path, stream) if keep else _Places(stream)
        self._wanted = 0
        self._take(0)

    def _take(self, place: int) -> None:
        self._place, self._at, self._decoder = self._known.nearest(place)
        self._block, self._used = b"", 0

    def seek(self, place: int) -> None:
        """Go to a place in the decoded bytes; no bytes are read yet."""
        self._wanted = place

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; fewer bytes only at the stream's end."""
        view, filled = memoryview(buffer).cast("B"), 0
        if self._wanted < self._place or self._known.is_nearer(self._wanted, self._place):
            self._take(self._wanted)
        while self._place < self._wanted:
            if not self._decoded(self._wanted - self._place):
                return 0
        while filled < len(view) and (data := self._decoded(len(view) - filled)):
            view[filled : filled + len(data)] = data
            filled += len(data)
        self._wanted += filled
        if self._place == self._stream.length:
            self._finish()
        return filled

    def measure(self) -> int:
        """How many bytes there are, counted up to the stream's `length`."""
        self._take(self._stream.length)
        while self._place < self._stream.length and self._decoded(_PIECE):
            pass
        return self._place

    def _decoded(self, most: int) -> bytes:
        """The next bytes, `most` at most; b"" at the end."""
        step = self._known.step
        data = self._next(min(most, _PIECE, step - self._place % step))
        self._place += len(data)
        if self._place % step == 0 and data:
            self._known.add(self._place, self._at, self._decoder)
        return data

    def _next(self, most: int) -> bytes:
        while True:
            if self._decoder.eof and not self._begin_member():
                return b""
            if self._used == len(self._block):
                self._file.seek(self._at)
                self._block = self._file.read(max(0, min(_BLOCK, self._stream.stop - self._at)))
                self._used = 0
            fed = self._block[self._used : self._used + _FED]
            try:
                data: bytes = self._decoder.decompress(fed, most)
            except zlib.error as err:
                raise InputError(
                    f"{self._path}: damaged: its compressed data can't be decoded near byte {self._at}: "
                    f"{shown(str(err))}; copy the file again"
                ) from err
            rest = self._decoder.unused_data if self._decoder.eof else self._decoder.unconsumed_tail
            self._used += len(fed) - len(rest)
            self._at += len(fed) - len(rest)
            if data:
                return data
            if not fed and not self._decoder.eof:
                raise InputError(
                    f"{self._path}: truncated: its compressed data ends in the middle, after {self._place} decoded "
                    "bytes; copy the file again"
                )

    def _begin_member(self) -> bool:
        """Begin the gzip member that follows, if one does; zeros between members are padding."""
        if self._stream.raw:
            return False
        while self._at < self._stream.stop:
            self._file.seek(self._at)
            block = self._file.read(min(_BLOCK, self._stream.stop - self._at))
            kept = block.lstrip(b"\0")
            self._at += len(block) - len(kept)
            if kept or not block:
                break
        self._block, self._used = b"", 0
        self._file.seek(self._at)
        if self._file.read(2) != b"\x1f\x8b":
            return False
        self._decoder = self._stream.decoder()
        return True

    def _finish(self) -> None:
        """Read what is left of the member, if it is little, so that its checksum is compared."""
        decoder, place = self._decoder, self._place
        for _ in range(8):
            if self._decoder is not decoder or decoder.eof:
                break
            self._place += len(self._next(_PIECE))
        self._take(place)
