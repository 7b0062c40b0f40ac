"""A query's picks against true positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.report import charts, prompts
from cryosam_dask.store.run_store import RunStore

if TYPE_CHECKING:
    import pandas as pd

    from cryosam_dask.outputs.truth import Truth


@dataclass(frozen=True)
class Against:
    """True positions, and the largest distance of a match; None takes the equivalent radius of the prompted masks."""

    points: Truth
    radius: float | str | None = None


@dataclass(frozen=True)
class Evaluated:
    """The result for one query. `by_masks` : whether the radius is that of the prompted masks."""

    figures: dict[str, Any]
    radius: str
    by_masks: bool
    chart: charts.Curve | None
    truth: str


def evaluation(
    store: RunStore, name: str, table: pd.DataFrame, truth: Against, alone: bool
) -> tuple[Evaluated, NDArray[np.float64]]:
    """Compare a query's picks with true positions. `alone` : whether there is no other query to compare."""
    from cryosam_dask.evaluate import Radius, evaluate_picks, parse_radius
    from cryosam_dask.outputs.truth import tomogram_of
    from cryosam_dask.outputs.truth_files import Kind

    typical = None if truth.radius is not None else prompts.typical_radius(store, name)
    given = truth.radius if truth.radius is not None else typical
    if given is None:
        raise InputError(f"{store.url}: {name!r} has no prompted mask to take a radius from; give --radius")
    length = parse_radius(given)
    true = truth.points.read(tomogram_of(store), Kind(name, alone))
    if true is None or not (alone or len(true)):
        raise InputError(f"{truth.points.path}: no points of {name!r} in it")
    places = true[["z", "y", "x"]].to_numpy(float)
    figures = evaluate_picks(
        table[["z", "y", "x"]],
        table["score"],
        places,
        length.value,
        voxel_size=store.voxel_size if length.unit == "angstrom" else None,
    ).to_dict()
    points = figures["curve"]
    chart = charts.curve([p["precision"] for p in points], [p["recall"] for p in points])
    shown = str(Radius(float(f"{length.value:.3g}"), length.unit))
    return Evaluated(figures, shown, typical is not None, chart, truth.points.path.name), places
