"""Read and check the header of an MRC file.

The format is MRC2014 (Cheng et al., J. Struct. Biol. 192, 146, 2015) with IMOD's two extra words (`imodStamp`
and `imodFlags`, https://bio3d.colorado.edu/imod/doc/mrc_format.txt). A file is never flipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile import utils
from mrcfile.dtypes import HEADER_DTYPE

from cryosam_dask.errors import InputError
from cryosam_dask.io.flat import check_length, identity
from cryosam_dask.io.frame import check_volume, native
from cryosam_dask.io.mrc_cell import Order, header_origin, header_voxel_size
from cryosam_dask.io.mrc_sign import Sign, sign_of_bytes
from cryosam_dask.types import Point, Shape3

HEADER_BYTES = 1024
_LONGEST_EXTENDED = 1 << 28  # bytes; where more are stated the header is damaged, and nothing else of it is believed
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


@dataclass(frozen=True)
class MrcHeader:
    """The checked values of a header. `sign` is that of 8-bit voxels, else None; the other attributes are as in
    `FlatSource`."""

    shape: Shape3
    dtype: np.dtype[Any]
    voxel_size: Point
    origin: Point
    notes: tuple[str, ...]
    offset: int
    stored: np.dtype[Any]
    order: Order
    sign: Sign | None

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels."""
        return math.prod(self.shape) * self.stored.itemsize

    @property
    def section_bytes(self) -> int:
        """Bytes of a section, or of a larger plane."""
        return math.prod(sorted(self.shape)[1:]) * self.stored.itemsize

    def identity(self, name: str, size: int, digest: str, form: str = "mrc") -> dict[str, Any]:
        """See `flat.identity`."""
        return identity(form, name, size, digest, self.shape, self.dtype, self.voxel_size)


def read_header(
    path: Path | str, raw: bytes, size: int | None, *, voxel_size: Point | None = None, unsigned: bool | None = None
) -> MrcHeader:
    """Check the first `HEADER_BYTES` of a file of `size` bytes, None where nobody knows; `path` names it in errors.
    See `open_mrc`."""
    header, notes = _parse_header(path, raw)
    stored, sign = _voxel_dtype(path, header, unsigned)
    on_disk = (int(header["nz"]), int(header["ny"]), int(header["nx"]))
    offset, size_notes = _voxels_at(path, on_disk, stored, int(header["nsymbt"]), size)
    notes += (sign.notes if sign else ()) + size_notes
    _check_kind(path, header)
    order = _axis_order(path, header)
    z, y, x = (on_disk[axis] for axis in order)
    check_volume(str(path), (z, y, x))
    if voxel_size is None:
        voxel_size, cell_notes = header_voxel_size(path, header, order)
        notes += cell_notes
    origin = header_origin(header, voxel_size, order)
    return MrcHeader((z, y, x), native(stored), voxel_size, origin, notes, offset, stored, order, sign)


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


def _voxel_dtype(path: Path | str, header: Any, unsigned: bool | None) -> tuple[np.dtype[Any], Sign | None]:
    """The stored dtype, and of 8-bit voxels how their sign is known."""
    mode = int(header["mode"])
    extra = header["extra2"].tobytes()
    stamp, flags = np.frombuffer(extra[40:48], header.dtype["mode"])
    flags = int(flags) if stamp == _IMOD_STAMP else None
    if mode == 0 and flags is not None and flags & _IMOD_FOUR_BIT:
        mode = 101
    if mode not in _DTYPES:
        what = _UNREADABLE.get(mode, "unknown")
        raise InputError(f"{path}: MRC mode {mode} ({what}) can't be read; readable modes: {READABLE}")
    if mode == 0:
        flag = None if flags is None else not flags & _IMOD_SIGNED
        sign = sign_of_bytes(float(header["dmin"]), float(header["dmax"]), unsigned, flag)
        return np.dtype("u1" if sign.unsigned else "i1"), sign
    if unsigned is not None:
        raise InputError(f"{path}: 'unsigned' applies to MRC mode 0 only, found mode {mode}")
    return np.dtype(_DTYPES[mode]).newbyteorder(header.dtype["mode"].byteorder), None


def _voxels_at(
    path: Path | str, shape: tuple[int, ...], stored: np.dtype[Any], extended: int, size: int | None
) -> tuple[int, tuple[str, ...]]:
    """Where the voxels begin, with notes. The size that the header promises is compared with the file's before anything
    is allocated. An `extended` header (nsymbt, bytes) that is stated is left out where the file is just as long as one
    without."""
    if min(shape) < 1 or extended < 0:
        raise InputError(
            f"{path}: damaged header: sections, rows, columns = {shape}, extended header of {extended} bytes"
        )
    offset, voxels = HEADER_BYTES + extended, math.prod(shape) * stored.itemsize
    if size is None:
        return offset, ()
    if 0 < extended <= _LONGEST_EXTENDED and size == HEADER_BYTES + voxels:
        return HEADER_BYTES, (
            f"its extended header, {extended} bytes by nsymbt, is not there: the file is as long as a header of "
            f"{HEADER_BYTES} bytes and the voxels, and read so",
        )
    if extended and size < offset + voxels:
        raise InputError(
            f"{path}: truncated: expected {offset + voxels} bytes (a header of {HEADER_BYTES}, an extended header of "
            f"{extended} by nsymbt, and {' x '.join(map(str, shape))} voxels of {stored.itemsize} bytes; "
            f"{HEADER_BYTES + voxels} without the extended header), found {size}; copy the file again, or "
            "correct nsymbt"
        )
    return offset, check_length(path, offset, shape, stored, size)


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


def _axis_order(path: Path | str, header: Any) -> Order:
    """Which file axis (0 sections, 1 rows, 2 columns) is z, y, x. Unset axes (all 0) mean the usual order."""
    axes = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    if axes == [0, 0, 0]:
        return (0, 1, 2)
    if sorted(axes) != [1, 2, 3]:
        raise InputError(
            f"{path}: damaged header: mapc, mapr, maps = {tuple(axes[::-1])}, expected an order of 1, 2, 3"
        )
    return (axes.index(3), axes.index(2), axes.index(1))
