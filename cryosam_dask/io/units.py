"""The names of units of length in files.

UDUNITS-2's names, which OME-Zarr asks for, with their plurals and British spellings; the signs of OME-XML
(`UnitsLength`), and what ImageJ writes (`micron`, `um`, `inch`).
"""

from __future__ import annotations

import unicodedata

_ANGSTROM = {
    "angstrom": 1.0,
    "ångström": 1.0,
    "ångstrom": 1.0,
    "å": 1.0,
    "a": 1.0,
    "picometer": 0.01,
    "pm": 0.01,
    "nanometer": 10.0,
    "nm": 10.0,
    "micrometer": 1e4,
    "micron": 1e4,
    "\u03bcm": 1e4,
    "um": 1e4,
    "millimeter": 1e7,
    "mm": 1e7,
    "centimeter": 1e8,
    "cm": 1e8,
    "meter": 1e10,
    "m": 1e10,
    "inch": 2.54e8,
    "inches": 2.54e8,
    "in": 2.54e8,
}
_LONGEST_SIGN = 3  # letters; longer names have plurals


def angstroms(unit: str | None) -> float | None:
    """How many Å a unit is; None if there is no unit, or it is unknown. Case does not matter, nor do plurals
    (`nanometers`), British spellings (`nanometre`), or which of its signs in Unicode a unit has."""
    if not unit:
        return None
    name = unicodedata.normalize("NFKC", unit.strip()).lower().replace("metre", "meter")
    if name not in _ANGSTROM and len(name) > _LONGEST_SIGN:
        name = name.removesuffix("s")
    return _ANGSTROM.get(name)
