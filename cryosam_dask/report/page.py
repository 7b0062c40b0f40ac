"""A run as a page: everything in one file, nothing from elsewhere.

The page's own policy allows no connection at all, images from itself only, and of styles and scripts the very ones that
are in it, by their digests. Names and paths come from users and from stores: templates escape everything.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosam_dask import __version__
from cryosam_dask.errors import InputError
from cryosam_dask.io.atomic import write_text
from cryosam_dask.outputs.evaluation import find_runs
from cryosam_dask.outputs.truth import Truth
from cryosam_dask.report import images
from cryosam_dask.report.against import Against
from cryosam_dask.report.facts import facts, settings_rows
from cryosam_dask.report.images import Panel, Points
from cryosam_dask.report.methods import methods
from cryosam_dask.report.queries import Budget, Query, query
from cryosam_dask.report.reading import attempt
from cryosam_dask.store.address import public
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

COLOURS = ("#4cc9f0", "#ffb703", "#8ac926", "#ff70a6", "#b8b8ff", "#f4845f")
"""Of queries, where several are on one picture; they stand out of grey values in light and in dark."""

GALLERY = 15
"""Slices of the gallery."""


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

    Raises `StoreError` where there is no run or the page can't be written, `InputError` for a name that no query has or
    a truth that can't be used. What of the run can't be read is said on the page.
    """
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

    made, totals = rows(runs, name)
    return render(
        "overview.html",
        "",
        folder=public(folder).rstrip("/").rpartition("/")[2] or folder,
        rows=made,
        totals=totals,
        seconds=sum(row.seconds for row in made),
    )


def page(store: RunStore, names: Sequence[str], truth: Against | None = None) -> str:
    """The page as text. `InputError` where a truth is given that no query could be compared with."""
    about = facts(store)
    problems = list(about.problems)
    budget = Budget.of(len(names))
    queries = [
        query(store, one, index, COLOURS[(index - 1) % len(COLOURS)], budget, truth, len(names) == 1)
        for index, one in enumerate(names, 1)
    ]
    if truth is not None and not any(one.evaluated for one in queries):
        why = [problem for one in queries for problem in one.problems if problem.startswith("truth: ")]
        raise InputError(
            why[0].removeprefix("truth: ") if why else f"{store.url}: no picks to compare with a truth yet"
        )
    slides = attempt(problems, "slices", lambda: _gallery(store, queries)) or []
    text = attempt(problems, "methods", lambda: methods(store, about, queries))
    return render(
        "report.html",
        rules_of([("gallery", slides), *((f"q{q.index}", q.panels) for q in queries)]),
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
        Points(f"kind{(q.index - 1) % len(COLOURS)}" if len(queries) > 1 else "pick", q.places, ())
        for q in queries
        if len(q.places)
    ]
    names, colours = [q.name for q in queries], [q.colour for q in queries]
    return images.gallery(store, names, colours, groups, largest, GALLERY)


def rules_of(figures: Sequence[tuple[str, Sequence[Panel]]]) -> str:
    """Style rules that give each panel its form: the page's policy forbids styles on elements."""
    rules = []
    for name, panels in figures:
        for i, panel in enumerate(panels):
            rules.append(f"#{name}-{i}{{aspect-ratio:{panel.width:.6g}/{panel.height:.6g}}}")
        if len(panels) == 3 and name != "gallery":
            across, depth, tall = panels[0].width, panels[1].width, panels[0].height
            rules.append(f"#{name}{{grid-template-columns:{across:.6g}fr {depth:.6g}fr}}")
            # no taller than a screen
            rules.append(f"#{name}{{max-width:{820 * (across + depth) / (tall + depth):.0f}px}}")
    return "\n".join(rules)


@dataclass(frozen=True)
class _Inline:
    """Text of a style or a script, and the digest by which the page's policy knows it."""

    text: Markup
    digest: str

    @classmethod
    def of(cls, text: str) -> _Inline:
        from markupsafe import Markup

        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return cls(Markup(text), f"sha256-{digest}")


def render(template: str, rules: str, **values: Any) -> str:
    """A page of a template with the package's style, these rules, and the package's script."""
    files = resources.files(__package__) / "templates"
    style, script = ((files / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            style=_Inline.of(f"{style}\n{rules}\n"),
            script=_Inline.of(script),
            version=__version__,
            written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("cryosam_dask.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"duration": duration, "bytes": size, "number": number, "short": short, "percent": percent}
    return made


def duration(seconds: float) -> str:
    """ "3.2 s", "4 min 05 s", "2 h 10 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes: "340 MB", "2.1 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def short(value: float) -> str:
    """Three digits that count: "0.0123", "2650"."""
    return f"{float(f'{value:.3g}'):g}" if abs(value) < 1000 else number(float(f"{value:.3g}"))


def number(count: float) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{count:,.0f}".replace(",", "\u202f")
