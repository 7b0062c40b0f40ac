"""The driver runs the stages in order, on any executor, from a tomogram and a click to labels and picks."""

from cryosam_dask.pipeline.driver import Driver
from cryosam_dask.pipeline.kinds import PARTICLE, Kinds, kinds_of, take
from cryosam_dask.pipeline.reviewing import Reviewed, refine, review
from cryosam_dask.pipeline.whole_run import chosen_settings, models_of, run, settings_for, uses_torch_of

__all__ = [
    "PARTICLE",
    "Driver",
    "Kinds",
    "Reviewed",
    "chosen_settings",
    "kinds_of",
    "models_of",
    "refine",
    "review",
    "run",
    "settings_for",
    "take",
    "uses_torch_of",
]
