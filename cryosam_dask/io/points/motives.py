"""What Dynamo's tables and the motive lists of TOM, AV3 and STOPGAP share: `dynamo`, `em` and `stopgap` have the files.

Places count from 1: all of them are programs in MATLAB ("Dynamo uses the convention of counting pixels with the index
1", https://wiki.dynamo.biozentrum.unibas.ch/w/index.php/Volume_center; STOPGAP's `extract_parse_subtomo_positions.m`
takes them as MATLAB's indices; PyTom's `fromMOTL` subtracts 1 from those of TOM and AV3). So the first voxel's centre
is 1, and a particle stands at place + shift − 1. Angles are those of `orientation`. Tomograms have numbers.

A tomogram's number is what its name ends in, both ways: 7 is TS_07. If a tomogram to be written has no such number in
its name, or two have the same, all are numbered from 1, which a note says. For programs that cut subtomograms at whole
voxels, places are written as whole voxels and the remainder as shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points import orientation
from cryosam_dask.io.points.base import (
    ALL,
    Columns,
    Float64,
    Frame,
    Part,
    axes_of,
    choose,
    number_of,
    positions,
    rounded,
)

FIRST = 1.0
"""The first voxel's centre."""


@dataclass(frozen=True)
class Motives:
    """Particles as these programs describe them, arrays of one length n.

    Attributes
    ----------
    places, shifts : (n, 3) x, y, z, the first voxel being 1; angles : (n, 3) phi, theta, psi as TOM means them
    tomograms, tags, classes : numbers; scores : cross-correlations, say
    """

    places: Float64
    shifts: Float64
    angles: Float64
    tomograms: Float64
    tags: Float64
    scores: Float64
    classes: Float64


def columns(path: Path, motives: Motives, frame: Frame) -> Columns:
    """The columns that a reader returns. Tags, scores and classes are left out if they are all 0. A class is a kind if
    a kind is asked for, else a column of numbers."""
    with np.errstate(all="ignore"):  # what overflows is refused as no number
        places = rounded(motives.places + motives.shifts - FIRST)
    points = axes_of(np.ascontiguousarray(places[:, ::-1]))
    points["tomogram"] = _texts(motives.tomograms)
    classes = motives.classes.astype(np.int64) if _are_whole(motives.classes) else motives.classes
    for name, values in (("score", motives.scores), ("instance", motives.tags), ("class", classes)):
        if values.any():
            points[name] = values
    points |= orientation.of_zxz(motives.angles)
    if "class" in points and frame.kind not in (None, ALL):
        points = choose(path, points | {"kind": _texts(motives.classes)}, "tomogram", frame.tomogram, frame.notes)
        points = choose(path, points, "kind", frame.kind)
    return points


def of_parts(parts: Sequence[Part], what: str, *, split: bool = False, largest: int = 2**53) -> Motives:
    """Picks of several tomograms.

    split : whether places become whole voxels, and shifts what they lack
    largest : of tags and tomograms' numbers in the file. InputError for one above it
    """
    numbers = _numbers(parts, what, largest)
    places = np.concatenate([positions(table)[:, ::-1] + FIRST for table, _ in parts])
    whole = np.round(places) if split else places
    tags = np.concatenate([table["instance"].to_numpy(dtype=float) for table, _ in parts])
    if len(tags) and np.abs(tags).max() > largest:
        raise InputError(
            f"{what}: an instance above {largest}, which numbers in the file end with: choose another format"
        )
    return Motives(
        whole,
        places - whole,
        np.concatenate([orientation.to_zxz(table) for table, _ in parts]),
        np.repeat(np.array(numbers, dtype=float), [len(table) for table, _ in parts]),
        tags,
        np.concatenate([table["score"].to_numpy(dtype=float) for table, _ in parts]),
        np.ones(len(tags)),
    )


def _are_whole(values: Float64) -> bool:
    return bool((values == np.round(values)).all() and (np.abs(values) <= 2**53).all())


def _texts(values: Float64) -> list[str]:
    return [f"{value:.0f}" for value in values] if _are_whole(values) else [f"{value:g}" for value in values]


def _numbers(parts: Sequence[Part], what: str, largest: int) -> list[int]:
    """Each tomogram's number."""
    told = [number_of(frame.tomogram) for _, frame in parts]
    numbers = [number for number in told if number is not None and number <= largest]
    if len(set(numbers)) == len(parts):
        return numbers
    numbers = list(range(1, len(parts) + 1))
    called = [
        f"{number} is {shown(frame.tomogram or 'the tomogram')}"
        for number, (_, frame) in zip(numbers, parts, strict=True)
    ]
    why = "its name does not end in one" if len(parts) == 1 else "their names do not all end in one of their own"
    parts[0][1].notes.append(f"{what} have numbers for tomograms: {', '.join(called)}, since {why}")
    return numbers
