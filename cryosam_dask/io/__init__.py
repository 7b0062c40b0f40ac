"""Tomograms in, picks and labels out."""

from cryosam_dask.io.export import write_mrc_labels
from cryosam_dask.io.frame import TomogramSource, describe
from cryosam_dask.io.points.files import PICK_FORMATS, check_points, read_points, write_picks
from cryosam_dask.io.source import open_tomogram

__all__ = [
    "PICK_FORMATS",
    "TomogramSource",
    "check_points",
    "describe",
    "open_tomogram",
    "read_points",
    "write_mrc_labels",
    "write_picks",
]
