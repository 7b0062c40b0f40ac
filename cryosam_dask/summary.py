"""The results of many tomograms: a table for people and programs, and all picks in one file."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryosam_dask.io.atomic import write_text
from cryosam_dask.io.picks import Frame, encode_picks
from cryosam_dask.store import picks
from cryosam_dask.store.address import is_local, public
from cryosam_dask.store.filesystem import filesystem, local_path
from cryosam_dask.store.run_store import RunStore

Status = Literal["done", "skipped", "failed", "pending"]

COLUMNS = ("tomogram", "name", "status", "instances", "seconds", "error", "run")
_WORDS = {"done": "done", "skipped": "complete before", "failed": "failed", "pending": "not come to"}


@dataclass(frozen=True)
class Row:
    """The result of one tomogram.

    Attributes
    ----------
    tomogram : its path or URL; name : what it is called among the others; run : its store
    status : "done" now, "skipped" since it was complete before, "failed", or "pending": not come to
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
        found = "" if self.instances is None else f", {self.instances} instances"
        took = f", {self.seconds:.0f} s" if self.status == "done" else ""
        return f"{_WORDS[self.status]}{found}{took}"


@dataclass(frozen=True)
class Summary:
    """One row a tomogram, the reference first, the others in the order given.

    Attributes
    ----------
    folder : that results are in; stopped : why not all tomograms were tried; empty if they were
    """

    folder: str
    rows: tuple[Row, ...]
    stopped: str = ""

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
        found = sum(row.instances or 0 for row in self.rows)
        many = "1 tomogram" if len(self.rows) == 1 else f"{len(self.rows)} tomograms"
        lines.append(f"{many}: {', '.join(parts)}; {found} instances")
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


def join_picks(summary: Summary, names: Sequence[str]) -> None:
    """`picks.csv` and `picks.star` (pixels, as RELION 4 reads them) of all complete tomograms, in the folder.

    In the CSV the first column, in STAR `rlnTomoName`, is the tomogram's name. Of several kinds the CSV has a column
    `kind`, and each has a STAR file of its own, `picks_NAME.star`. Without any tomogram, nothing is written.
    """
    import pandas as pd

    columns = ["z", "y", "x", "score", "instance"]
    found = {
        name: [
            (picks.read(RunStore.open(row.run), name)[columns], Frame(tomogram=row.name))
            for row in summary.rows
            if row.status in ("done", "skipped")
        ]
        for name in names
    }
    if not any(found.values()):
        return
    if len(names) == 1:
        put_text(summary.folder, "picks.csv", encode_picks(found[names[0]], "csv", joint=True).decode())
        put_text(summary.folder, "picks.star", encode_picks(found[names[0]], "star", joint=True).decode())
        return
    every = pd.concat(
        [table.assign(tomogram=frame.tomogram, kind=name) for name in names for table, frame in found[name]],
        ignore_index=True,
    )
    text = every[["tomogram", "kind", *columns]].to_csv(index=False, lineterminator="\n")
    put_text(summary.folder, "picks.csv", text)
    for name in names:
        put_text(summary.folder, f"picks_{name}.star", encode_picks(found[name], "star", joint=True).decode())


def put_text(folder: str, file: str, text: str) -> None:
    """Write a file of a folder or of a URL, whole or not at all; `StoreError` where that fails."""
    if is_local(folder):
        write_text(Path(local_path(folder)) / file, text)
        return
    there, path = filesystem(folder)
    there.pipe_file(f"{path.rstrip('/')}/{file}", text.encode())
