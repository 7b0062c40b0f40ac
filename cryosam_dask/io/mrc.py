"""MRC tomograms, read box by box.

Voxels are read with plain reads, never through a memory map: where a file is cut, or a disk fails, while it is mapped,
the process dies; a read that falls short is an error in words.

A gzipped file is read in place, see `inflate`.

The format is MRC2014 (Cheng et al., J. Struct. Biol. 192, 146, 2015) with IMOD's two extra words (`imodStamp`
and `imodFlags`, https://bio3d.colorado.edu/imod/doc/mrc_format.txt). A file is never flipped.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile import utils
from mrcfile.dtypes import HEADER_DTYPE

from cryosam_dask.errors import InputError
from cryosam_dask.io.boxes import opened
from cryosam_dask.io.flat import FlatSource, check_length, first_bytes, identity, sampled_hash
from cryosam_dask.io.frame import (
    ASK_VOXEL_SIZE,
    check_volume,
    in_angstrom,
    native,
    one_line_errors,
    plausible_voxel,
    regular_file,
    unset_voxel_size,
)
from cryosam_dask.io.inflate import MOST_GROWTH, Inflated, Stream
from cryosam_dask.types import Point, Shape3

HEADER_BYTES = 1024
READABLE = "0 (int8), 1 (int16), 2 (float32), 6 (uint16), 12 (float16)"
_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_UNREADABLE = {
    3: "complex int16, a transform",
    4: "complex float32, a transform",
    16: "RGB colour",
    101: "packed 4-bit integers",
}
_IMOD_STAMP = 1146047817
_IMOD_SIGNED, _IMOD_FOUR_BIT = 1, 16
_OTHER_FORMATS = {
    b"\x1f\x8b": "gzip-compressed: give it a name that ends in .mrc.gz, or decompress it (gunzip)",
    b"BZh": "bzip2-compressed: decompress it first (bunzip2)",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"II*\x00": "a TIFF: give it a name that ends in .tif",
    b"MM\x00*": "a TIFF: give it a name that ends in .tif",
    b"II+\x00": "a BigTIFF: give it a name that ends in .tif",
    b"MM\x00+": "a BigTIFF: give it a name that ends in .tif",
    b"\x89HDF": "HDF5: give it a name that ends in .h5 or .hdf",
    b"\x93NUMPY": "a NumPy array: give it a name that ends in .npy",
}
_FARTHEST, _FARTHEST_START = 1e9, 10  # Å, and the longest side: beyond that an origin was never set
_ODD_RATIO = 10  # between voxel sides; a sampling of 1 left in the header multiplies one side by the number of slices


@one_line_errors()
def open_mrc(path: Path, *, voxel_size: Point | None = None, unsigned: bool | None = None) -> FlatSource:
    """Read and check the header of the MRC file at `path`; no voxel is loaded.

    Parameters
    ----------
    path : an MRC file on a local or mounted disk
    voxel_size : Å (z, y, x), instead of the header's
    unsigned : how to read mode 0, instead of what the header says

    Raises InputError for a file that is missing, empty, truncated, no MRC, not one real-valued volume, or that
    does not tell its voxel size when `voxel_size` is None.
    """
    found = regular_file(path).st_size
    raw = _whole_header(path, first_bytes(path, HEADER_BYTES))
    return _source(path, read_header(path, raw, found, voxel_size=voxel_size, unsigned=unsigned), found, None, ())


@one_line_errors()
def open_gzipped_mrc(path: Path, *, voxel_size: Point | None = None, unsigned: bool | None = None) -> FlatSource:
    """Read and check the header of the MRC file that the gzip file at `path` holds; see `open_mrc`.

    Nothing is unpacked to a disk. A file that is cut is found at once by the size that gzip writes at the end; where
    that does not fit the header the data is decoded once, to see how many bytes there are.
    """
    size = regular_file(path).st_size
    if (magic := first_bytes(path, 2)) != b"\x1f\x8b":
        state = "not gzip-compressed, as its name says; give it the name of what it is" if magic else "empty"
        raise InputError(f"{path}: {state}")
    with opened(path, size) as file:
        raw = bytearray(HEADER_BYTES)
        got = Inflated(file, path, Stream(0, size, HEADER_BYTES), keep=False).readinto(raw)
        raw = bytearray(_whole_header(path, bytes(raw[:got])))
        header = read_header(path, bytes(raw), None, voxel_size=voxel_size, unsigned=unsigned)
        section = math.prod(sorted(header.shape)[1:]) * header.stored.itemsize
        length = header.offset + math.prod(header.shape) * header.stored.itemsize
        stream = Stream(0, size, length, run=section)
        notes = _check_unpacked(path, file, stream, header)
    return _source(path, header, size, stream, notes)


def _whole_header(path: Path, raw: bytes) -> bytes:
    if len(raw) < HEADER_BYTES:
        state = "empty" if not raw else "truncated or not an MRC"
        raise InputError(f"{path}: {state}: expected a header of {HEADER_BYTES} bytes, found {len(raw)}")
    return raw


def _check_unpacked(path: Path, file: io.FileIO, stream: Stream, header: MrcHeader) -> tuple[str, ...]:
    """Compare what the header promises with what a gzip file can hold, and with what it says to hold."""
    most = stream.stop * MOST_GROWTH
    file.seek(max(0, stream.stop - 4))
    noted = int.from_bytes(file.read(4), "little")  # of the last member, modulo 2^32 (RFC 1952, ISIZE)
    if stream.length <= most and noted == stream.length % (1 << 32):
        return ()
    found = most if stream.length > most else Inflated(file, path, stream).measure()
    check_length(path, header.offset, header.shape, header.stored, found)
    return ("gzip's record of the size is not what the header says: it is longer, or was made in parts",)


def _source(path: Path, header: MrcHeader, size: int, packed: Stream | None, notes: tuple[str, ...]) -> FlatSource:
    return FlatSource(
        path=path.absolute(),
        shape=header.shape,
        dtype=header.dtype,
        voxel_size=header.voxel_size,
        origin=header.origin,
        identity=header.identity(path.name, size, sampled_hash(path, size), "mrc.gz" if packed else "mrc"),
        notes=header.notes + notes,
        offset=header.offset,
        stored=header.stored,
        order=header.order,
        packed=packed,
    )


@dataclass(frozen=True)
class MrcHeader:
    """What a header says, checked; attributes as of `FlatSource`."""

    shape: Shape3
    dtype: np.dtype[Any]
    voxel_size: Point
    origin: Point
    notes: tuple[str, ...]
    offset: int
    stored: np.dtype[Any]
    order: tuple[int, int, int]

    def identity(self, name: str, size: int, digest: str, form: str = "mrc") -> dict[str, Any]:
        """See `flat.identity`."""
        return identity(form, name, size, digest, self.shape, self.dtype, self.voxel_size)


def read_header(
    path: Path | str, raw: bytes, found: int | None, *, voxel_size: Point | None = None, unsigned: bool | None = None
) -> MrcHeader:
    """Check the first `HEADER_BYTES` of a file of `found` bytes, None where nobody knows; `path` names it in errors.
    See `open_mrc`."""
    header, notes = _parse_header(path, raw)
    stored, sign_notes = _voxel_dtype(path, header, unsigned)
    on_disk = (int(header["nz"]), int(header["ny"]), int(header["nx"]))
    offset = HEADER_BYTES + int(header["nsymbt"])
    notes += sign_notes + _check_bytes(path, on_disk, stored, offset, found)
    _check_kind(path, header)
    order = _axis_order(path, header)
    z, y, x = (on_disk[axis] for axis in order)
    check_volume(str(path), (z, y, x))
    if voxel_size is None:
        voxel_size = _header_voxel_size(path, header)
        notes += unset_voxel_size(voxel_size)
        if max(voxel_size) > _ODD_RATIO * min(voxel_size):
            notes += (f"voxels of {in_angstrom(voxel_size)} (z, y, x): if the header is wrong, {ASK_VOXEL_SIZE}",)
    origin = _header_origin(header, voxel_size, order)
    return MrcHeader((z, y, x), native(stored), voxel_size, origin, notes, offset, stored, order)


def _parse_header(path: Path | str, raw: bytes) -> tuple[Any, tuple[str, ...]]:
    """The header in the byte order that makes sense of it, with notes on a wrong or missing stamp."""
    header = np.frombuffer(raw, HEADER_DTYPE)[0]
    named = bytes(header["map"])[:3] == b"MAP"
    notes: tuple[str, ...] = () if named else ("the header has no MAP stamp",)
    try:
        stamped = utils.byte_order_from_machine_stamp(header["machst"])
    except ValueError:
        stamped = None
    orders = [stamped, ">" if stamped == "<" else "<"] if stamped else ["<", ">"]
    for order in orders:
        candidate = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        if _plausible(candidate):
            if order != stamped:
                end = "little" if order == "<" else "big"
                notes += (f"the machine stamp is wrong, the header is {end}-endian",)
            return candidate, notes
    if named:
        # Everything says MRC; the checks that follow say which field is wrong.
        return np.frombuffer(raw, HEADER_DTYPE.newbyteorder(orders[0]))[0], notes
    what = next((text for magic, text in _OTHER_FORMATS.items() if raw.startswith(magic)), None)
    raise InputError(f"{path}: {what or 'not an MRC file: no MAP stamp and no plausible header'}")


def _plausible(header: Any) -> bool:
    axes = sorted(int(header[name]) for name in ("mapc", "mapr", "maps"))
    return (
        all(int(header[name]) > 0 for name in ("nx", "ny", "nz"))
        and int(header["mode"]) in _DTYPES | _UNREADABLE
        and int(header["nsymbt"]) >= 0
        and axes in ([1, 2, 3], [0, 0, 0])
    )


def _voxel_dtype(path: Path | str, header: Any, unsigned: bool | None) -> tuple[np.dtype[Any], tuple[str, ...]]:
    """The stored dtype. Mode 0 is signed (MRC2014) unless IMOD's flags, or else the header's own range, with a note,
    say otherwise (IMOD, libcfshr/b3dutil.c, `readBytesSigned`)."""
    mode = int(header["mode"])
    extra = header["extra2"].tobytes()
    stamp, flags = np.frombuffer(extra[40:48], header.dtype["mode"])
    flags = int(flags) if stamp == _IMOD_STAMP else None
    if mode == 0 and flags is not None and flags & _IMOD_FOUR_BIT:
        mode = 101
    if mode not in _DTYPES:
        what = _UNREADABLE.get(mode, "unknown")
        raise InputError(f"{path}: MRC mode {mode} ({what}) can't be read; readable modes: {READABLE}")
    if mode != 0:
        if unsigned is not None:
            raise InputError(f"{path}: 'unsigned' applies to MRC mode 0 only, found mode {mode}")
        return np.dtype(_DTYPES[mode]).newbyteorder(header.dtype["mode"].byteorder), ()
    notes: tuple[str, ...] = ()
    if unsigned is None and flags is not None:
        unsigned = not flags & _IMOD_SIGNED
    elif unsigned is None and (unsigned := header["dmin"] >= 0 and 127 < header["dmax"] <= 255):
        notes = (f"8-bit voxels up to {header['dmax']:g} by the header: read as unsigned; --signed overrules that",)
    return np.dtype("u1" if unsigned else "i1"), notes


def _check_bytes(
    path: Path | str, shape: tuple[int, ...], stored: np.dtype[Any], offset: int, found: int | None
) -> tuple[str, ...]:
    """Compare what the header promises with the file's size, before anything is allocated."""
    if min(shape) < 1 or offset < HEADER_BYTES:
        raise InputError(
            f"{path}: damaged header: sections, rows, columns = {shape}, "
            f"extended header of {offset - HEADER_BYTES} bytes"
        )
    return check_length(path, offset, shape, stored, found) if found is not None else ()


def _check_kind(path: Path | str, header: Any) -> None:
    group, sections = int(header["ispg"]), int(header["nz"])
    if utils.spacegroup_is_volume_stack(group):
        raise InputError(
            f"{path}: a stack of volumes (space group {group}), expected one volume: save one of them alone"
        )
    if group == 0 and int(header["mz"]) == 1 and sections > 1:
        raise InputError(
            f"{path}: a stack of {sections} images (space group 0, mz 1), expected a volume; "
            "if it is one, mark it so: mrcfile.mmap(path, 'r+').set_volume()"
        )


def _axis_order(path: Path | str, header: Any) -> tuple[int, int, int]:
    """Which file axis (0 sections, 1 rows, 2 columns) is z, y, x. Unset axes (all 0) mean the usual order."""
    axes = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    if axes == [0, 0, 0]:
        return (0, 1, 2)
    if sorted(axes) != [1, 2, 3]:
        raise InputError(
            f"{path}: damaged header: mapc, mapr, maps = {tuple(axes[::-1])}, expected an order of 1, 2, 3"
        )
    return (axes.index(3), axes.index(2), axes.index(1))


def _header_voxel_size(path: Path | str, header: Any) -> Point:
    """Å (z, y, x): the cell divided by its sampling. Six digits, which is what its float32 can tell."""
    sizes = []
    for axis in "zyx":
        cell, samples = float(header["cella"][axis]), int(header[f"m{axis}"])
        sizes.append(float(f"{cell / samples:.6g}") if samples > 0 else 0.0)
    if not all(map(plausible_voxel, sizes)):
        found = ", ".join(f"{size:g}" for size in sizes)
        raise InputError(f"{path}: the header gives no usable voxel size (z, y, x: {found}); {ASK_VOXEL_SIZE}")
    return (sizes[0], sizes[1], sizes[2])


def _header_origin(header: Any, voxel_size: Point, order: tuple[int, int, int]) -> Point:
    """Å (z, y, x): the header's `origin`, and where that is zero or can't be meant, its start indices times the voxel
    size, unless these can't be meant either. As ChimeraX does, IMOD's sign of the origin (flag 4) is not looked at."""
    z, y, x = (float(header["origin"][axis]) for axis in "zyx")
    if (z, y, x) == (0.0, 0.0, 0.0) or not all(abs(place) < _FARTHEST for place in (z, y, x)):
        starts = [int(header[name]) for name in ("nzstart", "nystart", "nxstart")]
        sides = [int(header[name]) for name in ("nx", "ny", "nz", "mx", "my", "mz")]
        if max(map(abs, starts)) > _FARTHEST_START * max(sides):  # never set
            starts = [0, 0, 0]
        z, y, x = (starts[axis] * size for axis, size in zip(order, voxel_size, strict=True))
    return (z, y, x)
