"""What became of many tomograms: a table for people and programs, and all picks in one file."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cryosam_dask.io.atomic import write_text
from cryosam_dask.io.star import star_text
from cryosam_dask.store import picks
from cryosam_dask.store.address import is_local, public
from cryosam_dask.store.filesystem import filesystem, local_path
from cryosam_dask.store.run_store import RunStore

Status = Literal["done", "skipped", "failed", "pending"]

COLUMNS = ("tomogram", "name", "status", "instances", "seconds", "error", "run")
_WORDS = {"done": "done", "skipped": "complete before", "failed": "failed", "pending": "not come to"}


@dataclass(frozen=True)
class Row:
    """What became of one tomogram.

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


def join_picks(summary: Summary, name: str) -> None:
    """`picks.csv` and `picks.star` (pixels, as RELION 4 reads them) of all complete tomograms, in the folder.

    In the CSV the first column, in STAR `rlnTomoName`, is the tomogram's name. Without any, nothing is written.
    """
    import pandas as pd

    tables = []
    for row in summary.rows:
        if row.status in ("done", "skipped"):
            table = picks.read(RunStore.open(row.run), name)[["z", "y", "x", "score", "instance"]]
            tables.append(table.assign(tomogram=row.name))
    if not tables:
        return
    every: pd.DataFrame = pd.concat(tables, ignore_index=True)
    every = every.astype({"z": float, "y": float, "x": float, "score": float, "instance": np.int64})
    text = every[["tomogram", "z", "y", "x", "score", "instance"]].to_csv(index=False, lineterminator="\n")
    put_text(summary.folder, "picks.csv", text)
    names: list[str] = every["tomogram"].tolist()
    put_text(
        summary.folder,
        "picks.star",
        star_text(every, centred=False, tomogram_name=names, voxel_size=None, shape=None),
    )


def put_text(folder: str, file: str, text: str) -> None:
    """Write a file of a folder or of a URL, whole or not at all; `StoreError` where that fails."""
    if is_local(folder):
        write_text(Path(local_path(folder)) / file, text)
        return
    there, path = filesystem(folder)
    there.pipe_file(f"{path.rstrip('/')}/{file}", text.encode())
