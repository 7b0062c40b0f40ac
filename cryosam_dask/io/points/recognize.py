"""Recognize the format of a file of points, and check the unit that is asked for."""

from __future__ import annotations

from pathlib import Path

from cryosam_dask.errors import InputError
from cryosam_dask.io.points import FORMATS

PICK_FORMATS = {name: kind.suffixes for name, kind in FORMATS.items()}
"""Format → the suffixes that stand for it. `star` is RELION 4's convention when written, any when read."""

UNITS = ("voxel", "angstrom")
"""The units that a user may choose for positions, if the format leaves them open."""

_START = 1 << 14  # bytes that tell a file's kind


def pick_format(path: Path, asked: str | None) -> str:
    """The format asked for, else that of the suffix; InputError for an unknown one."""
    if asked is not None:
        if asked.lower() not in PICK_FORMATS:
            raise InputError(f"unknown format {asked!r} for points; known: {', '.join(PICK_FORMATS)}")
        return asked.lower()
    for name, suffixes in PICK_FORMATS.items():
        if path.suffix.lower() in suffixes:
            return name
    known = ", ".join(suffix for suffixes in PICK_FORMATS.values() for suffix in suffixes)
    raise InputError(
        f"{path}: the suffix {path.suffix!r} tells no format for points (known: {known}); "
        f"name one (--points-format, --truth-format, in Python format): {', '.join(PICK_FORMATS)}"
    )


def looks_like_points(path: Path) -> bool:
    """Whether a file with a suffix of points is likely one, where other kinds of files have that suffix, too."""
    known = next((form for form in FORMATS.values() if path.suffix.lower() in form.suffixes), None)
    if known is None or known.looks_like is None:
        return known is not None
    try:
        with path.open("rb") as file:
            return known.looks_like(file.read(_START))
    except OSError:
        return True  # it is named for points: that it can't be read is said when it is


def check_unit(path: Path, format: str, unit: str | None) -> None:
    """InputError if a unit is asked for that the positions of the format can't be in."""
    units = FORMATS[format].units
    if unit is not None and unit not in units:
        words = {"voxel": "voxels", "angstrom": "ångström"}
        fixed = words[units[0]] if units else "the unit that the file tells"
        free = ", ".join(name for name, each in FORMATS.items() if len(each.units) > 1)
        raise InputError(
            f"{path}: positions in the format {format} are in {fixed}, but {words[unit]} are asked for; "
            f"the unit can be chosen for {free}"
        )
