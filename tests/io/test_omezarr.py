"""OME-Zarr input: versions 0.4 and 0.5, units, transformations, and what is no tomogram."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import multiscale

from cryosam_dask.errors import InputError
from cryosam_dask.io import TomogramSource, open_tomogram
