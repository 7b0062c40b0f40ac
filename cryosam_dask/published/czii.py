"""The CZII challenge, and data sets of the CryoET Data Portal with its classes: F-beta (β = 4) of each class.

Each class of each tomogram is searched on its own, from one prompt or a share of its annotations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.evaluate import CZII_OBJECTS, competition_counts, czii_score, f_beta, summarise
from cryosam_dask.evaluate.czii import CZII_BETA, CZII_SHARE
from cryosam_dask.io.atomic import write_text
from cryosam_dask.published.data import Entry
from cryosam_dask.published.empiar import Outcome
from cryosam_dask.published.jobs import Asked
from cryosam_dask.published.paper import DEFAULT, Config, prompts_in_words
from cryosam_dask.published.records import Record, make_folder
from cryosam_dask.published.times import minutes
from cryosam_dask.published.words import grid, percent, spread
from cryosam_dask.settings import Settings
from cryosam_dask.version import __version__

PORTAL_NAMES = {
    "ferritin-complex": "apo-ferritin",
    "cytosolic-ribosome": "ribosome",
    "virus-like-capsid": "virus-like-particle",
}
"""What the portal's annotations (data sets 10440, 10445, 10446) call the challenge's classes, where that differs."""

HEAD = (
    "class", "prompts", "tomograms", "radius Å", "precision", "recall", "F4", "F4 of each", "minutes", "weight",
)  # fmt: skip

Positions = dict[str, dict[str, np.ndarray]]


def with_classes(entries: Sequence[Entry], only: Sequence[str] = ()) -> list[Entry]:
    """The entries with those kinds of particles alone that are classes of the challenge, by its names.

    only : some of the classes, none: all; a tomogram that has none of them is left out
    """
    known = {species.name for species in CZII_OBJECTS}
    wanted = set(only) or known
    out = []
    for entry in entries:
        named = {kind.casefold().replace("_", "-"): truth for kind, truth in entry.truths.items()}
        named = {PORTAL_NAMES.get(kind, kind): truth for kind, truth in named.items()}
        kept = {kind: truth for kind, truth in named.items() if kind in known}
        error = entry.error
        if not error and not kept:
            kinds = f"of {_some(named)}" if set(named) != {""} else "that name no class"
            error = f"no positions of the classes, but such {kinds}"
        chosen = {kind: truth for kind, truth in kept.items() if kind in wanted}
        if chosen or error:
            out.append(replace(entry, truths=chosen, error=error))
    if not out:
        raise InputError(f"no positions of {', '.join(sorted(wanted))} in any of the {len(entries)} tomograms")
    return out


def _some(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def asked_for(
    out: Path, entries: Sequence[Entry], shares: Sequence[float | None], settings: Settings, **options: Any
) -> Asked:
    """One configuration for each share of the annotations that are prompts (None: one prompt), for each class."""
    configs = [Config(share=share) for share in dict.fromkeys(shares)]
    there = {kind for entry in entries for kind in entry.truths}
    kinds = tuple(species.name for species in CZII_OBJECTS if species.name in there)
    return Asked(out, entries, kinds, lambda index: configs, {DEFAULT: settings}, **options)


def tabulate(asked: Asked, shares: Sequence[float | None], stopped: str = "") -> Outcome:
    """Write and return the table from what is recorded: `czii.md`, `czii.json`."""
    tables, data, complete = [], {}, True
    for share in dict.fromkeys(shares):
        rows, results, whole = _of_share(asked, share)
        complete &= whole
        lines = [f"## CZII classes, {prompts_in_words(share)}", grid(HEAD, rows), *results.pop("words")]
        tables.append("\n\n".join(lines))
        data[Config(share=share).key] = results
    notes = footnotes(asked)
    text = "\n\n".join([*tables, "## Protocol", "\n".join(f"- {note}" for note in notes)])
    files = (asked.out / "czii.md", asked.out / "czii.json")
    make_folder(asked.out)
    settings = asked.settings[DEFAULT].model_dump(mode="json")
    content = {"version": __version__, "seed": asked.seed, "settings": settings, "protocol": notes, "shares": data}
    write_text(files[0], text + "\n")
    write_text(files[1], json.dumps(content, indent=1) + "\n")
    return Outcome(text, complete and not stopped, stopped, files)


def _of_share(asked: Asked, share: float | None) -> tuple[list[list[str]], dict[str, Any], bool]:
    """Rows of the table, values for JSON (with `words` to print under the table), and whether nothing is missing."""
    config = Config(share=share)
    places = [(entry.name, kind) for entry in asked.entries for kind in (entry.truths or asked.kinds)]
    records = {place: record for place in places if (record := asked.record(*place, config)) is not None}
    done = {place: record for place, record in records.items() if record.status == "done"}
    picked, truth = _positions(asked, done)
    score = czii_score(picked, truth) if done else None
    rows, values = [], []
    for index, species in enumerate(CZII_OBJECTS):
        total = sum(kind == species.name for _, kind in places)
        names = [tomogram for tomogram, kind in done if kind == species.name]
        if not total:
            continue
        counted = [
            competition_counts(picked[n][species.name], truth[n][species.name], CZII_SHARE * species.radius)
            for n in names
        ]
        each = summarise(f_beta(c.precision, c.recall, CZII_BETA) for c in counted)
        took = summarise(minutes(done[n, species.name].seconds) for n in names)
        figures = ["-"] * 3
        if score is not None and names:
            of_all = score.classes[index]
            figures = [f"{100 * value:.1f}" for value in (of_all.precision, of_all.recall, of_all.f_beta)]
        about = [species.name, prompts_in_words(share), f"{len(names)} of {total}", f"{CZII_SHARE * species.radius:g}"]
        rows.append([*about, *figures, percent(each), spread(took, 1), f"{species.weight:g}"])
        measured = {"f4_of_tomograms": each.to_dict(), "minutes": took.to_dict()}
        values.append({"name": species.name, "tomograms": names, **measured})
    complete = len(done) == len(places) and bool(done)
    errors = (f"{name} failed, {kind}: {r.error}" for (name, kind), r in records.items() if r.status == "failed")
    words = list(dict.fromkeys(errors))
    if score is not None:
        what = f"Score, the weighted mean of F4 over all {len(CZII_OBJECTS)} classes"
        words.append(f"{what}{'' if complete else ', of what is complete only'}: {100 * score.score:.1f}")
    scored = None if score is None else score.to_dict()
    return rows, {"words": words, "score": scored, "classes": values, "complete": complete}, complete


def _positions(asked: Asked, done: Mapping[tuple[str, str], Record]) -> tuple[Positions, Positions]:
    """Picks and annotations of what is complete, {tomogram: {class: (n, 3) Å}}."""
    picked: Positions = {}
    truth: Positions = {}
    for (tomogram, kind), record in done.items():
        size = np.asarray(record.voxel_size, float)
        table = asked.records.picks(record)
        picked.setdefault(tomogram, {})[kind] = table[["z", "y", "x"]].to_numpy(float) * size
        truth.setdefault(tomogram, {})[kind] = np.asarray(record.truth, float).reshape(-1, 3) * size
    return picked, truth


def footnotes(asked: Asked) -> list[str]:
    """How the figures were made."""
    settings = asked.settings[DEFAULT]
    return [
        f"F4 is F-beta with β = 4 of counts summed over tomograms; a pick is right within {CZII_SHARE:g} of the radius "
        "of its class, counted as the challenge counts. “F4 of each”: mean ± sample deviation of the tomograms' own.",
        f"Prompts are a random sample of each tomogram's annotations of the class (seed {asked.seed}). They lend their "
        "feature only: they are no picks, and all annotations count.",
        "Each class is searched on its own: a place may be picked as several classes.",
        f"Encoder: {settings.features.encoder}; segmenter: {settings.propagation.segmenter}; "
        f"K = {settings.match.count}.",
    ]
