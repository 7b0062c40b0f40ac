"""What the formats of points share: the tomogram's frame, columns as they come from a file, and the choice of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.geometry import one_side
from cryosam_dask.io.frame import ASK_VOXEL_SIZE, shown
from cryosam_dask.io.points.names import by_number, matching
from cryosam_dask.io.points.names import number_of as number_of
from cryosam_dask.io.points.names import plain_name as plain_name
from cryosam_dask.types import AXES, Point, Shape3

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["z", "y", "x", "score", "instance"]

ALL = "*"
"""As the tomogram or the kind: the points of all of them."""

UNNAMED = "tomogram"
"""The tomogram's name in a file that needs one, if none is known."""

DIGITS = 6
"""Decimals that positions are rounded to where a unit was converted, so that a voxel's centre stays a whole number."""

Float64 = NDArray[np.float64]
Columns = dict[str, Any]
"""Name → texts or an array, all of one length: z, y, x in voxels, and the file's other columns. Not checked yet."""


@dataclass(frozen=True)
class Frame:
    """What is known of a tomogram, and the names for its points.

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
        """The one voxel size; InputError if it isn't known or differs between the axes by more than rounding."""
        sides: list[float] = self.angstrom(what).tolist()
        if (side := one_side(sides, self.shape)) is None:
            size = " x ".join(f"{side:g}" for side in sides)
            raise InputError(f"{what} know one voxel size, the tomogram's is {size} Å (z, y, x): choose another format")
        return side


Part = tuple["pd.DataFrame", Frame]
"""Picks of one tomogram (`COLUMNS`, voxels; some with the angles of `orientation`) and its frame."""


@dataclass(frozen=True)
class PointsFormat:
    """A format of points.

    Attributes
    ----------
    suffixes : the suffixes that stand for the format
    read : (path, frame) → columns; InputError if the file can't be read
    encode : (parts, whether each pick needs its tomogram's name) → the file's bytes; None: the format can't be written
    joint : whether a file can hold several tomograms; names : whether a file of one tomogram names it
    kinds : whether a file names the kind
    units : units that positions may have, the first by default; empty if a file states its own unit
    among : suffixes of its files that another format owns; that format's reader recognizes this one by the content
    looks_like : whether a file with one of the suffixes is likely of this format, by its first bytes; None: it always
        is. It is used to search folders for formats whose suffix other kinds of files have, too
    """

    suffixes: tuple[str, ...]
    read: Callable[[Path, Frame], Columns]
    encode: Callable[[Sequence[Part], bool], bytes] | None
    joint: bool = False
    names: bool = False
    kinds: bool = False
    units: tuple[str, ...] = ("voxel",)
    among: tuple[str, ...] = ()
    looks_like: Callable[[bytes], bool] | None = None


def positions(table: pd.DataFrame) -> Float64:
    """(n, 3) z, y, x of a table."""
    places: Float64 = table[list(AXES)].to_numpy(dtype=float)
    return places


def rounded(values: ArrayLike) -> Float64:
    """Converted positions, rounded to `DIGITS` decimals to remove the error of the conversion; -0 becomes 0."""
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


def choose(path: Path, columns: Columns, name: str, asked: str | None, notes: list[str] | None = None) -> Columns:
    """The rows of one tomogram or one kind: the column `name` has the tomogram's or the kind's name, if the file has
    it.

    A single tomogram is taken whatever its name is, since names differ between programs; `notes` gets a sentence if its
    name differs. InputError, which lists the names, if there are several and none of them was asked for.
    """
    if asked == ALL or name not in columns:
        return columns
    names = [str(value) for value in columns[name]]
    known = sorted(set(names))
    if len(known) < 2 and (name == "tomogram" or asked is None):
        if known and asked is not None and notes is not None:
            notes += renamed(path, known[0], asked)
        return columns
    meant = [] if asked is None else matching(asked, known, series=name == "tomogram")
    if len(meant) != 1:
        listed = ", ".join(map(shown, known[:5])) + (", …" if len(known) > 5 else "")
        which = "several of them" if meant else "none of them"
        which = "say which one" if asked is None else f"{which} {shown(repr(asked))}"
        raise InputError(f"{path}: points of {len(known)} {name}{'s' * (len(known) != 1)} ({listed}), {which}")
    return keep(columns, [value == meant[0] for value in names])


def renamed(path: Path, name: str, asked: str) -> list[str]:
    """A note where a file's only tomogram has another name than the one that its points are used with."""
    if name in ("", UNNAMED) or plain_name(name).casefold() == plain_name(asked).casefold() or by_number(name, asked):
        return []
    return [f"{path}: its points are of {shown(repr(name))} by name, and are used with {shown(repr(asked))}"]
