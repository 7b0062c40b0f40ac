"""What one tomogram is called in different places: TS_026.mrc, TS_026.mrc_10.00Apx.mrc, TS_026.tomostar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryosam_dask.io.points.names import matching, plain_name
from cryosam_dask.io.star import read_tables

NAME_COLUMNS = ("rlnTomoName", "rlnMicrographName", "wrpSourceName")
"""Columns of STAR files that name a row's tomogram: RELION's, of RELION 3 and Warp, and M's."""


def same_tomogram(name: str, others: Sequence[str]) -> list[str]:
    """Which of `others` may be names of the tomogram `name`.

    Those that `io.points.names.matching` finds; where there are none, the longest that one of the two begins with, up
    to a sign that is no letter or digit (`TS_026_crop` is `TS_026`, and not `TS_02`).
    """
    if exact := matching(name, others, case=False):
        return exact
    own = plain_name(name).casefold()
    plain = {other: plain_name(other).casefold() for other in others}
    begun = {
        other: min(len(short), len(own)) for other, short in plain.items() if _begins(own, short) or _begins(short, own)
    }
    longest = max(begun.values(), default=0)
    return [other for other, length in begun.items() if length == longest]


def _begins(name: str, start: str) -> bool:
    return bool(start) and name.startswith(start) and len(name) > len(start) and not name[len(start)].isalnum()


def star_names(path: Path) -> list[str]:
    """The names of tomograms in a STAR file of positions, each once, as they stand there; none where none are named.

    Raises InputError for what is no STAR file.
    """
    for table in read_tables(path):
        if any("Coordinate" in column for column in table.columns):
            for column in NAME_COLUMNS:
                if column in table.columns:
                    return list(dict.fromkeys(table.columns[column]))
    return []
