"""Names of a tomogram: its file's name, and its tilt series' name, by which other programs look particles up.

Programs that reconstruct or denoise add to the name of the tilt series. Taken from their sources and manuals:

Warp     NAME_10.00Apx.mrc, and NAME.mrc_10.00Apx.mrc of older versions (`TiltSeries.ToTomogramWithPixelSize`)
RELION 5 rec_NAME.mrc; rec_NAME_half1.mrc and _half2 of half the frames (`reconstruct_tomogram.cpp`)
AreTomo  NAME_Vol.mrc, NAME_EVN_Vol.mrc, NAME_ODD_Vol.mrc (`CTsPackage::SaveVol`)
IMOD     NAME_rec.mrc, NAME_full_rec.mrc; NAME.rec, NAME_full.rec of older versions (etomo's `ImageFilenameStyle`)
EMAN2    NAME__bin4.hdf (`e2tomogram.py`)
IsoNet   NAME_corrected.mrc (`predict.py`)

and people add _bin4, _b4, _denoised, _deconv and the like, which is taken from public scripts.

A tilt series whose own name ends so, such as one of grid square b4, loses a part of its name; so writers of names
report the names that they wrote.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown

_FILE = re.compile(
    r"\.(tomostar|mrc|mrcs|em|rec|map|st|ali|ccp4|hdf|tiff?|ome|zarr|star|csv|json|ndjson|xml|gz)$", re.IGNORECASE
)
"""Suffixes of tomograms, tilt series and tables of particles."""

_ADDED = re.compile(
    r"""(
    (?i: _\d+(\.\d+)?apx | _\d+\.\d+a )        # the voxel size
    | (?i: [_.-](full_)?rec | _full | _vol )
    | _(EVN|ODD)                               # half of the frames; in lower case it may be a word
    | (?i: [_.-]+bin_?\d+ )                    # binning
    | ((?<=\d)|(?<=rec)|(?<=[Vv]ol)) _b\d{1,2} # not after a word: a name may end in "grid_b4"
    | (?i: _(corrected|denoised|deconv|cryocare|isonet) )
    | (?i: (?<=apx|rec|vol) _refined )
    )$""",
    re.VERBOSE,
)
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_MOST_BYTES = 255  # of a name, as file systems have it
_RELION, _RELIONS_HALF = re.compile(r"^rec_"), re.compile(r"^(rec_.+)_half[12]$")
_SHOWN = 6


def check_name(what: str, name: str | None, option: str) -> str:
    """A tomogram's or a kind's name that any file can hold, tabs and spaces included; InputError for others.

    what : it is a name of; option : that gives another
    """
    if not name:
        raise InputError(f"the {what}'s name is empty: give one with {option}")
    if _CONTROL.search(name) or len(name.encode(errors="replace")) > _MOST_BYTES:
        expected = f"expected no control characters, and at most {_MOST_BYTES} bytes: give another with {option}"
        raise InputError(f"the {what}'s name {shown(repr(name))}: {expected}")
    return name


def stem(name: str) -> str:
    """A tomogram's name without its folder and the suffixes of files."""
    name = re.split(r"[/\\]", name.strip().rstrip("/"))[-1]
    while (shorter := _FILE.sub("", name)) and shorter != name:
        name = shorter
    return name


def plain_name(name: str) -> str:
    """The name of the tilt series that a tomogram is of: without its folder, suffixes, and what programs add.

    TS_026 of TS_026.mrc_10.00Apx.mrc, rec_TS_026.mrc, TS_026_full_rec.mrc, TS_026_bin4_denoised.mrc, TS_026.tomostar.
    A name that consists of such an addition alone stays as it is.
    """
    name = stem(name)
    while any(map(str.isalnum, shorter := _shorter(name))) and shorter != name:
        name = shorter
    return name


def _shorter(name: str) -> str:
    """The name without one suffix, or else without RELION's prefix."""
    for pattern in (_FILE, _ADDED):
        if (shorter := pattern.sub("", name)) != name and shorter:
            return shorter
    return _RELION.sub("", _RELIONS_HALF.sub(r"\1", name))


def matching(name: str, known: Iterable[str], *, series: bool = True, case: bool = True) -> list[str]:
    """Which of the known names are a tomogram's: the same one, else the same without folder and suffixes, else
    (`series`) those of the same tilt series, else those whose number it ends in. `case` : whether upper and lower case
    differ."""
    known = list(known)
    keys: list[Callable[[str], str]] = [str, stem, *([plain_name] if series else [])]
    for key in keys:
        own = key(name) if case else key(name).casefold()
        matches = [other for other in known if (key(other) if case else key(other).casefold()) == own]
        if matches:
            return matches
    return [other for other in known if by_number(other, name)] if series else []


def number_of(name: str | None) -> int | None:
    """The number that a tomogram's name is or ends in, as 7 of TS_07; None where there is none."""
    digits = re.search(r"\d{1,15}$", plain_name(name)) if name else None
    return None if digits is None else int(digits[0])


def by_number(name: str, other: str) -> bool:
    """Whether `name` is a number alone, as some formats call tomograms, and the one that `other` ends in."""
    return name.isascii() and name.isdigit() and number_of(other) == int(name)


def series_names(
    own: Sequence[str], *, asked: Mapping[str, str] | None = None, kept: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """The names of tomograms in files of picks, and a sentence about them.

    Parameters
    ----------
    own : the tomograms' own names, all different
    asked : own name → the one to be written; kept : own names that are written as they are

    A tomogram is called by its tilt series, or by its own name where two would be called the same. InputError where
    two have one name nevertheless, as asked for.
    """
    asked, kept = asked or {}, set(kept)
    free = [name not in asked and name not in kept for name in own]
    names = [asked.get(name, plain_name(name) if is_free else name) for name, is_free in zip(own, free, strict=True)]
    often = Counter(name.casefold() for name in names)
    twice = [is_free and often[name.casefold()] > 1 for name, is_free in zip(names, free, strict=True)]
    names = [name if again else written for name, written, again in zip(own, names, twice, strict=True)]
    taken: dict[str, str] = {}
    for name, written in zip(own, names, strict=True):
        if (other := taken.setdefault(written.casefold(), name)) != name:
            raise InputError(f"{shown(other)} and {shown(name)} would both be called {shown(written)}: rename one")
    renamed = [
        f"{shown(written)} ({shown(name)})"
        for name, written, is_free in zip(own, names, free, strict=True)
        if is_free and name != written
    ]
    alike = [shown(name) for name, again in zip(own, twice, strict=True) if again]
    return names, [
        *([f"tomograms are called by their tilt series, not by their files: {_some(renamed)}"] if renamed else []),
        *([f"tomograms keep their files' names, as two would be called the same: {_some(alike)}"] if alike else []),
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
