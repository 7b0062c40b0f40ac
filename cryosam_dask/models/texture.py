"""The built-in slice encoder: rotation-invariant Gaussian-derivative texture, no weights, no GPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels import texture as kernel
