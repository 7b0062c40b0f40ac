"""What people decided about the picks of a run, as figures and in words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from cryosam_dask.outputs.results import single_name
from cryosam_dask.store import reviews
from cryosam_dask.store.run_store import RunStore


def review_figures(run: str | Path, *, name: str | None = None) -> dict[str, Any]:
    """Count the decisions about a query's picks, JSON-able.

    `picks`: of the picks as they are now, how many are accepted, rejected and undecided; `without_pick`: particles that
    were added, or accepted, and have none; `precision`: accepted picks among those that were decided on, or None;
    `reviewers`: for each person the decisions that stand, by verdict, the first and the last time; `decisions`: those
    that stand, one by one.
    """
    store = RunStore.open(run)
    chosen = single_name(store, name)
    told = reviews.standing(store, chosen)
    of_picks = Counter(reviews.of_picks(store, chosen))
    decided = of_picks["accepted"] + of_picks["rejected"]
    table = reviews.table(told)
    rows = table.assign(when=table["when"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")).to_dict("records")
    reviewers = {}
    for by in dict.fromkeys(row["by"] for row in rows):
        own = [row for row in rows if row["by"] == by]
        times = sorted(row["when"] for row in own)
        reviewers[by] = dict(Counter(row["verdict"] for row in own)) | {"first": times[0], "last": times[-1]}
    return {
        "run": store.url,
        "name": chosen,
        "picks": {verdict: of_picks[verdict] for verdict in ("accepted", "rejected", "undecided")},
        "without_pick": len(reviews.without_pick(store, chosen)),
        "precision": of_picks["accepted"] / decided if decided else None,
        "reviewers": reviewers,
        "decisions": rows,
    }


def review_sentence(figures: dict[str, Any]) -> str:
    """Who decided what, when, and how precise that makes the picks; empty where nothing was decided."""
    reviewers, picks = figures["reviewers"], figures["picks"]
    if not reviewers:
        return ""
    first = min(told["first"] for told in reviewers.values())[:10]
    last = max(told["last"] for told in reviewers.values())[:10]
    when = f"on {first}" if first == last else f"from {first} to {last}"
    counts = Counter(row["verdict"] for row in figures["decisions"])
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("accepted", "rejected", "added") if counts[verdict])
    text = f"Reviewed by {', '.join(reviewers)} {when}: {said}"
    if figures["precision"] is not None:
        text += f"; {picks['accepted']} of {picks['accepted'] + picks['rejected']} picks that were decided on are right"
    return f"{text}; {picks['undecided']} picks are undecided."


def review_in_words(figures: dict[str, Any]) -> str:
    """`review_figures` as a table for a terminal: a line for all picks, and one for each person."""
    picks = figures["picks"]
    lines = [
        f"{figures['run']}: {sum(picks.values())} picks of {figures['name']!r}: "
        + ", ".join(f"{count} {verdict}" for verdict, count in picks.items())
        + f"; {figures['without_pick']} particles without a pick"
    ]
    if figures["precision"] is not None:
        lines.append(f"precision among the decided picks {figures['precision']:.3f}")
    if not figures["reviewers"]:
        return lines[0]
    wide = max(2, *(len(by) for by in figures["reviewers"]))
    lines.append(f"{'by':{wide}}  accepted  rejected  added  first                 last")
    for by, told in figures["reviewers"].items():
        counts = f"{told.get('accepted', 0):8}  {told.get('rejected', 0):8}  {told.get('added', 0):5}"
        lines.append(f"{by:{wide}}  {counts}  {told['first']}  {told['last']}")
    return "\n".join(lines)
