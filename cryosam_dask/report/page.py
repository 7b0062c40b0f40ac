"""A run as a page: everything in one file, nothing from elsewhere.

The page's own policy allows no connection, only images in the page itself, and only the styles and scripts in the page,
by their digests. Names and paths come from users and from stores: templates escape everything.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import InputError
from cryosam_dask.io.atomic import write_text
from cryosam_dask.outputs.evaluation import find_runs
from cryosam_dask.outputs.truth import Truth
from cryosam_dask.report import images, words
from cryosam_dask.report.against import Against
from cryosam_dask.report.facts import facts, settings_rows
from cryosam_dask.report.images import Panel, Points
from cryosam_dask.report.methods import methods
from cryosam_dask.report.queries import Budget, Query, query
from cryosam_dask.report.reading import attempt
from cryosam_dask.storage.address import is_local, local_path, public
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names
from cryosam_dask.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

COLOURS = ("#4cc9f0", "#ffb703", "#8ac926", "#ff70a6", "#b8b8ff", "#f4845f")
"""Colours of queries where several are on one picture; they can be seen on light and dark grey values."""

GALLERY = 15
"""Slices of the gallery, at most."""

TALLEST = 820
"""Pixels of a figure's height, where windows are that wide."""


def write_report(
    run: str | Path,
    path: str | Path,
    *,
    name: str | None = None,
    truth: str | Path | None = None,
    radius: float | str | None = None,
    truth_format: str | None = None,
) -> None:
    """Write a page about a run: one HTML file that needs nothing else, whole or as it was before.

    Parameters
    ----------
    run : the run's store, a folder or URL; it is only read, and may be unfinished. Of a folder of runs the page has a
        row each
    path : the page
    name : of one query; None: all there are
    truth : true positions, as for `outputs.evaluate`; radius : largest distance of a match, voxels, or a length as in
        "120A"; None: the equivalent radius of the prompted masks
    truth_format : of the points, where the suffix does not tell it

    Raises `StoreError` if there is no run or the page can't be written, and `InputError` for a name that no query has
    or a truth that can't be used. The page says which parts of the run can't be read.
    """
    if truth is None and (radius is not None or truth_format is not None):
        raise InputError("a radius or a format of the truth is given, but no truth")
    if many := _runs_in(run):
        if truth is not None:
            raise InputError(f"{public(run)}: a truth is compared with one run; `cryosam evaluate` compares a folder")
        write_text(Path(path), overview(str(run), many, name))
        return
    store = RunStore.open(run)
    known = query_names(store)
    if name is not None and name not in known:
        raise InputError(f"{store.url}: no query called {name!r}; there are: {', '.join(known) or 'none yet'}")
    names = known if name is None else [name]
    against = None
    if truth is not None:
        against = Against(Truth.open(truth, truth_format, single=True), radius)
    write_text(Path(path), page(store, names, against))


def _runs_in(run: str | Path) -> list[str]:
    """The runs in a folder; none where it is a run itself, or neither."""
    if RunStore.exists(run):
        return []
    try:
        return find_runs(run)
    except InputError:
        return []


def overview(folder: str, runs: Sequence[str], name: str | None) -> str:
    """The page about many runs as text."""
    from cryosam_dask.report.overview import rows

    table, totals = rows(runs, name)
    where = str(Path(local_path(folder)).expanduser().resolve()) if is_local(folder) else public(folder)
    return render(
        "overview.html",
        "",
        folder=where.rstrip("/").rpartition("/")[2] or where,
        rows=table,
        totals=totals,
        seconds=sum(row.seconds for row in table),
    )


def page(store: RunStore, names: Sequence[str], truth: Against | None = None) -> str:
    """The page as text. `InputError` where a truth is given that no query could be compared with."""
    about = facts(store)
    problems = list(about.problems)
    budget = Budget.of(len(names))
    queries = [
        query(store, name, index, COLOURS[(index - 1) % len(COLOURS)], budget, truth, len(names) == 1)
        for index, name in enumerate(names, 1)
    ]
    if truth is not None and not any(section.evaluated for section in queries):
        why = [problem for section in queries for problem in section.problems if problem.startswith("truth: ")]
        raise InputError(
            why[0].removeprefix("truth: ") if why else f"{store.url}: no picks to compare with a truth yet"
        )
    slides = attempt(problems, "slices", lambda: _gallery(store, queries)) or []
    text = attempt(problems, "methods", lambda: methods(store, about, queries))
    return render(
        "report.html",
        rules_of(slides, queries),
        facts=about,
        queries=queries,
        gallery=slides,
        methods=text,
        problems=problems,
        settings={q.name: settings_rows(q.settings.model_dump(mode="json")) for q in queries if q.settings is not None},
    )


def _gallery(store: RunStore, queries: Sequence[Query]) -> list[Panel]:
    largest = min(512, images.LARGEST)
    groups = [
        Points(f"kind{(q.index - 1) % len(COLOURS)}" if len(queries) > 1 else "pick", q.found.places)
        for q in queries
        if q.found
    ]
    names, colours = [q.name for q in queries], [q.colour for q in queries]
    return images.gallery(store, names, colours, groups, largest, GALLERY)


def rules_of(slides: Sequence[Panel], queries: Sequence[Query]) -> str:
    """Style rules that give panels their form, none taller than a screen: the policy forbids styles on elements."""
    rules = _forms("gallery", slides)
    for panel in slides[:1]:
        rules.append(f"#gallery.live figure{{max-width:{TALLEST * panel.width / panel.height:.0f}px}}")
    for section in queries:
        rules += _forms(f"q{section.index}", section.panels)
        if section.panels:
            z, x, _ = section.panels
            width, height = z.width + x.width, z.height + x.width
            rules.append(
                f"#q{section.index}{{grid-template-columns:{z.width:.6g}fr {x.width:.6g}fr;"
                f"max-width:{TALLEST * width / height:.0f}px}}"
            )
    return "\n".join(rules)


def _forms(name: str, panels: Sequence[Panel]) -> list[str]:
    return [f"#{name}-{i}{{aspect-ratio:{p.width:.6g}/{p.height:.6g}}}" for i, p in enumerate(panels)]


def render(template: str, rules: str, **values: Any) -> str:
    """A page of a template with the package's style, these rules, and the package's script."""
    from markupsafe import Markup

    files = resources.files(__package__) / "templates"
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    style = f"{style}\n{rules}\n"
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            style=Markup(style),
            script=Markup(script),
            policy={"style": _digest(style), "script": _digest(script)},
            version=__version__,
            written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


def _digest(text: str) -> str:
    """The digest by which the page's policy allows a style or a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cryosam_dask.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": words.duration,
        "bytes": words.size,
        "number": words.number,
        "short": words.short,
        "percent": words.percent,
    }
    return environment
