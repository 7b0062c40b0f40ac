"""Tomograms in files that hold the voxels one after the other: MRC, NumPy and uncompressed TIFF stacks. The same bytes
may be inside a deflate stream: gzipped MRC, and members of a zip archive.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.boxes import SCRATCH_BYTES, opened, read_box
from cryosam_dask.io.frame import Block, Described, check_block, one_line_errors, owned
from cryosam_dask.io.inflate import KEPT_BYTES, Inflated, Stream
from cryosam_dask.types import Array, Point, Shape3

SAMPLE_BYTES = 1 << 16
_SAMPLES = 16


@dataclass(frozen=True)
class FlatSource(Described):
    """A tomogram whose voxels lie one after the other; see `TomogramSource`.

    Besides the contract's attributes: `path`, `offset` (bytes before the voxels), `stored` (dtype in the file's
    byte order), `order` (the file axes, of sections, rows, columns, that are z, y, x), `packed` (the deflate stream in
    which all this lies, or None).
    """

    path: Path
    offset: int
    stored: np.dtype[Any]
    order: tuple[int, int, int]
    packed: Stream | None = None

    @property
    def chunk(self) -> Shape3:
        """One section of a packed file, whose sections are decoded one after the other; one voxel of other files."""
        if self.packed is None:
            return (1, 1, 1)
        sides = [n if axis > 0 else 1 for axis, n in zip(self.order, self.shape, strict=True)]
        return (sides[0], sides[1], sides[2])

    @property
    def scratch(self) -> int:
        """See `TomogramSource`."""
        return SCRATCH_BYTES + (0 if self.packed is None else KEPT_BYTES)

    def read(self, slices: Block) -> Array:
        """See `TomogramSource.read`. Memory: the box and `boxes.SCRATCH_BYTES`; the box twice where it is turned; 7 MB
        for each of the last two files where they are packed."""
        block = check_block(slices, self.shape)
        on_disk, box = in_file(self.order, self.shape, block)
        with one_line_errors(), opened(self.path, self.identity["bytes"]) as file:
            within = file if self.packed is None else Inflated(file, self.path, self.packed)
            stored = read_box(within, self.path, self.stored, self.offset, on_disk, box)
        if self.stored.kind == "b":
            stored = stored.view(np.uint8) != 0  # whatever else than 0 and 1 stands in the file
        elif self.order == (0, 1, 2) and self.stored.isnative:
            return stored
        return owned(stored.transpose(self.order), self.dtype)


def in_file(order: tuple[int, int, int], shape: Shape3, block: Block) -> tuple[list[int], list[slice]]:
    """The shape of the volume and a block of it along the file's axes (sections, rows, columns); `order` as of
    `FlatSource`."""
    on_disk, box = [0, 0, 0], [slice(0)] * 3
    for axis, n, part in zip(order, shape, block, strict=True):
        on_disk[axis], box[axis] = n, part
    return on_disk, box


def identity(
    form: str, name: str, size: int, digest: str, shape: Shape3, dtype: np.dtype[Any], voxel_size: Point, **more: Any
) -> dict[str, Any]:
    """The identity of a file of that format and name, of `size` bytes with that `samples_hash`, wherever it lies."""
    return {
        "format": form,
        "name": name,
        "bytes": size,
        "sha256_sampled": digest,
        "shape": list(shape),
        "dtype": dtype.name,
        "voxel_size": list(voxel_size),
        **more,
    }


def sample_starts(size: int) -> list[int]:
    """Where the samples of `SAMPLE_BYTES` begin that identify a file of `size` bytes, from the first byte to the
    last."""
    last = max(size - SAMPLE_BYTES, 0)
    return sorted({last * i // (_SAMPLES - 1) for i in range(_SAMPLES)})


def samples_hash(size: int, samples: Iterable[bytes]) -> str:
    """SHA-256 of the size and of the samples at `sample_starts`."""
    digest = hashlib.sha256(str(size).encode())
    for sample in samples:
        digest.update(sample)
    return digest.hexdigest()


def samples_of(path: Path, size: int) -> list[bytes]:
    """The samples at `sample_starts` of the file at `path`, a MiB in all."""
    try:
        with path.open("rb") as file:
            return [_sample(file, start) for start in sample_starts(size)]
    except OSError as err:
        raise unreadable(path, err) from err


def _sample(file: io.BufferedReader, start: int) -> bytes:
    file.seek(start)
    return file.read(SAMPLE_BYTES)


def sampled_hash(path: Path, size: int) -> str:
    """`samples_hash` of the file at `path`."""
    return samples_hash(size, samples_of(path, size))


def sampled_whole(size: int) -> bool:
    """Whether the samples of a file of `size` bytes cover the whole file."""
    return size <= _SAMPLES * SAMPLE_BYTES


def parts_between(size: int, samples: Iterable[bytes], start: int, stop: int) -> list[bytes]:
    """The parts of the samples of a file of `size` bytes that lie between its bytes `start` and `stop`."""
    places = zip(sample_starts(size), samples, strict=True)
    return [sample[max(0, start - first) : max(0, stop - first)] for first, sample in places]


def first_bytes(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file, or all it has."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as err:
        raise unreadable(path, err) from err


def unreadable(path: Path, err: OSError) -> InputError:
    """The error of the disk, in one line."""
    return InputError(f"{path}: can't be read: {err.strerror or err}")


def check_length(
    path: Path | str, offset: int, shape: Iterable[int], stored: np.dtype[Any], size: int
) -> tuple[str, ...]:
    """Compare the size that a header promises with the file's `size`: InputError if bytes are missing, a note if there
    are more."""
    sides = list(map(int, shape))
    expected = offset + math.prod(sides) * stored.itemsize
    if size < expected:
        raise InputError(
            f"{path}: truncated: expected {expected} bytes (a header of {offset} and {' x '.join(map(str, sides))} "
            f"voxels of {stored.itemsize} bytes), found {size}; copy the file again"
        )
    return (f"the file is {size - expected} bytes longer than its header says",) if size > expected else ()
