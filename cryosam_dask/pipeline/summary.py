"""The results of many tomograms: a table for people and programs, and all picks in one file."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from cryosam_dask.errors import InputError
from cryosam_dask.io import copick_project
from cryosam_dask.io.atomic import write_text
from cryosam_dask.io.frame import printable
from cryosam_dask.io.points import COLUMNS as PICK_COLUMNS
from cryosam_dask.io.points import Frame, Part
from cryosam_dask.io.points import csv as csv_points
from cryosam_dask.io.points.files import encode_picks
from cryosam_dask.io.points.names import check_name, series_names
from cryosam_dask.storage.address import is_local, local_path, public
from cryosam_dask.storage.filesystem import filesystem
from cryosam_dask.store import picks
from cryosam_dask.store.run_store import RunStore

Status = Literal["done", "skipped", "failed", "pending"]

COLUMNS = ("tomogram", "name", "status", "instances", "seconds", "error", "run")
_WORDS = {"done": "done", "skipped": "complete before", "failed": "failed", "pending": "not finished"}


@dataclass(frozen=True)
class Row:
    """The result of one tomogram.

    Attributes
    ----------
    tomogram : its path or URL; name : what it is called among the others; run : its store
    status : "done" now, "skipped" since it was complete before, "failed", or "pending": not come to, or stopped
    instances : how many were found, None where that is not known; seconds : that it took now
    error : one line; notes : what a user should know besides
    """

    tomogram: str
    name: str
    run: str
    status: Status = "pending"
    instances: int | None = None
    seconds: float = 0.0
    error: str = ""
    notes: tuple[str, ...] = ()

    def in_words(self) -> str:
        """One line without the tomogram's name."""
        if self.status == "failed":
            return f"failed: {self.error}"
        instances = "" if self.instances is None else f", {self.instances} instances"
        took = f", {self.seconds:.0f} s" if self.status == "done" else ""
        return f"{_WORDS[self.status]}{instances}{took}"


@dataclass(frozen=True)
class Summary:
    """One row a tomogram, the reference first, the others in the order given.

    Attributes
    ----------
    folder : that results are in; stopped : why not all tomograms were tried; empty if they were
    notes : what a user should know of the joint files
    """

    folder: str
    rows: tuple[Row, ...]
    stopped: str = ""
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 if every tomogram is complete, else 1."""
        return int(any(row.status not in ("done", "skipped") for row in self.rows))

    def in_words(self) -> str:
        """A table, the errors, and a sentence, for a terminal."""
        wide = max(len(row.name) for row in self.rows)
        lines = [f"{row.name:{wide}}  {row.in_words()}" for row in self.rows]
        counts = Counter[str](row.status for row in self.rows)
        parts = [f"{counts[status]} {words}" for status, words in _WORDS.items() if counts[status]]
        instances = sum(row.instances or 0 for row in self.rows)
        many = "1 tomogram" if len(self.rows) == 1 else f"{len(self.rows)} tomograms"
        lines.append(f"{many}: {', '.join(parts)}; {instances} instances")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        if self.exit_code:
            lines.append("the same command again goes on with what is not complete")
        return "\n".join(lines)

    def write(self) -> None:
        """`summary.csv` in the folder, whole or as it was before."""
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in self.rows:
            count = "" if row.instances is None else row.instances
            seconds = f"{row.seconds:.1f}"
            table.writerow((public(row.tomogram), row.name, row.status, count, seconds, row.error, public(row.run)))
        put_text(self.folder, "summary.csv", out.getvalue())


def join_picks(summary: Summary, names: Sequence[str]) -> list[str]:
    """`picks.csv` and `picks.star` (pixels, as RELION 4 reads them) of all complete tomograms, in the folder.

    In the CSV the first column, in STAR `rlnTomoName`, is the tilt series' name (`io.points.names`). Of several kinds
    the CSV has a column `kind`, and each has a STAR file of its own, `picks_NAME.star`. Without any tomogram, nothing
    is written.

    Returns in words how tomograms are called, and which file was not written for a name that it can't hold.
    """
    own = [row.name for row in summary.rows]  # of all, so that a name does not depend on what is complete
    kept = [row.name for row in summary.rows if copick_project.run_name(row.tomogram) == row.name]
    written, notes = series_names(own, kept=kept)
    parts = {
        name: [
            (picks.read(RunStore.open(row.run), name)[PICK_COLUMNS], Frame(tomogram=tomogram))
            for row, tomogram in zip(summary.rows, written, strict=True)
            if row.status in ("done", "skipped")
        ]
        for name in names
    }
    if not any(parts.values()):
        return []
    files: list[tuple[str, Callable[[], bytes]]] = [("picks.csv", partial(_as_csv, parts))]
    for name in names:
        star = "picks.star" if len(names) == 1 else f"picks_{name}.star"
        files.append((star, partial(encode_picks, parts[name], "star", joint=True)))
    for file, encode in files:
        try:
            content = encode()
        except InputError as error:
            way_out = f"cryosam export {public(summary.folder)} {file} --tomogram RUN=NAME writes it"
            notes.append(f"{file} is not written: {printable(str(error))}; {way_out}")
        else:
            put_text(summary.folder, file, content.decode())
    return notes


def _as_csv(parts: Mapping[str, Sequence[Part]]) -> bytes:
    """The picks of all kinds, and of one kind without its name."""
    if len(parts) == 1:
        return encode_picks(next(iter(parts.values())), "csv", joint=True)
    import pandas as pd

    tables = [
        table.assign(tomogram=check_name("tomogram", frame.tomogram, "--tomogram"), kind=name)
        for name, of_kind in parts.items()
        for table, frame in of_kind
    ]
    return csv_points.encode_table(pd.concat(tables, ignore_index=True)[["tomogram", "kind", *PICK_COLUMNS]])


def put_text(folder: str, file: str, text: str) -> None:
    """Write a file of a folder or of a URL, whole or not at all; `StoreError` where that fails."""
    if is_local(folder):
        write_text(Path(local_path(folder)) / file, text)
        return
    there, path = filesystem(folder)
    there.pipe_file(f"{path.rstrip('/')}/{file}", text.encode())
