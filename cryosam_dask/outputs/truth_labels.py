"""True instance labels: read box by box beside a run's own, and found by the tomogram's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.evaluate import MaskEvaluation, evaluate_masks
from cryosam_dask.geometry import same_voxels
from cryosam_dask.io.frame import Block, TomogramSource
from cryosam_dask.io.source import SUFFIXES, open_tomogram
from cryosam_dask.outputs.results import check_painted
from cryosam_dask.outputs.truth import Tomogram
from cryosam_dask.outputs.truth_files import Kind
from cryosam_dask.storage.address import is_local, local_path
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Shape3


@dataclass(frozen=True)
class _Sliced:
    """A source as an array that can be sliced."""

    source: TomogramSource

    @property
    def shape(self) -> Shape3:
        return self.source.shape

    def __getitem__(self, block: Block) -> Array:
        ids = self.source.read(block)
        return ids.view(np.uint8) if ids.dtype == np.int8 else ids  # ids are not negative: 8-bit MRC has no sign


def compare_labels(store: RunStore, query: str, path: str | Path) -> tuple[MaskEvaluation, list[str]]:
    """A query's instance labels against those at `path`; with what a reader of the figures must know.

    Raises InputError where the file can't be read, is of another shape, or holds no ids, StoreError where the query's
    labels are not finished.
    """
    check_painted(store, query)
    source, notes = _open(path, store), []
    if source.shape != store.shape:
        raise InputError(
            f"{path}: shape {source.shape}, the tomogram has {store.shape} (z, y, x); true labels must be on its grid, "
            f"voxels of {store.voxel_size[0]:g} Å" + ("" if _same_size(source, store) else f", not {_size(source)}")
        )
    if not _same_size(source, store):
        notes.append(f"{path}: voxels of {_size(source)} by its header, {store.voxel_size[0]:g} Å by the run; compared")
    try:
        return evaluate_masks(store.array(layout.labels(query)), _Sliced(source)), notes
    except InputError as error:
        raise InputError(str(error).replace("masks:", f"{path}:", 1)) from error


def _open(path: str | Path, store: RunStore) -> TomogramSource:
    """The source, with the run's voxel size where it has none of its own."""
    try:
        return open_tomogram(path)
    except InputError:
        return open_tomogram(path, voxel_size=store.voxel_size)


def _same_size(source: TomogramSource, store: RunStore) -> bool:
    return same_voxels(source.voxel_size, store.voxel_size, store.shape)


def _size(source: TomogramSource) -> str:
    return " x ".join(f"{v:g}" for v in dict.fromkeys(source.voxel_size)) + " Å"


@dataclass(frozen=True)
class LabelFiles:
    """Label files of many tomograms: a folder, in which files are found as files of points are; or one file."""

    path: str
    files: tuple[Path, ...] = ()

    @classmethod
    def open(cls, path: str | Path, *, single: bool) -> LabelFiles:
        """A folder that is no image itself is looked through; anything else is the labels of a `single` tomogram and
        kind.

        InputError where one file would be those of several, and for a folder without images.
        """
        files = _label_files(path)
        if not files and not single:
            raise InputError(
                f"{path}: labels of one tomogram and kind, and there are several runs or kinds: give a folder of labels"
            )
        return cls(str(path) if not files else str(Path(local_path(path)).expanduser()), files)

    def of(self, tomogram: Tomogram, kind: Kind) -> str | Path | None:
        """The labels of a kind in a tomogram, None where there are none."""
        if not self.files:
            return self.path
        return tomogram.file_of(self.files, Path(self.path), kind)


def _label_files(path: str | Path) -> tuple[Path, ...]:
    """Images in a folder; empty for anything that is no folder of them."""
    place = Path(local_path(path)).expanduser() if is_local(str(path)) else None
    if place is None or not place.is_dir() or place.suffix == ".zarr" or _is_zarr(place):
        return ()
    images = sorted(entry for entry in _entries(place) if not entry.name.startswith(".") and _is_image(entry))
    if not images:
        raise InputError(f"{place}: no images in this folder, expected labels ({', '.join(SUFFIXES)}, .zarr)")
    return tuple(images)


def _is_zarr(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray"))


def _is_image(entry: Path) -> bool:
    return entry.is_dir() or entry.name.lower().endswith(SUFFIXES)


def _entries(folder: Path) -> list[Path]:
    """Files and images in a folder and in the folders in it."""
    entries: list[Path] = []
    for entry in folder.iterdir():
        if entry.is_dir() and entry.suffix != ".zarr" and not _is_zarr(entry):
            entries += _entries(entry)
        else:
            entries.append(entry)
    return entries
