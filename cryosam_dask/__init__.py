"""One click to a segmented cryo-ET tomogram, out of core, on Dask and Zarr.

    import cryosam_dask as cs

    cs.run("tomo.mrc", points=[(z, y, x)], out="run.zarr", models="builtin")
    tree = cs.open_run("run.zarr")
    features = cs.FeatureVolume.open("run.zarr")

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cryosam_dask import analysis
    from cryosam_dask.errors import CryosamError
    from cryosam_dask.evaluate import evaluate_dataset, evaluate_masks, evaluate_picks
    from cryosam_dask.outputs import evaluate_runs, export
    from cryosam_dask.pipeline import Driver, run, settings_for
    from cryosam_dask.settings import Settings
    from cryosam_dask.store.features import FeatureVolume
    from cryosam_dask.store.views import open_run

_WHERE = {
    "CryosamError": "errors",
    "Driver": "pipeline",
    "FeatureVolume": "store.features",
    "Settings": "settings",
    "evaluate_dataset": "evaluate",
    "evaluate_masks": "evaluate",
    "evaluate_picks": "evaluate",
    "evaluate_runs": "outputs",
    "export": "outputs",
    "open_run": "store.views",
    "run": "pipeline",
    "settings_for": "pipeline",
}

__all__ = [
    "CryosamError",
    "Driver",
    "FeatureVolume",
    "Settings",
    "__version__",
    "analysis",
    "evaluate_dataset",
    "evaluate_masks",
    "evaluate_picks",
    "evaluate_runs",
    "export",
    "open_run",
    "run",
    "settings_for",
]


def __getattr__(name: str) -> Any:
    if name == "analysis":
        return import_module(f"{__name__}.analysis")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
