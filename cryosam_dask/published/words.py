"""Tables of a benchmark as Markdown that reads well in a terminal, with the protocol under them."""

from __future__ import annotations

from collections.abc import Sequence

from cryosam_dask.evaluate import Summary
from cryosam_dask.published.paper import Table
from cryosam_dask.published.scores import Result, failures

HEAD = (
    "", "prompts", "tomograms", "precision", "paper", "recall", "paper", "F1", "paper", "F1 of each",
    "recall of the rest", "minutes", "paper", "matching",
)  # fmt: skip


def table_in_words(table: Table, results: Sequence[Result]) -> str:
    """A table: our mean ± deviation over tomograms beside the paper's figure, in percent."""
    rows = [_row(result) for result in results]
    limit = "" if table.limit is None else f" (first {table.limit} of the tomograms)"
    parts = [f"## {table.title}{limit}", grid(HEAD, rows)]
    for name, errors in failures(results).items():
        parts.append("\n".join(f"{name} failed: {error}" for error in errors))
    return "\n\n".join(parts)


def _row(result: Result) -> list[str]:
    paper = result.line.published
    config = result.line.config
    quoted = config is None
    # a smaller K is taken from the run with the largest, and took no time of its own
    timed = config is not None and (not config.counts or result.line.count == max(config.counts))
    return [
        result.line.label,
        result.line.prompts,
        "" if quoted else f"{len(result.scores)} of {result.expected}",
        *_pair(result.summary("precision"), paper.precision, quoted),
        *_pair(result.summary("recall"), paper.recall, quoted),
        "" if quoted else _percent(result.f1),
        _published(paper.f1),
        "" if quoted else percent(result.summary("f1")),
        "" if quoted else percent(result.summary("unprompted")),
        spread(result.summary("minutes"), 1) if timed else "",
        paper.minutes or "-",
        spread(result.summary("matching"), 1) if timed else "",
    ]


def _pair(ours: Summary, paper: float | None, quoted: bool) -> tuple[str, str]:
    return "" if quoted else percent(ours), _published(paper)


def _published(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def percent(figures: Summary) -> str:
    """Mean ± deviation in percent."""
    return spread(figures, 1, 100)


def spread(figures: Summary, digits: int, factor: float = 1) -> str:
    """Mean ± sample deviation; `-` without any value."""
    if figures.mean is None:
        return "-"
    return f"{factor * figures.mean:.{digits}f}" + (
        "" if figures.std is None else f" ± {factor * figures.std:.{digits}f}"
    )


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with cells padded to one width a column, all but the first two to the right."""
    every = [list(head), *[list(row) for row in rows]]
    every = [[cell.replace("|", "/") for cell in row] for row in every]
    wide = [max(3, *(len(row[i]) for row in every)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [f"{c:<{w}}" if i < 2 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, wide, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = [f"{'-' * w}" if i < 2 else f"{'-' * (w - 1)}:" for i, w in enumerate(wide)]
    return "\n".join([line(every[0]), line(rule), *[line(row) for row in every[1:]]])
