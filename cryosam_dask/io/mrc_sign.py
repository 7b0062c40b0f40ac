"""Decide whether the bytes of an 8-bit MRC are signed, and write a note if the file does not say so.

Mode 0 is signed by MRC2014. IMOD wrote it unsigned until 4.2.23 and marks it by a flag of its own since
(https://bio3d.colorado.edu/imod/doc/mrc_format.txt); cameras write it unsigned without any. The wrong reading turns the
brightest voxels into the darkest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

_MIDDLE, _END = 16, 32  # signed values nearer to 0 than the first lie in the middle; an end is as wide as the second
_LEAST_END, _GAP_RATIO = 0.02, 0.1  # of the voxels, in each end at least; of the lesser end, in the middle at most
_FEWEST = 256  # voxels that a histogram says anything of


@dataclass(frozen=True)
class Sign:
    """How bytes are read. `told`: whether the option, IMOD's flag, or a range that signed bytes can't have
    decides it; otherwise look at the voxels, see `sign_notes`. `ranged`, `low`: whether the header's range is that of
    signed bytes, or the same in both readings."""

    unsigned: bool
    told: bool
    ranged: bool = False
    low: bool = False
    notes: tuple[str, ...] = ()


def sign_of_bytes(low: float, high: float, option: bool | None, flag: bool | None) -> Sign:
    """The sign of mode 0 by the header's least and greatest value, the user's option and IMOD's flag (both True for
    unsigned, None where there is none). Without an option or a flag bytes are signed, unless the range says otherwise
    (IMOD, libcfshr/b3dutil.c, `readBytesSigned`)."""
    if option is not None:
        return Sign(option, told=True)
    if flag is not None:
        return Sign(flag, told=True)
    if low >= 0 and 127 < high <= 255:
        note = f"8-bit voxels up to {high:g} by the header: read as unsigned; --signed overrules that"
        return Sign(True, told=True, notes=(note,))
    usable = low < high <= 127
    return Sign(False, told=False, ranged=usable and -128 <= low < 0, low=usable and low >= 0)


def byte_counts(parts: Sequence[bytes]) -> Counts:
    """How many voxels of each value, 0 to 255, these bytes hold."""
    counts = np.zeros(256, np.int64)
    for part in parts:
        counts += np.bincount(np.frombuffer(part, np.uint8), minlength=256)
    return counts


def sign_notes(sign: Sign, counts: Counts, whole: bool) -> tuple[str, ...]:
    """A note if nothing states whether bytes are signed, by `counts` of some of the voxels, or of the `whole` file.
    There is no note if both readings are the same, since no byte is above 127. Where the signed values lie at both ends
    with a gap between them, they are unsigned ones about the middle of their range, whatever range a program that took
    them for signed has put in the header.
    """
    if sign.told or (not counts[128:].any() and (whole or sign.low)):
        return ()
    if (share := _torn(counts)) is not None:
        return (
            "8-bit voxels that look unsigned, although nothing in the header says so: read as signed (MRC2014), "
            f"{share[0]:.0%} and {share[1]:.0%} of them lie at the two ends of the range and {share[2]:.1%} in its "
            "middle, so that the brightest are taken for the darkest; most likely --unsigned is right (--signed leaves "
            "this note out)",
        )
    if sign.ranged:
        return ()
    return (
        "8-bit voxels of which nothing in the header says whether they are signed: read as signed (MRC2014); if they "
        "are not, --unsigned (--signed leaves this note out)",
    )


def _torn(counts: Counts) -> tuple[float, float, float] | None:
    """The shares of voxels near -128, near 127 and about 0, where these tell a torn distribution; else None. 0 and 255
    don't count: programs fill borders and cut off with them."""
    signed = np.roll(counts, 128).astype(float)  # from -128 to 127
    signed[[128, 127]] = 0
    total = signed.sum()
    if total < _FEWEST:
        return None
    low, high = signed[:_END].sum() / total, signed[-_END:].sum() / total
    middle = signed[128 - _MIDDLE : 128 + _MIDDLE].sum() / total
    torn = min(low, high) >= _LEAST_END and middle <= _GAP_RATIO * min(low, high)
    return (low, high, middle) if torn else None
