"""STAR files: a strict reader of their tables, and a writer that is the starfile library.

A table of points that is quietly cut or mixed up would be worse than none. Every row must have as many values as the
table has columns, names of blocks and columns must differ, and what stands at the start of a value alone (`#`, quotes)
is a sign. The meaning of columns is described in `points.relion` and `points.warp`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.text import MOST_COLUMNS, read_lines

if TYPE_CHECKING:
    import pandas as pd

DIGITS = 6
"""Decimals in the file, RELION's own number."""

# What a name can't have: starfile reads an apostrophe as a quote, and these words as no value. RELION joins spaces
# (`simplify` in its strings.cpp), and neither takes a quote inside quotes.
_UNWRITABLE = re.compile(r"""['"]|^\s|\s$|\s\s|^(nan|NaN|<NA>)$""")
# What a value needs quotes for, so that it is no comment, block, column or end of a text.
_QUOTED = re.compile(r"[\s#]|^[_;$\[\]]|^(data|save|loop|stop|global)_", re.IGNORECASE)

# A quoted value, a comment to the line's end, or what stands between spaces. A lone quote at the start matches none.
_TOKEN = re.compile(r"""\s*(?:'([^']*)'(?=\s|$)|"([^"]*)"(?=\s|$)|(\#.*)|([^\s'"]\S*))""")


@dataclass
class Table:
    """A data block: its columns of texts by name. Single values (no `loop_`) are columns of one row."""

    columns: dict[str, list[str]] = field(default_factory=dict)
    looped: bool = False

    def rows(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def has(self, names: Sequence[str]) -> bool:
        return set(names) <= set(self.columns)


def read_tables(path: Path) -> list[Table]:
    """The data blocks of a STAR file; InputError if the file is not a STAR file."""
    return _parse(path, read_lines(path))


def encode_table(table: pd.DataFrame, names: str, *, quotes: bool = True) -> bytes:
    """A STAR file of one table, because RELION's coordinate import reads a file's first one.

    Parameters
    ----------
    names : the column of texts; they are quoted where one must be
    quotes : whether its readers know quotes; if not, the names must not stand first in a row

    Raises InputError for a name that would not be read back as it is.
    """
    import starfile

    every = table[names].unique().tolist()
    for name in every:
        if _UNWRITABLE.search(name) or not name.isprintable() or not (quotes or re.fullmatch(r"[^\s#]+", name)):
            words = "quotes, tabs, two spaces together or at an end" if quotes else "spaces, quotes or #"
            raise InputError(
                f"the name {shown(repr(name))} can't stand in a STAR file: expected none of {words}: give another with "
                "--tomogram"
            )
    text: str = starfile.to_string(
        {"particles": table},
        float_format=f"%.{DIGITS}f",
        quote_all_strings=quotes and any(map(_QUOTED.search, every)),
    )
    return text.encode()


def _parse(path: Path, lines: Sequence[str]) -> list[Table]:
    """The data blocks of a STAR file."""

    def unreadable(number: int, why: str) -> InputError:
        return InputError(f"{path}: not a readable STAR file: line {number}: {why}")

    tables: list[Table] = []
    names: set[str] = set()
    for number, tokens, quoted in _token_lines(path, lines):
        first = "" if quoted else tokens[0]  # in quotes it is a value, whatever it says
        if first.startswith("data_") and len(tokens) == 1:
            if first in names:
                raise unreadable(number, f"a second block {shown(first)}")
            names.add(first)
            tables.append(Table())
        elif not tables:
            continue  # what stands before the first block is nobody's
        elif first == "loop_":
            if tables[-1].columns or tables[-1].looped:
                raise unreadable(number, "a second table in one block")
            tables[-1].looped = True
        elif first.startswith("_") and not (tables[-1].looped and tables[-1].rows()):
            table, label = tables[-1], first[1:]
            if label in table.columns or len(table.columns) == MOST_COLUMNS:
                raise unreadable(number, f"{shown(label)} again, or more than {MOST_COLUMNS} columns")
            if not table.looped and len(tokens) != 2:
                raise unreadable(number, f"{len(tokens) - 1} values for {shown(label)}, expected one")
            table.columns[label] = [] if table.looped else [tokens[1]]
        else:
            expected = len(tables[-1].columns) if tables[-1].looped else 0
            if len(tokens) != expected or not expected:
                raise unreadable(number, f"{len(tokens)} values, expected {expected}")
            for column, token in zip(tables[-1].columns.values(), tokens, strict=True):
                column.append(token)
    if not tables:
        raise InputError(f"{path}: not a STAR file: no data block in it")
    return tables


def _token_lines(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, list[str], bool]]:
    """(line's number, its values, whether the first one is in quotes) of each line that has any."""
    for number, line in enumerate(lines, start=1):
        if not ("'" in line or '"' in line or "#" in line):
            tokens = line.split()
        else:
            tokens, place, line = [], 0, line.rstrip()
            while place < len(line):
                match = _TOKEN.match(line, place)
                if match is None:
                    raise InputError(f"{path}: not a readable STAR file: line {number}: a quote that does not end")
                place = match.end()
                if match[3] is None:
                    tokens.append(next(text for text in match.groups() if text is not None))
        if tokens:
            yield number, tokens, line.lstrip()[0] in "'\""
