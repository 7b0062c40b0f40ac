"""EMPIAR-10499, ribosomes in *M. pneumoniae*: the paper's Tables 1 to 3 and Figure 5."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryosam_dask.errors import SettingsError
from cryosam_dask.io.atomic import write_text
from cryosam_dask.published.data import Entry
from cryosam_dask.published.figure import draw_counts
from cryosam_dask.published.jobs import Asked
from cryosam_dask.published.paper import ALL, ENCODERS, Table
from cryosam_dask.published.records import make_folder
from cryosam_dask.published.scores import RADIUS, Result, results_of
from cryosam_dask.published.words import table_in_words
from cryosam_dask.settings import Settings
from cryosam_dask.version import __version__

KIND = "ribosome"


@dataclass(frozen=True)
class Outcome:
    """text : the tables with their footnotes, Markdown; complete : whether every tomogram of every row is in them;
    stopped : why the run ended early, if it did; files : what was written"""

    text: str
    complete: bool
    stopped: str
    files: tuple[Path, ...]


def asked_for(
    out: Path, entries: Sequence[Entry], tables: Sequence[Table], settings: Mapping[str, Settings], **options: Any
) -> Asked:
    """The configurations of these tables for these tomograms; `options` are further fields of `Asked`.

    settings : by encoder, as tables name them
    """
    missing = sorted({c.encoder for t in tables for c in t.configs} - set(settings))
    if missing:
        raise SettingsError(f"no encoder given for {', '.join(missing)}")

    def configs(index: int) -> list[Any]:
        wanted = [c for t in tables if t.limit is None or index < t.limit for c in t.configs]
        return list(dict.fromkeys(wanted))

    return Asked(out, entries, (KIND,), configs, settings, **options)


def tabulate(asked: Asked, tables: Sequence[Table], radius: float = RADIUS, stopped: str = "") -> Outcome:
    """Write and return the tables from what is recorded: `tables.md`, `tables.json`, `tables.csv`, `figure5.png`.

    radius : Å, within which a pick counts as found
    """
    results = {table.name: results_of(table, asked, KIND, radius) for table in tables}
    parts = [table_in_words(table, results[table.name]) for table in tables]
    notes = footnotes(asked, tables, radius, [r for rows in results.values() for r in rows])
    text = "\n\n".join([*parts, "## Protocol", "\n".join(f"- {note}" for note in notes)])
    rows = [row for some in results.values() for row in some if row.line.config is not None]
    complete = bool(rows) and all(len(row.scores) == row.expected for row in rows)
    files = [asked.out / "tables.md", asked.out / "tables.json", asked.out / "tables.csv"]
    make_folder(asked.out)
    write_text(files[0], text + "\n")
    write_text(files[1], json.dumps(_as_json(asked, results, notes, radius), indent=1) + "\n")
    write_text(files[2], _as_csv(results))
    if any(row.scores for row in results.get("fig5", ())):
        files.append(draw_counts(results["fig5"], asked.out / "figure5.png"))
    return Outcome(text, complete and not stopped, stopped, tuple(files))


def footnotes(asked: Asked, tables: Sequence[Table], radius: float, results: Sequence[Result]) -> list[str]:
    """How the figures were made; what the paper does not state is marked."""
    used = [name for name in ENCODERS if any(c.encoder == name for t in tables for c in t.configs)]
    specs = ", ".join(f"{name} = {asked.settings[name].features.encoder}" for name in used)
    segmenters = sorted({asked.settings[name].propagation.segmenter for name in used})
    counts = sorted({str(asked.settings[name].match.count) for name in used})
    overlap = asked.settings[used[0]].label.overlap
    out = [
        "Figures are means over tomograms, ± the sample deviation between them, in percent. F1 follows from the mean "
        "precision and recall, as the paper's do within rounding; “F1 of each” is the mean of the tomograms' own.",
        "A pick is the centre of mass of the instance of a proposed prompt; a duplicate, more than "
        f"{overlap:.0%} of it inside a better instance, is none (not stated in the paper).",
        f"A pick is right within {radius:g} Å of an annotation, one to one, by a largest matching (the radius is not "
        "stated in the paper).",
        f"Prompts are a random sample of each tomogram's annotations (seed {asked.seed}), smaller samples inside "
        "larger ones; the share is that of the prompted in all annotations, at least one (that each tomogram has "
        "prompts of its own is not stated in the paper).",
        "Prompts lend their feature only: they are no proposals and no picks. All annotations count, prompted ones "
        "too, and are found when they are proposed (not stated in the paper, whose recall of 79 % with 70 % prompted "
        "leaves little else). “Recall of the rest” is that of the annotations that were no prompts.",
        f"Encoders: {specs}; segmenter: {', '.join(segmenters)}; K = {', '.join(counts)} where no other is named"
        + (" (DINO's backbone, and that of SAM as an encoder, are not stated in the paper)." if len(used) > 1 else "."),
        "Minutes are wall time of a tomogram, from the journals of the runs: ingest, features and embeddings, which "
        "configurations share and which are counted for each, query, matching and segmentation; “matching” is a part "
        "of them.",
    ]
    if any(table.limit is not None for table in tables):
        limit = next(t.limit for t in tables if t.limit is not None)
        first = "first tomogram" if limit == 1 else f"first {limit} tomograms"
        out.append(f"Tables 2 and 3 and Figure 5 are of the {first} by name (the paper: the first 20).")
    if any(table.name == "fig5" for table in tables):
        out.append(
            "Figure 5: each K is taken from one run with the largest, whose minutes are given; the paper's shares of "
            "prompts and figures are not published as numbers. “all”: every proposal that reaches match.tau_sim."
        )
    devices = list(dict.fromkeys(device for result in results for device in result.devices))
    if devices:
        out.append(f"Models ran on: {' / '.join(devices)}.")
    return out


def _as_json(
    asked: Asked, results: Mapping[str, Sequence[Result]], notes: Sequence[str], radius: float
) -> dict[str, Any]:
    return {
        "version": __version__,
        "radius": radius,
        "seed": asked.seed,
        "settings": {name: settings.model_dump(mode="json") for name, settings in asked.settings.items()},
        "protocol": list(notes),
        "tables": {name: [row.to_dict() for row in rows] for name, rows in results.items()},
    }


def _as_csv(results: Mapping[str, Sequence[Result]]) -> str:
    """One row for each tomogram of each row of each table: shares from 0 to 1."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    figures = ("precision", "recall", "f1", "unprompted", "picks", "truth", "prompts", "minutes", "matching")
    table.writerow(("table", "row", "share", "K", "tomogram", "status", *figures, "error"))
    for name, rows in results.items():
        for row in rows:
            line = row.line
            count = "" if line.count is None else "all" if line.count == ALL else line.count
            about = (name, line.label, line.prompts, count)
            for score in row.scores:
                values = (getattr(score, figure) for figure in figures)
                table.writerow((*about, score.tomogram, "done", *("" if v is None else v for v in values), ""))
            for tomogram, error in row.failed:
                table.writerow((*about, tomogram, "failed", *[""] * len(figures), error))
    return out.getvalue()
