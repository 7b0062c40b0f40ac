"""Open a tomogram, whatever its format."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import TomogramSource, parse_voxel_size
from cryosam_dask.io.mrc import open_mrc
from cryosam_dask.io.mrc_remote import open_remote_mrc
from cryosam_dask.io.omezarr import open_omezarr
from cryosam_dask.store.address import check_address, public

MRC_SUFFIXES = (".mrc", ".rec", ".map", ".st", ".ali", ".ccp4")
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".zip", ".zst", ".xz")


def open_tomogram(
    path_or_url: str | PathLike[str],
    *,
    voxel_size: float | Sequence[float] | None = None,
    unsigned: bool | None = None,
) -> TomogramSource:
    """Open an MRC file or an OME-Zarr image, on a disk or behind any fsspec URL.

    Parameters
    ----------
    path_or_url : `tomo.mrc`, `tomo.zarr`, `s3://bucket/tomo.zarr`, `https://host/tomo.mrc`, which may be signed by a
        query; `tomo.zarr/1` takes that resolution level
    voxel_size : Å, one number or (z, y, x), instead of the file's own
    unsigned : how to read 8-bit MRC voxels, instead of what the header says

    Raises InputError, one line that says what is wrong with the file and what to do, and StoreError where storage that
    is not a local disk does not answer or does not let us in.
    """
    override = parse_voxel_size(voxel_size)
    text = str(path_or_url)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if "://" in text:
        check_address(text, InputError)
        shown = public(text)
        if shown.lower().endswith(COMPRESSED_SUFFIXES):
            raise InputError(
                f"{shown}: a compressed file can't be read by ranges: decompress it there, or copy it here"
            )
        # a signed link reaches one file, which an OME-Zarr is not
        if shown.lower().endswith(MRC_SUFFIXES) or shown != text:
            return open_remote_mrc(text, voxel_size=override, unsigned=unsigned)
        return _open_zarr(text, override, unsigned)
    path = Path(text).expanduser()
    if path.is_dir():
        return _open_zarr(str(path.absolute()), override, unsigned)
    return open_mrc(path, voxel_size=override, unsigned=unsigned)


def _open_zarr(url: str, voxel_size: tuple[float, float, float] | None, unsigned: bool | None) -> TomogramSource:
    if unsigned is not None:
        raise InputError(f"{url}: 'unsigned' applies to MRC files only; a Zarr array tells its own type")
    return open_omezarr(url, voxel_size=voxel_size)
