"""One click to a segmented cryo-ET tomogram, out of core, on Dask and Zarr."""

from __future__ import annotations

__version__ = "0.1.0"
