"""What all readers share: the source contract, blocks, voxel sizes, axis order, and safe quotes of a file in errors."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cryosam_dask.errors import CryosamError, InputError
from cryosam_dask.geometry import one_side
from cryosam_dask.storage.address import local_path
from cryosam_dask.types import AXES, Array, Point, Shape3

Block = tuple[slice, slice, slice]

ASK_VOXEL_SIZE = "give it with --voxel-size ÅNGSTRÖM"
# No microscope gives voxels outside these bounds (Å): such a number is an unset or damaged header.
_SMALLEST, _LARGEST = 1e-2, 1e5
_UNSET = {1.0: "1 Å", 1e4: "1 µm"}  # far too small for a tomogram, and far too large
_MOST_VOXELS = 1 << 42  # 16,384 along each side, eight times what the largest detector gives
_LONGEST_MESSAGE, _LONGEST_VALUE = 480, 80


@runtime_checkable
class TomogramSource(Protocol):
    """A 3D tomogram that is read block by block and never held whole.

    Sources pickle to a few hundred bytes: the file is opened again where the source arrives.

    Attributes
    ----------
    shape : (z, y, x); dtype : native byte order
    voxel_size : Å along (z, y, x)
    origin : Å (z, y, x), the position of voxel (0, 0, 0), as the header gives it
    identity : JSON-able; equal for equal content read in the same way, wherever the file lies
    notes : oddities of the file that do not prevent reading it, one sentence each
    chunk : voxels (z, y, x) that are decoded together if one of them is read; (1, 1, 1) if each can be read alone
    scratch : bytes that a read takes besides the block, at most
    """

    @property
    def shape(self) -> Shape3: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def voxel_size(self) -> Point: ...
    @property
    def origin(self) -> Point: ...
    @property
    def identity(self) -> dict[str, Any]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def chunk(self) -> Shape3: ...
    @property
    def scratch(self) -> int: ...

    def read(self, slices: Block) -> Array:
        """The block `slices` (z, y, x) as a C-contiguous array that owns its memory.

        Raises InputError where the file was moved, cut or damaged since it was opened.
        """
        ...


@dataclass(frozen=True)
class Described:
    """The attributes that every source has; see `TomogramSource`."""

    shape: Shape3
    dtype: np.dtype[Any]
    voxel_size: Point
    origin: Point
    identity: dict[str, Any]
    notes: tuple[str, ...]


def describe(source: TomogramSource) -> str:
    """One line for people: shape, type, voxel size."""
    return f"{size_and_type(source.shape, source.dtype)}, {in_angstrom(source.voxel_size)}"


def in_angstrom(voxel_size: Point) -> str:
    """A voxel size (z, y, x), for people; one number where all are the same up to rounding."""
    side = one_side(voxel_size)
    sizes = voxel_size if side is None else (side,)
    return " x ".join(f"{size:g}" for size in sizes) + " Å"


def size_and_type(shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """A volume's shape (z, y, x) and type, for people."""
    return f"{' x '.join(map(str, shape))} voxels (z, y, x), {dtype}"


def parse_voxel_size(value: float | Sequence[float] | None) -> Point | None:
    """The `voxel_size` option, one number or (z, y, x) in Å, as (z, y, x); None stays None.

    Raises InputError for anything but one or three plausible numbers.
    """
    if value is None:
        return None
    try:
        numbers = [float(v) for v in np.atleast_1d(np.asarray(value, dtype=float)).ravel()]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(map(plausible_voxel, numbers)):
        raise InputError(
            f"voxel size {value!r}: expected one number, or three for z, y, x, from {_SMALLEST:g} to {_LARGEST:g} Å"
        )
    return (numbers[0], numbers[1], numbers[2])


def plausible_voxel(size: float) -> bool:
    """Whether `size` Å is a plausible side of a voxel."""
    return math.isfinite(size) and _SMALLEST <= size <= _LARGEST


def unset_voxel_size(sizes: Sequence[float]) -> tuple[str, ...]:
    """A note if a file's voxel size (Å) is 1 Å or 1 µm along all axes: most likely it was never set."""
    if len(set(sizes)) > 1 or sizes[0] not in _UNSET:
        return ()
    size = _UNSET[sizes[0]]
    return (f"voxels of {size}, as programs write that know no voxel size; if it is another, {ASK_VOXEL_SIZE}",)


def printable(text: str, longest: int = _LONGEST_MESSAGE) -> str:
    """`text` as one line that is safe on a terminal: control signs are escaped, a long middle is left out.

    Files and their names come from elsewhere; what an error quotes of them must not move a cursor or forge a line of
    a log.
    """
    if len(text) > 2 * longest:  # before each character is looked at
        text = f"{text[:longest]} … {text[-longest:]}"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
    if len(text) <= longest:
        return text
    tail = longest // 3
    return f"{text[: longest - tail - 3]} … {text[-tail:]}"


def shown(value: object) -> str:
    """`value`, which comes from a file, as it is quoted in an error."""
    return printable(value if isinstance(value, str) else repr(value), _LONGEST_VALUE)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Let every CryosamError out as one `printable` line."""
    try:
        yield
    except CryosamError as err:
        text = printable(str(err))
        if text == str(err):
            raise
        raise type(err)(text) from err


def as_path(address: str | Path) -> Path:
    """A local address as a path, where ~ is the user's home; InputError if there is no user `name` of `~name`."""
    try:
        return Path(local_path(address)).expanduser()
    except RuntimeError as err:
        raise InputError(f"{address}: no such user; ./{address} is a file of that name") from err


def is_folder(path: Path) -> bool:
    """Whether a folder is at `path`; InputError if that can't be found out, for example without permission."""
    try:
        return path.is_dir()
    except OSError as err:
        raise InputError(f"{path}: can't be read: {err.strerror or err}") from err


def regular_file(path: Path) -> os.stat_result:
    """The status of the file at `path`; InputError if there is no file, or a folder, or a pipe that could block."""
    try:
        status = path.stat()
    except FileNotFoundError as err:
        raise InputError(f"{path}: no such file") from err
    except (OSError, ValueError) as err:  # ValueError: a NUL in the name
        raise InputError(f"{path}: can't be read: {getattr(err, 'strerror', None) or err}") from err
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: can't be read: Is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: can't be read: a pipe, socket or device, expected a file")
    return status


def changed(path: Path | str, now: str, known: str) -> InputError:
    """The error for a file that is now something else than what was opened."""
    return InputError(f"{path}: can't be read any more: {known} when opened, now {now}")


def same_size(path: Path, size: int) -> os.stat_result:
    """As `regular_file`; InputError unless the file still has `size` bytes."""
    status = regular_file(path)
    if status.st_size != size:
        raise changed(path, f"{status.st_size} bytes", f"{size} bytes")
    return status


def check_volume(where: str, shape: Sequence[int]) -> None:
    """Raise InputError unless the (z, y, x) `shape` is a volume: at least two voxels along each axis, and of plausible
    size."""
    thin = [axis for axis, n in zip(AXES, shape, strict=True) if n < 2]
    if thin:
        raise InputError(
            f"{where}: not 3D: one voxel along {', '.join(thin)} (shape z, y, x = {tuple(shape)}); "
            "a tomogram needs at least two along each axis"
        )
    if math.prod(map(int, shape)) > _MOST_VOXELS:
        raise InputError(f"{where}: {' x '.join(map(str, shape))} voxels (z, y, x): no tomogram is that large")


def check_block(slices: Block, shape: Shape3) -> Block:
    """`slices` with explicit bounds inside `shape`; ValueError for steps and for wrong dimensions."""
    if len(slices) != 3 or any(s.step not in (None, 1) for s in slices):
        raise ValueError(f"a block is three slices (z, y, x) without steps, found {slices}")
    bounds = [s.indices(n) for s, n in zip(slices, shape, strict=True)]
    z, y, x = (slice(start, max(start, stop)) for start, stop, _ in bounds)
    return (z, y, x)


def native(dtype: DTypeLike) -> np.dtype[Any]:
    """`dtype` in this machine's byte order."""
    return np.dtype(dtype).newbyteorder("=")


def owned(block: NDArray[Any], dtype: np.dtype[Any]) -> Array:
    """A C-contiguous copy of `block` as a plain array of `dtype`, which owns its memory."""
    return np.array(block, dtype=dtype, order="C", copy=True, subok=False)


def voxel_dtype(where: str, dtype: DTypeLike) -> np.dtype[Any]:
    """The type in which voxels that a file has as `dtype` are read: its own in this machine's byte order, uint8 (0 and
    1) for booleans.

    Raises InputError for types other than one real number of at most 8 bytes: complex numbers, colours, text, times.
    """
    stored = np.dtype(dtype)
    if stored.kind == "b":
        return np.dtype("u1")
    if stored.kind not in "iuf" or stored.itemsize > 8:
        what = {"c": ", a transform", "V": ", several numbers a voxel"}.get(stored.kind, "")
        raise InputError(f"{where}: voxels of type {shown(str(stored))}{what}, expected integers or real numbers")
    return native(stored)


def squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """`shape` without axes of length 1 where there are more than three axes."""
    return tuple(shape) if len(shape) <= 3 else tuple(n for n in shape if n != 1)
