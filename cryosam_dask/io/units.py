"""Names that files have for units of length."""

from __future__ import annotations

_ANGSTROM = {
    "angstrom": 1.0,
    "ångström": 1.0,
    "å": 1.0,
    "a": 1.0,
    "picometer": 0.01,
    "pm": 0.01,
    "nanometer": 10.0,
    "nm": 10.0,
    "micrometer": 1e4,
    "micron": 1e4,
    "µm": 1e4,
    "um": 1e4,
    "millimeter": 1e7,
    "mm": 1e7,
    "centimeter": 1e8,
    "cm": 1e8,
    "meter": 1e10,
    "inch": 2.54e8,
}
_SIGNS = str.maketrans({"\u03bc": "µ", "\u212b": "å"})  # the Greek letter and the unit's own sign


def angstroms(unit: str | None) -> float | None:
    """How many Å a unit is; None where there is none, or it is not known."""
    return _ANGSTROM.get(unit.strip().translate(_SIGNS).lower()) if unit else None
