"""Draws Figure 5 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryosam_dask.io.atomic import replacing
from cryosam_dask.published.paper import count_in_words
from cryosam_dask.published.scores import Result


def draw_counts(results: Sequence[Result], path: Path) -> Path:
    """Precision against recall for each K, and precision, recall and F1 against K; a PNG at `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    trade, along = figure.subplots(1, 2)
    colours = ("#4053d3", "#ddb310", "#b51d14", "#00b25d", "#00beff")
    for index, prompts in enumerate(dict.fromkeys(result.line.prompts for result in results)):
        rows = [r for r in results if r.line.prompts == prompts and r.scores and r.line.count is not None]
        if not rows:
            continue
        names = [count_in_words(r.line.count or 0) for r in rows]
        precision = [100 * (r.summary("precision").mean or 0) for r in rows]
        recall = [100 * (r.summary("recall").mean or 0) for r in rows]
        f1 = [100 * (r.f1 or 0) for r in rows]
        colour = colours[index % len(colours)]
        trade.plot(recall, precision, "o-", color=colour, label=prompts, markersize=5)
        for x, y, name in zip(recall, precision, names, strict=True):
            trade.annotate(name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8, color="0.25")
        for values, style, what in ((precision, ":", "precision"), (recall, "--", "recall"), (f1, "-", "F1")):
            along.plot(range(len(rows)), values, style, color=colour, label=f"{what}, {prompts}")
        along.set_xticks(range(len(rows)), names)
    trade.set(xlabel="recall (%)", ylabel="precision (%)", title="number of proposed prompts, K")
    along.set(xlabel="K", ylabel="%", ylim=(0, 103), title="mean over tomograms")
    for ax in (trade, along):
        ax.grid(color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=7, frameon=False, handlelength=3)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
