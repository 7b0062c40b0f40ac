"""The part of a report about one query: prompts, matching, proposals, instances, and their progress."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.errors import StoreError
from cryosam_dask.report import images, prompts
from cryosam_dask.report.against import Against, Evaluated, evaluation
from cryosam_dask.report.download import download
from cryosam_dask.report.images import Panel, Picture, Points
from cryosam_dask.report.maps import Maps, maps
from cryosam_dask.report.reading import MOST_PICKS, attempt, table_of
from cryosam_dask.report.scores import Scores, scores, unsure
from cryosam_dask.settings import Settings
from cryosam_dask.stages import borrow, learned, negative, structure
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd

SHEET = 16
"""Picks of each end of the ranking that are shown."""


@dataclass(frozen=True)
class PickRow:
    """A pick in the page's table; lengths in nm where they are not in voxels."""

    instance: int
    z: float
    y: float
    x: float
    score: float
    size: int
    volume: float
    similarity: float
    quality: float
    prompted: bool


@dataclass(frozen=True)
class Found:
    """The picks of a query.

    Attributes
    ----------
    places : (n, 3) of all, best first; rows : the best of them
    segmented : instances that they were chosen from, None where that is not known; median_volume : nm³
    download : all of them, as a link, and the name of the file that it gives; best, last : close views
    """

    places: NDArray[np.float64]
    rows: tuple[PickRow, ...]
    segmented: int | None
    median_volume: float | None
    download: tuple[str, str]
    best: Picture | None
    last: Picture | None

    @property
    def kept(self) -> int:
        return len(self.places)


@dataclass(frozen=True)
class Query:
    """A section of the report. Fields that are missing or could not be read are None, and `problems` say why.

    Attributes
    ----------
    points : (n, 3) clicks in voxels; negatives : (m, 3) clicks on what is not of the kind
    borrowed : where a borrowed query is from; kinds : other queries that the picks were told apart from
    unsure : what is said where hardly anything stands out from the background
    reviewed : what people decided about the picks, in a sentence; learned : from how many decisions the query learned
    """

    name: str
    index: int
    colour: str
    settings: Settings | None = None
    points: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    negatives: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 3)))
    borrowed: dict[str, Any] | None = None
    kinds: tuple[str, ...] = ()
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    through: str = ""
    panels: tuple[Panel, ...] = ()
    prompts: tuple[prompts.Prompted, ...] = ()
    maps: Maps | None = None
    scores: Scores | None = None
    unsure: str | None = None
    found: Found | None = None
    reviewed: str = ""
    learned: int = 0
    evaluated: Evaluated | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """How large one query's part of the page may become: pixels of a slice's longest side, and rows of a table."""

    largest: int
    rows: int

    @classmethod
    def of(cls, queries: int) -> Budget:
        """Slices of many queries are smaller, so that the page does not grow with their number."""
        side = images.LARGEST if queries <= 2 else 640 if queries <= 6 else 320
        return cls(side, max(50, 1000 // max(queries, 1)))


def query(
    store: RunStore,
    name: str,
    index: int,
    colour: str,
    budget: Budget,
    truth: Against | None = None,
    alone: bool = True,
) -> Query:
    """Read everything about a query; `problems` names what can't be read.

    truth : to compare the picks with; alone : whether this is the only query, whose points the truth need not name
    """
    problems: list[str] = []
    out = _asked(store, Query(name, index, colour), problems)
    table = attempt(problems, "picks", lambda: table_of(store, name))
    centre, through = _centre(store, out.points, table)
    out = replace(out, centre=centre, through=through)
    compared = None
    if table is not None:
        out = replace(out, found=attempt(problems, "picks", lambda: _found(store, name, table, budget, problems)))
        out = replace(out, reviewed=attempt(problems, "review", lambda: _reviewed(store, name)) or "")
        out = replace(out, learned=attempt(problems, "review", lambda: learned.count(store, name)) or 0)
        if truth is not None:
            compared = attempt(problems, "truth", lambda: evaluation(store, name, table, truth, alone))
    evaluated, true = compared or (None, None)
    return replace(
        out,
        evaluated=evaluated,
        panels=tuple(attempt(problems, "slices", lambda: _panels(store, out, table, true, budget)) or ()),
        prompts=tuple(attempt(problems, "prompted masks", lambda: prompts.prompted(store, name, out.points)) or ()),
        maps=attempt(problems, "similarity", lambda: _maps(store, out)),
        scores=attempt(problems, "scores", lambda: scores(store, name, out.settings)),
        unsure=attempt(problems, "scores", lambda: unsure(store, name)),
        problems=tuple(problems),
    )


def _asked(store: RunStore, out: Query, problems: list[str]) -> Query:
    """Read what was asked for: settings, points, and their origin."""
    name = out.name
    points = attempt(problems, "prompts", lambda: _points(store, name))
    unlike = attempt(problems, "negatives", lambda: np.asarray(negative.read_points(store, name), float))
    return replace(
        out,
        settings=attempt(problems, "settings", lambda: _settings(store, name)),
        borrowed=attempt(problems, "origin", lambda: borrow.origin(store, name)),
        points=_finite(points),
        negatives=_finite(unlike),
        kinds=attempt(problems, "kinds", lambda: _others(store, name)) or (),
    )


def _finite(points: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Points (n, 3) without those that are not finite; no points for None."""
    known = np.empty((0, 3)) if points is None else points.reshape(-1, 3)
    finite: NDArray[np.float64] = known[np.isfinite(known).all(axis=1)]
    return finite


def _settings(store: RunStore, name: str) -> Settings | None:
    where = layout.query(name)
    settings = store.group(where).attrs.get("settings") if where in store else None
    if not isinstance(settings, dict):
        return None
    return structure.effective(store, name, Settings.model_validate(settings))


def _points(store: RunStore, name: str) -> NDArray[np.float64]:
    where = layout.query_array(name, "points")
    if where not in store:
        raise StoreError("the prompts are not segmented yet")
    if store.array(where).size > 3 * MOST_PICKS:
        raise StoreError(f"{store.array(where).shape} is too large for prompts")
    return np.asarray(store.read(where), float).reshape(-1, 3)


def _reviewed(store: RunStore, name: str) -> str:
    from cryosam_dask.outputs.review import review_figures, review_sentence

    return review_sentence(review_figures(store.url, name=name))


def _others(store: RunStore, name: str) -> tuple[str, ...]:
    return tuple(kind for kind in picks.kinds(store, name) if kind != name)


def _centre(
    store: RunStore, points: NDArray[np.float64], table: pd.DataFrame | None
) -> tuple[tuple[float, float, float], str]:
    """The place that slices go through, and a word for it."""
    if len(points):
        chosen, what = points[0], "the prompt" if len(points) == 1 else "the first prompt"
    elif table is not None and len(table):
        chosen, what = table[["z", "y", "x"]].to_numpy(float)[0], "the best pick"
    else:
        chosen, what = np.asarray(store.shape) // 2, "the tomogram's centre"
    z, y, x = (float(v) for v in chosen)
    return (z, y, x), what


def _found(store: RunStore, name: str, table: pd.DataFrame, budget: Budget, problems: list[str]) -> Found:
    segmented = store.group(layout.picks(name)).attrs.get("segmented")
    voxel = float(np.prod(store.voxel_size)) / 1000
    volumes = table["size"].to_numpy(float) * voxel
    rows = tuple(
        PickRow(int(r.instance), r.z, r.y, r.x, r.score, int(r.size_), v, r.similarity, r.quality, bool(r.prompted))
        for r, v in zip(
            table.head(budget.rows).rename(columns={"size": "size_"}).itertuples(index=False), volumes, strict=False
        )
    )
    places = table[["z", "y", "x"]].to_numpy(float)
    radius = geometry.equivalent_radius(float(np.median(table["size"]))) if len(table) else 0.0
    best = attempt(
        problems,
        "best picks",
        lambda: prompts.sheet(store, places[:SHEET], radius, f"The {min(SHEET, len(places))} best picks of {name}"),
    )
    rest = places[SHEET:][-SHEET:]
    last = attempt(
        problems, "last picks", lambda: prompts.sheet(store, rest, radius, f"The {len(rest)} last picks of {name}")
    )
    return Found(
        places,
        rows,
        segmented if isinstance(segmented, int) else None,
        float(np.median(volumes)) if len(volumes) else None,
        download(table, store, name),
        best,
        last,
    )


def points_of(out: Query, table: pd.DataFrame | None) -> list[Points]:
    """What is drawn on slices: picks, clicks."""
    groups: list[Points] = []
    if table is not None:
        titles = [f"{i}: {score:.3f}" for i, score in zip(table["instance"], table["score"], strict=True)]
        groups.append(Points("pick", table[["z", "y", "x"]].to_numpy(float), titles))
    return [*groups, Points("negative", out.negatives), Points("prompt", out.points)]


def _panels(
    store: RunStore, out: Query, table: pd.DataFrame | None, true: NDArray[np.float64] | None, budget: Budget
) -> list[Panel]:
    groups = points_of(out, table)
    if true is not None:
        groups.insert(0, Points("truth", true))
    return images.orthogonal(store, out.name, out.centre, groups, budget.largest)


def _maps(store: RunStore, out: Query) -> Maps | None:
    return None if out.settings is None else maps(store, out.name, out.settings.match, out.centre[0])
