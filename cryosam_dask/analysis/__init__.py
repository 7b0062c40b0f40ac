"""Measurements of a run with xarray: instances, densities, similarity along an axis, two runs, pairs of particles.

All lengths are nanometres, volumes nm³ or µm³, positions in a table voxels and ångström. What is read is read in
blocks on the current Dask scheduler; results are small and in memory, but for `similarity_profile`, which is lazy.
"""

from cryosam_dask.analysis.comparison import compare
from cryosam_dask.analysis.pairs import pair_correlation
from cryosam_dask.analysis.profile import similarity_profile
from cryosam_dask.analysis.regions import density, slabs
from cryosam_dask.analysis.table import instance_table

__all__ = ["compare", "density", "instance_table", "pair_correlation", "similarity_profile", "slabs"]
