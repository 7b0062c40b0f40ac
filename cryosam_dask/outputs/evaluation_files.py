"""Figures of an evaluation as files: rows and curves as CSV, all of it as JSON, curves as a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryosam_dask.errors import InputError
from cryosam_dask.evaluate import CurvePoint
from cryosam_dask.io.atomic import write_text


def write_figures(figures: Mapping[str, Any], path: str | Path) -> None:
    """Write what `evaluate` or `RunsEvaluation.to_dict` gave: JSON as it is; CSV its rows, one a tomogram and kind.

    Raises InputError for another suffix, StoreError where the file can't be written.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        write_text(path, json.dumps(figures, indent=2, allow_nan=False) + "\n")
    elif path.suffix.lower() == ".csv":
        single = {key: value for key, value in figures.items() if not isinstance(value, list | dict)}
        write_text(path, _csv(figures.get("rows") or [single]))
    else:
        raise InputError(f"{path}: figures go to .json or .csv")


def write_curves(curves: Mapping[str, Sequence[CurvePoint]], path: str | Path, title: str = "") -> None:
    """Write precision-recall curves by kind: every point as CSV, or a picture as PNG.

    Raises InputError for another suffix, and StoreError, or InputError for a PNG, where the file can't be written.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        rows = [
            {"kind": kind, **point._asdict(), "f1": point.f1} for kind, points in curves.items() for point in points
        ]
        write_text(path, _csv(rows, ["kind", "threshold", "precision", "recall", "f1"]))
    elif path.suffix.lower() == ".png":
        from cryosam_dask.picture import curves_picture

        curves_picture(curves, path, title)
    else:
        raise InputError(f"{path}: curves go to .csv or .png")


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """A table with a column for each key of any row; numbers so that they read back bit for bit."""
    out = io.StringIO()
    names = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    table = csv.DictWriter(out, names, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue()
