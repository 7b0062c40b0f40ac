"""One click to a segmented cryo-ET tomogram, out of core, on Dask and Zarr.

    import cryosam_dask as cs

    cs.run("tomo.mrc", points=[(z, y, x)], out="run.zarr", models="builtin")
    tree = cs.open_run("run.zarr")
    features = cs.FeatureVolume.open("run.zarr")

Names are loaded when they are first used, so that importing the package costs nothing. xarray's objects get `.cryosam`
(`accessors`) once xarray is imported, before or after.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cryosam_dask.version import __version__

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from cryosam_dask import analysis
    from cryosam_dask.errors import CryosamError
    from cryosam_dask.evaluate import evaluate_dataset, evaluate_masks, evaluate_picks
    from cryosam_dask.outputs import evaluate_runs, export
    from cryosam_dask.pipeline import Driver, review, run, settings_for
    from cryosam_dask.settings import Settings
    from cryosam_dask.store.feature_volume import FeatureVolume
    from cryosam_dask.store.views import open_run
    from cryosam_dask.viewer.notebook import view

_WHERE = {
    "CryosamError": "errors",
    "Driver": "pipeline",
    "FeatureVolume": "store.feature_volume",
    "Settings": "settings",
    "evaluate_dataset": "evaluate",
    "evaluate_masks": "evaluate",
    "evaluate_picks": "evaluate",
    "evaluate_runs": "outputs",
    "export": "outputs",
    "open_run": "store.views",
    "review": "pipeline",
    "run": "pipeline",
    "settings_for": "pipeline",
    "view": "viewer.notebook",
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
    "review",
    "run",
    "settings_for",
    "view",
]


def __getattr__(name: str) -> Any:
    if name == "analysis":
        return import_module(f"{__name__}.analysis")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__


class _WithXarray:
    """A finder and loader of xarray that registers the accessors with it, once it is imported: to import it for them
    alone would take longer than all else."""

    _looking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "xarray" or self._looking:
            return None
        from importlib.util import find_spec

        self._looking = True
        try:
            spec = find_spec(name)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            self._loader: Any = spec.loader
            spec.loader = self  # type: ignore[assignment]
        return spec

    def create_module(self, spec: ModuleSpec) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        sys.meta_path.remove(self)
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        import_module(f"{__name__}.accessors")


if "xarray" in sys.modules:
    import_module(f"{__name__}.accessors")
else:
    sys.meta_path.insert(0, _WithXarray())
