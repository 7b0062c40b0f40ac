"""MRC files as bytes, written by hand so that any header can be made, and OME-Zarr images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from mrcfile.dtypes import HEADER_DTYPE

sys.path.insert(0, str(Path(__file__).parent))  # for `damage`

MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
STAMPS = {"<": [0x44, 0x44, 0, 0], ">": [0x11, 0x11, 0, 0]}
IMOD_STAMP = 1146047817


def mrc_bytes(
    volume: np.ndarray, mode: int, *, order: str = "<", voxel=(2.0, 3.0, 4.5), imod: int | None = None, **fields: Any
) -> bytes:
    """The file of `volume` (sections, rows, columns); `voxel` is Å (z, y, x), `fields` override the header's."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    header["nz"], header["ny"], header["nx"] = header["mz"], header["my"], header["mx"] = volume.shape
    header["mode"], header["ispg"], header["map"] = mode, 1, b"MAP "
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["machst"] = STAMPS[order]
    for axis, n, size in zip("zyx", volume.shape, voxel, strict=True):
        header["cella"][axis] = n * size
    if imod is not None:
        words = np.array([IMOD_STAMP, imod], np.dtype("i4").newbyteorder(order)).tobytes()
        header["extra2"] = bytes(40) + words + bytes(36)
    extended = bytes(fields.get("nsymbt", 0))
    for name, value in fields.items():
        header[name] = value
    dtype = np.dtype(MODES.get(mode, "i1")).newbyteorder(order)
    return header.tobytes() + extended + np.ascontiguousarray(volume).astype(dtype).tobytes()


@pytest.fixture(scope="session")
def mrc_content() -> Callable[..., bytes]:
    """`mrc_bytes`, for tests: a conftest can't be imported by its name, which others have, too."""
    return mrc_bytes


@pytest.fixture
def write_mrc(tmp_path: Path) -> Callable[..., Path]:
    def write(volume: np.ndarray, mode: int, *, name: str = "tomo.mrc", **options: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(mrc_bytes(volume, mode, **options))
        return path

    return write


@pytest.fixture
def volume() -> np.ndarray:
    """Odd and all different sizes, values that every mode holds exactly."""
    return np.random.default_rng(0).integers(0, 100, (5, 7, 11)).astype(np.int16)


def multiscale(axes: str = "zyx", unit: str | None = "angstrom", scale: Any = (2.0, 3.0, 4.5), **extra: Any) -> dict:
    kinds = {"t": "time", "c": "channel"}
    entries = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for entry in entries:
        if unit and entry["type"] == "space":
            entry["unit"] = unit
    dataset: dict[str, Any] = {"path": "0"}
    if scale is not None:
        dataset["coordinateTransformations"] = [{"type": "scale", "scale": list(scale)}]
    return {"axes": entries, "datasets": [dataset], **extra}


@pytest.fixture
def write_zarr(tmp_path: Path) -> Callable[..., str]:
    """Write `data` as an image; options are `multiscale`'s, or `attrs` for the group's attributes as they are."""

    def write(data: np.ndarray, *, version: int = 3, url: str | None = None, attrs: dict | None = None, **options: Any):
        url = url or str(tmp_path / "tomo.zarr")
        group = zarr.open_group(url, mode="w", zarr_format=version)
        chunks = tuple(min(n, 4) for n in data.shape)
        group.create_array("0", shape=data.shape, chunks=chunks, dtype=data.dtype)[...] = data
        if attrs is not None:
            group.attrs.update(attrs)
        elif version == 3:
            group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale(**options)]}
        else:
            group.attrs["multiscales"] = [{"version": "0.4", **multiscale(**options)}]
        return url

    return write
