"""Which seeds and families of shapes are for tuning and training, and which are held out to report on.

Seeds below `FIRST_HELD_OUT` are for tuning; so are the families of `TUNE_FAMILIES`. Held-out tomograms have seeds from
`FIRST_HELD_OUT` on, for the layout and for each random shape, and draw shapes from all families, so that half of them
come from families that tuning never sees. Shapes that are always the same (ribosome, barrel, …) are for tuning.
"""

from __future__ import annotations

from typing import Literal

from cryosam_dask.errors import SettingsError
from cryosam_dask.simulate.families import FAMILIES
from cryosam_dask.simulate.settings import SimulationSettings

Split = Literal["tune", "held-out"]

FIRST_HELD_OUT = 1_000_000
TUNE_FAMILIES: tuple[str, ...] = ("lobed", "hollow-sphere", "hollow-cylinder", "rod", "disc")
"""What tuning sees."""
HELD_OUT_FAMILIES: tuple[str, ...] = tuple(f for f in FAMILIES if f not in TUNE_FAMILIES)
"""What it never sees."""


def split_of_seed(seed: int) -> Split:
    """The split that a seed belongs to, of a layout or of a random shape."""
    return "tune" if seed < FIRST_HELD_OUT else "held-out"


def families_of(split: Split) -> tuple[str, ...]:
    """The families that random shapes of a split come from."""
    return TUNE_FAMILIES if split == "tune" else FAMILIES


def parts_outside(settings: SimulationSettings, split: Split) -> list[str]:
    """What of the settings does not belong to a split, in words; density maps belong to both."""
    parts = [] if split_of_seed(settings.seed) == split else [f"seed {settings.seed}"]
    for s in settings.species:
        if s.shape == "map":
            continue
        if s.shape not in FAMILIES:
            parts += [f"shape {s.shape}"] if split == "held-out" else []
        elif s.shape not in families_of(split):
            parts.append(f"family {s.shape}")
        elif split_of_seed(s.seed) != split:
            parts.append(f"seed {s.seed} of {s.name}")
    return parts


def require_split(settings: SimulationSettings, split: Split) -> None:
    """Raise SettingsError unless the seed and each shape belong to a split; for those who tune, train or report."""
    if parts := parts_outside(settings, split):
        raise SettingsError(
            f"simulation: {', '.join(parts)}: not of the {split} split; seeds from {FIRST_HELD_OUT} on are held out, "
            f"and so are the families {', '.join(HELD_OUT_FAMILIES)}"
        )
