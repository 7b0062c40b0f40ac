"""Structure: whether a query is of particles, which have a size, or of an extended structure, which has none.

A membrane, a filament or a tube goes on where the mask of one prompt ends. So a query of it is searched for in another
way, from this one decision on (`effective`): places are ranked by their likeness and not by the density profile of a
whole; every place that is nearly as like the query as the prompted masks themselves is a proposal, not only the best
ones; masks of any size are kept; and those that touch are pieces of one instance (`stages.select`).

`structure_of` is what everything else asks. The driver settles it when a query is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.geometry import Box
from cryosam_dask.kernels.extent import Extent, extent
from cryosam_dask.settings import MatchSettings, Settings
from cryosam_dask.stages import learned, match, sight
from cryosam_dask.stages.match import Pass, Survey
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool, Float32

Structure = Literal["particle", "extended"]

STRUCTURE, THICKNESS, LIKENESS, OWN = "structure", "thickness", "likeness", "own_similarity"
"""Attributes of a query: what it is of; of an extended structure how thick it is, in voxels; and of a borrowed one the
similarity that places must reach, or that the prompted masks have where it was made."""

ALIKE = 0.6
"""A place must be so many times as like the query as the cells of the prompted masks are (their median). The query is
the mean of just these cells, so that other parts of the structure are less like it."""

MOST_UNLIKE = 0.65
"""The least similarity of a piece's mean feature to the query. Means over many voxels are nearly free of noise: pieces
of membranes and filaments have 0.7 to 1, particles that a place was mistaken for 0.3 to 0.65 (built-in models)."""

SHORTEST = 3.0
"""How many times as long as thick an instance must be that was not prompted; a shorter one is a particle."""

CELLS = 2
"""Prompts are as far apart as the structure is thick, or so many cells of the finest ratio if that is more."""


def structure_of(store: RunStore, name: str) -> Structure:
    """What a query is of: "particle" unless it was found, or said, to be of an extended structure."""
    where = layout.query(name)
    told = store.group(where).attrs.get(STRUCTURE) if where in store else None
    return "extended" if told == "extended" else "particle"


def settle(store: RunStore, name: str, settings: MatchSettings, groups: int) -> list[str]:
    """Decide what a prompted query is of, and write it down. Return what a user should know.

    By itself it is an extended structure where more than half of the prompted masks are (`kernels.extent`).
    groups : number of groups that the prompts were segmented in
    """
    attributes = store.group(layout.query(name)).attrs
    if settings.structure == "particle":
        attributes[STRUCTURE] = "particle"
        return []
    if settings.rank == "descriptor":
        return _seen(store, name, settings, groups)
    every = [extent(mask, store.voxel_size) for mask, _ in _prompted(store, name, groups)]
    going_on = [measured for measured in every if measured.form != "compact"]
    if settings.structure == "auto" and 2 * len(going_on) <= len(every):
        attributes[STRUCTURE] = "particle"
        return []
    thickness = float(np.median([measured.thickness for measured in every])) if every else 0.0
    attributes.update({STRUCTURE: "extended", THICKNESS: thickness * 10 / float(np.mean(store.voxel_size))})
    return [_reason(name, going_on[0])] if settings.structure == "auto" else []


def _seen(store: RunStore, name: str, settings: MatchSettings, groups: int) -> list[str]:
    """`settle` where a segmenter of volumes says what each click is on."""
    seen = sight.class_of(store, name, groups)
    extended = settings.structure == "extended" or seen in sight.EXTENDED
    store.group(layout.query(name)).attrs[STRUCTURE] = "extended" if extended else "particle"
    if not extended or settings.structure != "auto":
        return []
    return [
        f"{name}: taken as an extended structure: the click looks like one of a {sight.WORDS[seen]}; "
        "if it is a particle, give --structure particle"
    ]


def _reason(name: str, measured: Extent) -> str:
    form = "thin sheet" if measured.form == "sheet" else "thread or tube"
    return (
        f"{name}: taken as an extended structure: the clicked mask is a {form}, {measured.length:.0f} nm long and "
        f"{measured.thickness:.0f} nm thick; if it is a particle, give --structure particle"
    )


def borrowed(settings: MatchSettings, params: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a query that is borrowed, which is of what it was of where it was made, unless settings say so.

    params : of the loan; `LIKENESS` is among them if it is of an extended structure there, else `OWN` may be
    """
    extended = settings.structure == "extended" or (settings.structure == "auto" and LIKENESS in params)
    told: dict[str, Any] = {STRUCTURE: "extended" if extended else "particle"}
    known = LIKENESS if extended else OWN
    return told | ({known: float(params[known])} if known in params else {})


def effective(store: RunStore, name: str, settings: Settings) -> Settings:
    """The settings that a query is searched for with: those that it was made with, if it is of particles."""
    if structure_of(store, name) == "particle":
        return settings
    spacing = max(thickness(store, name), CELLS * settings.match.ratios[-1])
    return extended(settings, spacing)


def extended(settings: Settings, spacing: float | None = None) -> Settings:
    """Settings for an extended structure: places are ranked by similarity. spacing : of prompts, unless it is set."""
    if settings.match.rank == "descriptor":  # what a segmenter of volumes sees of it comes in pieces, not in prompts
        return settings.replace({"match.structure": "extended"})
    values = {"match.structure": "extended", "match.rank": "similarity"}
    return settings.replace(values | {"match.nms_radius": settings.match.nms_radius or spacing})


def thickness(store: RunStore, name: str) -> float:
    """Median thickness of the prompted masks of an extended structure, in voxels; 0 for a borrowed query."""
    told = store.group(layout.query(name)).attrs.get(THICKNESS)
    return 0.0 if told is None else float(str(told))


def survey(store: RunStore, this: Pass, settings: MatchSettings) -> Survey:
    """The cells of the finest ratio that an extended structure may be at: the threshold is `threshold`."""
    return match.survey(store, this, threshold(store, this.name, settings))


def threshold(store: RunStore, name: str, settings: MatchSettings) -> float:
    """Similarity that places of an extended structure must reach: `likeness`, or more if it is asked for."""
    own = likeness(store, name, settings)
    return settings.tau_sim if own is None else max(settings.tau_sim, own)


def likeness(store: RunStore, name: str, settings: MatchSettings) -> float | None:
    """`ALIKE` of the median similarity of the prompted masks' cells, on the finest ratio; of a borrowed query that of
    the masks where it was made. None where there are no masks."""
    told = store.group(layout.query(name)).attrs.get(LIKENESS)
    if told is not None:
        return float(str(told)) * learned.rescaled(store, name)
    own = own_similarity(store, name, settings)
    return None if own is None else ALIKE * own


def own_similarity(store: RunStore, name: str, settings: MatchSettings) -> float | None:
    """How like the query the prompted masks themselves are: the median similarity of their cells, on the finest ratio;
    of a borrowed query that of the masks where it was made. None where that is not known."""
    told = store.group(layout.query(name)).attrs.get(OWN)
    if told is not None:
        return float(str(told)) * learned.rescaled(store, name)
    ratio = settings.ratios[-1]
    this = match.passes(name, settings)[-1]
    query, mean = match.read_query(store, this)
    volume = FeatureVolume(store)
    seen = [np.empty(0, np.float32)]
    for mask, box in _prompted(store, name):
        cells, inside = _cells(mask, box, ratio)
        seen.append(volume.similarity_block(query, ratio, cells, mean)[inside])
    values: Float32 = np.concatenate(seen)
    return float(np.median(values)) if len(values) else None


def _cells(mask: Bool, box: Box, ratio: int) -> tuple[Box, Bool]:
    """The cells of a ratio that a mask in its box touches, and which of them it fills by half; else the fullest."""
    cells, share = geometry.cell_shares(mask, box, ratio)
    return cells, share >= min(0.5, float(share.max()))


def _prompted(store: RunStore, name: str, groups: int | None = None) -> Iterator[tuple[Bool, Box]]:
    """The masks of the prompted instances in their boxes; there are none of a borrowed query."""
    where, group = layout.query(name), 0
    while group < groups if groups is not None else layout.group(where, group) in store:
        instances = stored.read(store, layout.group(where, group))
        for i in range(len(instances.prompt)):
            yield instances.mask(i), stored.as_box(instances.box[i])
        group += 1
