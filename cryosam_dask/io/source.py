"""Open a tomogram, whatever its format: `FORMATS` is the one place where formats are registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from cryosam_dask.errors import InputError
from cryosam_dask.io import copick_project
from cryosam_dask.io.arrays import open_array
from cryosam_dask.io.frame import TomogramSource, as_path, is_folder, parse_voxel_size
from cryosam_dask.io.mrc import open_gzipped_mrc, open_mrc
from cryosam_dask.io.mrc_remote import open_remote_mrc
from cryosam_dask.io.npy import open_npy, open_npz
from cryosam_dask.io.omezarr import ZarrSource, open_omezarr
from cryosam_dask.storage.address import check_address, public
from cryosam_dask.types import Point, Volume


@dataclass(frozen=True)
class TomogramFormat:
    """A file format of tomograms.

    Attributes
    ----------
    name : for people; suffixes : lower case, of files of this format
    open : (path, voxel_size=, …) → the source; takes `unsigned` where `has_sign`, and `name` where `holds_many`
    open_remote : the same for a URL; None where files have to be copied to a disk first
    beside : suffixes of files that lie beside tomograms but mostly are not tomograms, such as tilt series and tables;
        such a file is opened if it is named, and skipped in a folder
    holds_many : `FILE/NAME` means the array NAME in the file
    """

    name: str
    suffixes: tuple[str, ...]
    open: Callable[..., TomogramSource]
    open_remote: Callable[..., TomogramSource] | None = None
    beside: tuple[str, ...] = ()
    has_sign: bool = False
    holds_many: bool = False


def _open_tiff(path: Path, **options: Any) -> TomogramSource:
    from cryosam_dask.io.tiff import open_tiff

    return open_tiff(path, **options)


def _open_hdf5(path: Path, **options: Any) -> TomogramSource:
    from cryosam_dask.io.hdf5 import open_hdf5

    return open_hdf5(path, **options)


MRC_SUFFIXES = (".mrc", ".rec", ".map", ".st", ".ali", ".ccp4")
MRC = TomogramFormat("MRC", MRC_SUFFIXES, open_mrc, open_remote_mrc, beside=(".st", ".ali"), has_sign=True)
FORMATS = (
    MRC,
    TomogramFormat("gzipped MRC", (".mrc.gz", ".rec.gz", ".map.gz", ".ccp4.gz"), open_gzipped_mrc, has_sign=True),
    TomogramFormat("TIFF", (".tif", ".tiff", ".btf", ".tf8"), _open_tiff),
    TomogramFormat("HDF5", (".hdf", ".h5", ".hdf5"), _open_hdf5, holds_many=True),
    TomogramFormat("NumPy", (".npy",), open_npy),
    TomogramFormat("NumPy archive", (".npz",), open_npz, beside=(".npz",), holds_many=True),
)
SUFFIXES = tuple(suffix for form in FORMATS for suffix in form.suffixes)
BESIDE = tuple(suffix for form in FORMATS for suffix in form.beside)
_PACKED = (".gz", ".bz2", ".zip", ".zst", ".xz")


def format_of(name: str) -> TomogramFormat | None:
    """The format that a file's suffix stands for; None if there is none."""
    return next((form for form in FORMATS if name.lower().endswith(form.suffixes)), None)


def inside(path: Path) -> tuple[Path, str] | None:
    """Split `tomo.h5/path/of/it` into the file and the name in it; None if the path is not of this kind."""
    try:
        if path.exists():
            return None
        for parent in path.parents:
            known = format_of(parent.name)
            if known is not None and known.holds_many and parent.is_file():
                return parent, path.relative_to(parent).as_posix()
    except OSError:  # such as a name that is too long
        pass
    return None


def open_tomogram(
    path_or_url: str | PathLike[str] | Volume,
    *,
    voxel_size: float | Sequence[float] | None = None,
    unsigned: bool | None = None,
) -> TomogramSource:
    """Open a tomogram of any of `FORMATS` on a disk; MRC and OME-Zarr also behind any fsspec URL.

    Parameters
    ----------
    path_or_url : `tomo.mrc`, `tomo.rec.gz`, `tomo.tif`, `tomo.zarr`, `s3://bucket/tomo.zarr`, `https://host/tomo.mrc`,
        which may be signed by a query; `tomo.zarr/1` takes that resolution level, `tomo.h5/group/name` that dataset; a
        tomogram of a copick project, see `io.copick_project`; or an array of NumPy, Dask or xarray, see `io.arrays`
    voxel_size : Å, one number or (z, y, x), instead of the file's own
    unsigned : how to read 8-bit MRC voxels, instead of what the header says

    A file with an unknown suffix is taken to be MRC. Raises InputError, one line that says what is wrong with the
    file and what to do, and StoreError if remote storage does not answer or denies access.
    """
    override = parse_voxel_size(voxel_size)
    if not isinstance(path_or_url, str | PathLike):
        if unsigned is not None:
            raise InputError("'unsigned' applies to MRC files only; an array tells its own type")
        return open_array(path_or_url, voxel_size=override)
    text = str(path_or_url)
    if copick_project.is_address(text):
        return _open_copick(text, override, unsigned)
    if "://" in text and not text.startswith("file://"):
        check_address(text, InputError)
        return _open_remote(text, override, unsigned)
    path = as_path(text)
    if is_folder(path):
        return _open_zarr(str(path.absolute()), override, unsigned)
    name: dict[str, str] = {}
    if (member := inside(path)) is not None:
        path, name["name"] = member
    elif path.name.lower().endswith(_PACKED) and format_of(path.name) is None:
        raise InputError(f"{path}: a packed file, of which only MRC with gzip (.mrc.gz) is read: unpack it first")
    known = format_of(path.name) or MRC
    return known.open(path, voxel_size=override, **name, **_sign(known, str(path), unsigned))


def _open_copick(text: str, voxel_size: Point | None, unsigned: bool | None) -> TomogramSource:
    known = copick_project.tomogram(text)
    source = _open_zarr(known.url, voxel_size, unsigned)
    return replace(source, notes=source.notes + copick_project.spacing_notes(known, source.voxel_size, source.shape))


def _open_remote(url: str, voxel_size: Point | None, unsigned: bool | None) -> TomogramSource:
    shown = public(url)
    known = format_of(shown)
    if known is not None and known.open_remote is None:
        raise InputError(f"{shown}: {known.name} is read from a disk only: download it first")
    if shown.lower().endswith(_PACKED):
        raise InputError(f"{shown}: a compressed file can't be read by ranges: download it first")
    # a signed link reaches one file, which an OME-Zarr is not
    if known is not None and known.open_remote is not None:
        return known.open_remote(url, voxel_size=voxel_size, **_sign(known, shown, unsigned))
    if shown != url:
        if shown.lower().rstrip("/").endswith(".zarr"):
            raise InputError(f"{shown}: an OME-Zarr is many files, and a signed link reaches one: give it without")
        return open_remote_mrc(url, voxel_size=voxel_size, unsigned=unsigned)
    return _open_zarr(url, voxel_size, unsigned)


def _sign(known: TomogramFormat, shown: str, unsigned: bool | None) -> dict[str, bool | None]:
    if known.has_sign:
        return {"unsigned": unsigned}
    if unsigned is not None:
        raise InputError(f"{shown}: 'unsigned' applies to MRC files only; {known.name} tells its own type")
    return {}


def _open_zarr(url: str, voxel_size: Point | None, unsigned: bool | None) -> ZarrSource:
    if unsigned is not None:
        raise InputError(f"{url}: 'unsigned' applies to MRC files only; a Zarr array tells its own type")
    return open_omezarr(url, voxel_size=voxel_size)
