"""What the formats of points share: what is known of the tomogram, columns as they come from a file, and choices."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import ASK_VOXEL_SIZE, shown
from cryosam_dask.types import AXES, Point, Shape3

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["z", "y", "x", "score", "instance"]

ALL = "*"
"""Asked for as the tomogram or the kind: the points of all."""

DIGITS = 6
"""Decimals that positions are rounded to where a unit was converted, so that a voxel's centre stays a whole number."""

Float64 = NDArray[np.float64]
Columns = dict[str, Any]
"""Name → texts or an array, all of one length: z, y, x in voxels, and what else the file has. Not checked yet."""

_ENDING = re.compile(
    r"(\.(tomostar|mrc|mrcs|em|hdf|rec|map|st|ali|ccp4|ome|zarr|star|csv|json|ndjson|xml)|_\d+(\.\d+)?apx|_\d+\.\d+a)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Frame:
    """What is known of a tomogram, and what points of it are called.

    Attributes
    ----------
    voxel_size : Å (z, y, x); shape : voxels (z, y, x)
    tomogram : its name in files that hold names; read: which of several, `ALL` for all
    tomograms : RELION's tomograms.star, with the unbinned sizes
    kind : the particle's name (copick's object, IMOD's object); read: which of several, `ALL` for all
    user, session : whose picks these are, in copick's words
    unit : of the positions, where a format leaves that open: "voxel" or "angstrom"
    notes : gets a sentence for each thing that a reader or a writer had to assume
    """

    voxel_size: Point | None = None
    shape: Shape3 | None = None
    tomogram: str | None = None
    tomograms: Path | None = None
    kind: str | None = None
    user: str = "cryosam"
    session: str = "0"
    unit: str | None = None
    notes: list[str] = field(default_factory=list, compare=False)

    def angstrom(self, what: str) -> Float64:
        """The voxel size as an array; InputError that begins with `what` if it isn't known."""
        if self.voxel_size is None:
            raise InputError(f"{what}: the tomogram's voxel size is needed; {ASK_VOXEL_SIZE}")
        return np.asarray(self.voxel_size, dtype=float)

    def name(self, what: str) -> str:
        """The tomogram's name; InputError if it isn't known."""
        if not self.tomogram:
            raise InputError(f"{what} need the tomogram's name")
        return self.tomogram

    def cubic(self, what: str) -> float:
        """The one voxel size; InputError if it isn't known or differs between the axes."""
        sides: list[float] = self.angstrom(what).tolist()
        if len(set(sides)) > 1:
            size = " x ".join(f"{side:g}" for side in sides)
            raise InputError(f"{what} know one voxel size, the tomogram's is {size} Å (z, y, x): choose another format")
        return sides[0]


Part = tuple["pd.DataFrame", Frame]
"""Picks of one tomogram (`COLUMNS`, voxels; some with the angles of `orientation`) and its frame."""


@dataclass(frozen=True)
class Format:
    """A format of points.

    Attributes
    ----------
    suffixes : that stand for it
    read : (path, frame) → columns; InputError for what can't be read
    encode : (parts, whether each pick needs its tomogram's name) → the file; None: it is read alone
    joint : whether a file can hold several tomograms
    units : of the positions, the first if none is asked for; none where a file tells its own
    among : suffixes of its files, where another format owns them and tells this one by what is in a file
    looks_like : whether a file with one of the suffixes is likely of this format, by its first bytes; None: it is.
        Folders are searched with it for formats whose suffix other kinds of files have, too
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path, Frame], Columns]
    encode: Callable[[Sequence[Part], bool], bytes] | None
    joint: bool = False
    units: tuple[str, ...] = ("voxel",)
    among: tuple[str, ...] = ()
    looks_like: Callable[[bytes], bool] | None = None


def positions(table: pd.DataFrame) -> Float64:
    """(n, 3) z, y, x of a table."""
    found: Float64 = table[list(AXES)].to_numpy(dtype=float)
    return found


def rounded(values: ArrayLike) -> Float64:
    """Converted positions without what the conversion left behind the last decimal; -0 becomes 0."""
    with np.errstate(all="ignore"):  # what overflows is refused as no number
        return np.asarray(np.round(np.asarray(values, dtype=float), DIGITS) + 0.0)


def axes_of(values: Float64) -> Columns:
    """(n, 3) z, y, x as columns."""
    return {axis: values[:, i] for i, axis in enumerate(AXES)}


def keep(columns: Columns, rows: Sequence[bool] | NDArray[np.bool_]) -> Columns:
    """The rows that are True."""
    mask = np.asarray(rows, dtype=bool)
    return {
        name: values[mask]
        if isinstance(values, np.ndarray)
        else [v for v, kept in zip(values, mask, strict=True) if kept]
        for name, values in columns.items()
    }


def choose(path: Path, columns: Columns, name: str, asked: str | None) -> Columns:
    """The rows of one tomogram or one kind: `name` is the column that tells them apart, if the file has it.

    A single tomogram is taken whatever it is called, since names differ between programs. InputError that lists what
    there is where several are and none was asked for, or another.
    """
    if asked == ALL or name not in columns:
        return columns
    names = [str(value) for value in columns[name]]
    known = sorted(set(names))
    if len(known) < 2 and (name == "tomogram" or asked is None):
        return columns
    meant = [asked] if asked in known else [one for one in known if asked is not None and _same(one, asked)]
    if len(meant) != 1:
        listed = ", ".join(map(shown, known[:5])) + (", …" if len(known) > 5 else "")
        which = "several of them" if meant else "none of them"
        which = "say which one" if asked is None else f"{which} {shown(repr(asked))}"
        raise InputError(f"{path}: points of {len(known)} {name}{'s' * (len(known) != 1)} ({listed}), {which}")
    return keep(columns, [one == meant[0] for one in names])


def plain_name(name: str) -> str:
    """A tomogram's name without its folder, its suffixes and the voxel size that Warp appends, as in
    TS_026.mrc_10.00Apx.mrc."""
    name = re.split(r"[/\\]", name.strip().rstrip("/"))[-1]
    while (shorter := _ENDING.sub("", name)) and shorter != name:
        name = shorter
    return name


def number_of(name: str | None) -> int | None:
    """The number that a tomogram's name is or ends in, as 7 of TS_07; None where there is none."""
    digits = re.search(r"\d{1,15}$", plain_name(name)) if name else None
    return None if digits is None else int(digits[0])


def by_number(name: str, other: str) -> bool:
    """Whether `name` is a number alone, as some formats call tomograms, and the one that `other` ends in."""
    return name.isascii() and name.isdigit() and number_of(other) == int(name)


def _same(one: str, other: str) -> bool:
    return plain_name(one) == plain_name(other) or by_number(one, other)
