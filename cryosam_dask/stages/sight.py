"""How a segmenter of volumes looks at a query: at which level and contrast; and what it sees of clicks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.geometry import Box
from cryosam_dask.kernels import hypotheses
from cryosam_dask.kernels.hypotheses import Hypothesis
from cryosam_dask.models.cache import get_volume_segmenter
from cryosam_dask.models.catalog import volume_info
from cryosam_dask.models.info import VolumeInfo
from cryosam_dask.stages.boxes import LEVELS, Boxes, levels_of
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Answers, Array, Bool, Float32, Json, Look, VolumeSegmenter

MARGIN = 10
"""Voxels that a look reaches beyond the masks of its clicks."""

MOST = 2_500_000
"""Voxels of a look that answers several clicks, at most."""

SCORES, QUALITIES, CLASSES, DESCRIPTORS = "seen_scores", "seen_qualities", "seen_classes", "seen_descriptors"
"""Arrays of a group of prompts: what was seen of each instance (n, ways), at each level and contrast."""

DOUBTS = "doubts"
"""Attribute: what is doubtful of each instance of a group of prompts, a list of sentences each."""

WORDS = ("solvent", "particle", "membrane", "filament", "microtubule", "bead of gold")
"""What a segmenter's classes are called."""

EXTENDED = (2, 3, 4)
"""The classes of structures without a size."""

BETTER = 0.05
"""By how much the mask of a click may be better than that of its own middle to be kept instead."""


@dataclass(frozen=True)
class Sight:
    """How a query is looked at.

    level : 2^level voxels of the tomogram are one of the look's; bright : whether particles are brighter
    extended : whether it is of a structure without a size, which is found in pieces, tile by tile
    """

    level: int
    bright: bool
    extended: bool = False

    @classmethod
    def of_query(cls, store: RunStore, name: str, extended: bool = False) -> Sight:
        """As the query was looked at."""
        attributes: Any = store.array(layout.query_array(name, "descriptors")).attrs
        return cls(int(attributes["level"]), bool(attributes["bright"]), extended)

    @classmethod
    def of_diameter(cls, diameter: float) -> Sight:
        """As bright particles of a diameter in voxels are most likely looked at; for planning."""
        level = max(0, math.ceil(math.log2(max(diameter, 1.0) / hypotheses.LARGEST)))
        return cls(min(level, LEVELS - 1), True)

    def to_json(self) -> Json:
        return {"level": self.level, "bright": self.bright, "extended": self.extended}


@dataclass(frozen=True)
class Clicked:
    """What is known of a click: its mask in a window of the level that begins at `low`, and what it is like."""

    hypothesis: Hypothesis
    descriptor: Float32
    low: NDArray[np.int64]
    mask: Bool


def model_of(spec: str, device: str, precision: str) -> tuple[VolumeSegmenter, VolumeInfo]:
    """A segmenter of volumes, loaded, and its entry."""
    info = volume_info(spec)
    assert info is not None
    return get_volume_segmenter(spec, device, precision), info


def clicked(model: VolumeSegmenter, info: VolumeInfo, boxes: Boxes, point: Array) -> Clicked:
    """Look at what a point of the tomogram lies on: its mask is asked for from the point, and again from its middle."""
    own = boxes.from_voxels(point)
    box = boxes.around(own, info.reach + MARGIN, info.multiple)
    start = np.array([a for a, _ in box])
    look = model.look(boxes.read(box))
    place = np.clip(own - start, 0, np.array([b - a for a, b in box]) - 1)[None]
    answers = look.answer(place)
    if answers.size[0]:
        again = look.answer(answers.middle)
        if again.size[0] and again.quality[0] >= answers.quality[0] - BETTER:
            place, answers = answers.middle, again
    low, mask = look.masks(place)[0]
    seen = _hypothesis(boxes, answers, int(mask.sum()), look.clarity)
    return Clicked(seen, answers.descriptor[0], low + start, mask)


def _hypothesis(boxes: Boxes, answers: Answers, size: int, clarity: float) -> Hypothesis:
    diameter = 2 * geometry.equivalent_radius(size)
    classes = tuple(float(v) for v in answers.classes[0])
    return Hypothesis(boxes.level, boxes.bright, float(answers.quality[0]), classes, diameter, clarity)


def every_hypothesis(model: VolumeSegmenter, info: VolumeInfo, store: RunStore, point: Array) -> list[Clicked]:
    """What a point lies on, at each level and contrast."""
    return weighed([clicked(model, info, boxes, point) for boxes in every_way(store)])


def every_way(store: RunStore) -> list[Boxes]:
    """The levels and contrasts that a click is looked at in."""
    return [Boxes(store, level, bright) for bright in (True, False) for level in levels_of(store.shape)]


def weighed(seen: list[Clicked]) -> list[Clicked]:
    """What was seen in several ways, weighed against each other."""
    weighed = hypotheses.weighed([one.hypothesis for one in seen])
    return [replace(one, hypothesis=hypothesis) for one, hypothesis in zip(seen, weighed, strict=True)]


def best(tried: list[Clicked]) -> tuple[Clicked, list[str]]:
    """The best of them, and why it may not be what was meant."""
    every = [one.hypothesis for one in tried]
    number = hypotheses.best(every)
    return tried[number], hypotheses.doubts(every, number)


def write_tried(store: RunStore, group: str, tried: list[list[Clicked]], doubts: list[list[str]]) -> None:
    """Write what was seen of a group's instances, on every level and in both contrasts: `describe_query` chooses.

    doubts : about each of them
    """
    every = [[one.hypothesis for one in clicks] for clicks in tried]
    first = every[0] if every else []
    ways = {"levels": [h.level for h in first], "bright": [h.bright for h in first], DOUBTS: doubts}

    def put(array: str, values: list[Any], *dims: str) -> None:
        full = np.asarray(values, np.float32).reshape(len(every), len(first), *([-1] if dims else []))
        store.put(layout.member(group, array), full, ("instance", "way", *dims), ways)

    put(SCORES, [[h.score for h in each] for each in every])
    put(QUALITIES, [[h.quality for h in each] for each in every])
    put(CLASSES, [[h.classes for h in each] for each in every], "class")
    put(DESCRIPTORS, [[one.descriptor for one in clicks] for clicks in tried], "component")


def class_of(store: RunStore, name: str, groups: int) -> int:
    """The class that most of the clicks are on, by the best look at each; `WORDS` says it."""
    where = layout.query(name)
    kinds = [hypotheses.PARTICLE]
    for group in (layout.group(where, g) for g in range(groups)):
        scores = store.read(layout.member(group, SCORES))
        if len(scores):
            classes = store.read(layout.member(group, CLASSES))[np.arange(len(scores)), scores.argmax(axis=1)]
            kinds += (1 + classes[:, 1:].argmax(axis=1)).tolist()
    return int(np.bincount(kinds[1:] or kinds).argmax())


def describe_query(store: RunStore, name: str, groups: int) -> None:
    """Write the descriptors of a query's clicks, all as seen at the level and contrast that suit them best together.

    groups : number of groups that the prompts were segmented in
    """
    where = layout.query(name)

    def every(array: str) -> Array:
        return np.concatenate([store.read(layout.instance_array(where, g, array)) for g in there])

    there = [g for g in range(groups) if store.array(layout.instance_array(where, g, SCORES)).shape[0]]
    ways: Any = store.array(layout.instance_array(where, there[0], SCORES)).attrs
    way = int(np.argmax(every(SCORES).sum(axis=0)))
    described = {
        "level": int(ways["levels"][way]),
        "bright": bool(ways["bright"][way]),
        "classes": every(CLASSES)[:, way].mean(axis=0).tolist(),
        "quality": every(QUALITIES)[:, way].tolist(),
    }
    store.put(layout.query_array(name, "descriptors"), every(DESCRIPTORS)[:, way], ("instance", "component"), described)


def describe(
    store: RunStore, device: str, settings: Json, sight: Sight, points: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The descriptors (n, D) of points as a query is seen; settings : with the segmenter and its precision."""
    model, info = model_of(settings["segmenter"], device, settings["precision"])
    boxes = Boxes(store, sight.level, sight.bright)
    seen = [clicked(model, info, boxes, point).descriptor for point in points]
    return np.asarray(seen, np.float32).reshape(len(seen), -1)


def looks(
    model: VolumeSegmenter, info: VolumeInfo, boxes: Boxes, points: NDArray[np.float64]
) -> Iterator[tuple[list[int], NDArray[np.int64], Look]]:
    """Looks that answer clicks (n, 3) of the tomogram: which of them, the first voxel of the look, and the look.

    Neighbouring clicks share one where that is less to look at than one for each.
    """
    each = [boxes.around(p, info.reach + MARGIN, info.multiple) for p in boxes.from_voxels(points)]
    for members in _shared(each, list(range(len(each)))):
        box = _union([each[i] for i in members])
        yield members, np.array([a for a, _ in box]), model.look(boxes.read(box))


def _shared(boxes: list[Box], members: list[int]) -> list[list[int]]:
    """Groups of members that share a look."""
    if not members:
        return []
    together = _voxels(_union([boxes[i] for i in members]))
    if len(members) == 1 or (together <= MOST and together <= sum(_voxels(boxes[i]) for i in members)):
        return [members]
    half = len(members) // 2
    return [*_shared(boxes, members[:half]), *_shared(boxes, members[half:])]


def _union(boxes: list[Box]) -> Box:
    z, y, x = ((min(b[i][0] for b in boxes), max(b[i][1] for b in boxes)) for i in range(3))
    return z, y, x


def _voxels(box: Box) -> int:
    return int(np.prod([b - a for a, b in box]))
