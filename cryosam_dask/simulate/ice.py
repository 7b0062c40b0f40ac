"""Uneven ice: a slab of changing thickness in vacuum, and an intensity that drifts across the tomogram."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.simulate.checks import is_number, require, require_range
from cryosam_dask.types import Float32, Shape3

VACUUM = np.float32(-2.2)
"""Density of vacuum to that of ice (0.93 g/cm³), relative to that of protein (1.35) to that of ice: -0.93 / 0.42."""
_MEAN_FREE_PATH_NM = 300.0  # of electrons of 300 kV between inelastic scatterings in vitreous ice, about


@dataclass(frozen=True)
class Ice:
    """The ice around the particles.

    Attributes
    ----------
    thickness : shares of the volume's depth, at the thin and at the thick side; the ice is in the middle, with vacuum
        above and below, and everything lies in the ice
    direction : degrees in the plane of y and x, from y towards x, in which ice and intensity grow
    gradient : intensity at the far side less that at the near side, in standard deviations of the tomogram
    """

    thickness: tuple[float, float] = (1.0, 1.0)
    direction: float = 0.0
    gradient: float = 0.0

    def __post_init__(self) -> None:
        require_range("ice.thickness", self.thickness, 0.2, 1.0)
        object.__setattr__(self, "thickness", tuple(self.thickness))
        require(is_number(self.direction), "ice.direction", "degrees", self.direction)
        require(is_number(self.gradient), "ice.gradient", "a number", self.gradient)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Ice:
        """Ice from plain values. Raises SettingsError for values that are unknown."""
        names = [f.name for f in fields(cls)]
        require(set(values) <= set(names), "ice", f"entries with {', '.join(names)}", dict(values))
        return cls(**values)


def ramp(ice: Ice, shape: Shape3, offset: Shape3 = (0, 0, 0), whole: Shape3 | None = None) -> NDArray[np.float64]:
    """(1, y, x) from -0.5 at the near edge to 0.5 at the far edge of the tomogram, and on in what is around it.

    shape : of the tomogram; whole : of the volume that holds it, from `offset`; None is the tomogram alone
    """
    (_, height, width), (_, wide, long) = shape, whole or shape
    angle = np.radians(ice.direction)
    y = np.arange(wide) - offset[1] - (height - 1) / 2
    x = np.arange(long) - offset[2] - (width - 1) / 2
    along = y[:, None] * np.cos(angle) + x[None, :] * np.sin(angle)
    extent = abs((height - 1) * np.cos(angle)) + abs((width - 1) * np.sin(angle))
    return np.asarray(along / extent)[None]


def depth(ice: Ice, shape: Shape3, offset: Shape3 = (0, 0, 0), whole: Shape3 | None = None) -> NDArray[np.float64]:
    """Thickness of the ice in voxels, (1, y, x); arguments as for `ramp`."""
    thin, thick = ice.thickness
    share = np.clip(thin + (thick - thin) * (ramp(ice, shape, offset, whole) + 0.5), thin, thick)
    return np.asarray(share * shape[0])


def vacuum(ice: Ice, shape: Shape3, offset: Shape3 = (0, 0, 0), whole: Shape3 | None = None) -> Float32:
    """How much of each voxel is vacuum, 0 to 1; arguments as for `ramp`.

    Where the ice fills the depth of the tomogram it goes on above and below it.
    """
    half = depth(ice, shape, offset, whole) / 2
    half[half >= shape[0] / 2 - 1e-9] = np.inf
    z = np.abs(np.arange((whole or shape)[0]) - offset[0] - (shape[0] - 1) / 2)[:, None, None]
    share: Float32 = np.clip(z - half + 0.5, 0, 1).astype(np.float32)
    return share


def noise_gain(ice: Ice, shape: Shape3, voxel_size: float) -> NDArray[np.float64]:
    """How strong noise is, (1, y, x), 1 on average: exp(t / 2Λ), t being the ice's thickness and Λ the mean free path.

    Of N₀ electrons N₀ exp(-t / Λ) reach the detector without an inelastic scattering, and counting leaves a relative
    deviation of 1 / √N.
    """
    gain = np.exp(depth(ice, shape) * voxel_size / 10 / (2 * _MEAN_FREE_PATH_NM))
    return np.asarray(gain / gain.mean())
