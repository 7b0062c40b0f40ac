"""The stages of a run, planned by their own functions on a blueprint of its store, and what their units cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.models.catalog import encoder_entry, encoder_info, segmenter_entry, segmenter_info
from cryosam_dask.planning import costs
from cryosam_dask.planning.scaling import Bulk, Work
from cryosam_dask.planning.waves import Turn, Wave
from cryosam_dask.settings import Settings
from cryosam_dask.stages import (
    embed,
    features,
    ingest,
    label,
    match,
    negative,
    project,
    propose,
    query,
    rank,
    segment,
)
from cryosam_dask.stages.base import Region, Stage, Unit
from cryosam_dask.stages.embed import Plane
from cryosam_dask.store import layout
from cryosam_dask.store.blueprint import blueprint
from cryosam_dask.store.features import FeatureVolume
from cryosam_dask.types import AXES, Axis

NAME = "query"
PLACES = 100_000
"""Places that ranking is planned with, at most: more do not change in how many blocks they lie."""


@dataclass
class StageCost:
    """A stage of the plan.

    units : times that a unit runs; seconds : of all of them, one after the other
    memory : bytes of the largest, without the model; model : bytes of the model, once a worker
    """

    name: str
    units: int = 0
    seconds: float = 0.0
    memory: int = 0
    model: int = 0


class Round(NamedTuple):
    """A wave, with the work of each of its turns."""

    wave: Wave
    turns: list[Work]


class Planner:
    """Plans the stages of one run; its methods are called in the order of the run.

    Attributes
    ----------
    store : holds the run's arrays, without data; diameter : of the particles in voxels
    factors : by stage, what its seconds are multiplied by
    name : of the kind whose stages are planned
    stages : what each costs; bulks : the units of all, in the order of the run
    rounds : the waves of all segmentations, in their order
    """

    def __init__(
        self,
        source: TomogramSource,
        settings: Settings,
        worker: costs.Machine,
        diameter: float,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.settings, self.worker, self.diameter = _without_weights(settings), worker, diameter
        self.factors = factors or {}
        self.source, self.shape = source, source.shape
        self.store = blueprint(
            {"shape": list(source.shape), "voxel_size": list(source.voxel_size), "origin": list(source.origin)}
        )
        self.encoder = encoder_info(self.settings.features.encoder)
        self.segmenter = segmenter_info(self.settings.propagation.segmenter)
        self.name = NAME
        self.stages: dict[str, StageCost] = {}
        self.bulks: list[Bulk] = []
        self.rounds: list[Round] = []
        self.voxel_bytes = ingest.stored_dtype(source.dtype).itemsize

    def _add(self, name: str, stage: Stage, works: Sequence[Work]) -> None:
        """Units of a stage, as many as `works`, that may run at once."""
        if not works:
            return
        factor = self.factors.get(name, 1.0)
        works = [work._replace(seconds=factor * work.seconds) for work in works]
        cost = self.stages.setdefault(name, StageCost(name))
        cost.units += len(works)
        cost.seconds += sum(work.seconds for work in works)
        cost.memory = max([cost.memory, *(unit.memory for unit in stage.units)])
        cost.model = stage.model_memory
        mean = Work(*(sum(values) / len(works) for values in zip(*works, strict=True)))
        self.bulks.append(Bulk(name, len(works), mean, max(work.seconds for work in works), costs.EXECUTE))

    def _driver(self, name: str, seconds: float) -> None:
        """What the driver does itself."""
        self.bulks.append(Bulk(name, 0, Work(0.0), driver=seconds))

    def ingest(self) -> None:
        stage = ingest.plan(self.source, "", {})
        ingest.prepare(self.store, self.source)
        works = []
        for unit in stage.units:
            voxels = _voxels(unit)
            read, stored = voxels * self.source.dtype.itemsize, voxels * self.voxel_bytes * 8 / 7
            works.append(_work(read, stored, voxels * costs.INGEST, "tomogram", coded=False))
        self._add(stage.name, stage, works)

    def features(self) -> None:
        chosen = self.settings.features
        features.prepare(self.store, chosen)
        features.finish(self.store, chosen)
        fitting = features.plan_standardize(self.shape, chosen, "")
        works = []
        for axis in AXES if fitting.units else ():
            one = features.SAMPLES * self._touched(self._plane(axis))
            works.append(_work(one, 0, features.SAMPLES * self._encode_seconds(axis), "features"))
        self._add(fitting.name, fitting, works)
        stage, gram = features.plan(self.shape, chosen, ""), len(layout.GRAM_MAPS) * 4 / (self.encoder.channels * 2)
        works = []
        for unit in stage.units:
            axis, slices = unit.params["axis"], unit.params["stop"] - unit.params["start"]
            read, written = sum(map(self._touched, unit.reads)), (1 + gram) * sum(map(self._bytes, unit.writes))
            works.append(_work(read, written, slices * self._encode_seconds(axis), "features"))
        self._add(stage.name, stage, works)
        dense = features.plan_dense(self.shape, chosen, "")
        values = [_voxels(unit) for unit in dense.units]
        # cells of one chunk touch about as many tokens as they are
        self._add(dense.name, dense, [_work(2 * v, 2 * v, v * costs.CELL, "features") for v in values])

    def _encode_seconds(self, axis: Axis) -> float:
        """One slice of an axis: the encoder, and what its tokens go through after it."""
        chosen = self.settings.features
        tokens = math.prod(features.token_grid(self.shape, axis, chosen, self.encoder.patch))
        own = costs.encode_seconds(self.shape, axis, chosen, self.encoder, self.worker)
        return own + tokens * self.encoder.channels * costs.TOKEN

    def _plane(self, axis: Axis) -> Region:
        """The middle slice of the tomogram along an axis."""
        low, high = [0, 0, 0], list(self.shape)
        index = geometry.axis_index(axis)
        low[index], high[index] = self.shape[index] // 2, self.shape[index] // 2 + 1
        return Region(layout.tomogram(), tuple(low), tuple(high))

    def _bytes(self, region: Region) -> int:
        return _size(region) * self.store.array(region.array).dtype.itemsize

    def _touched(self, region: Region) -> int:
        """Bytes of the whole chunks that a region lies in."""
        array = self.store.array(region.array)
        counts = (-(-b // c) - a // c for a, b, c in zip(region.start, region.stop, array.chunks, strict=True))
        return math.prod(counts) * math.prod(array.chunks) * array.dtype.itemsize

    def match(self) -> None:
        """Matching as if every cell were evaluated: what coarse ratios rule out comes off."""
        volume = FeatureVolume(self.store)
        for this in match.passes(self.name, self.settings.match):
            stage = project.plan(self.shape, volume.token_grids, volume.view_channels, this, "")
            project.prepare(self.store, this)
            works = []
            for unit in stage.units:
                tokens = _voxels(unit)
                read = tokens * volume.view_channels * 2
                works.append(_work(read, 4 * tokens, tokens * volume.view_channels * costs.PRODUCT, "features"))
            self._add("project", stage, works)
            stage = match.plan(self.shape, volume.token_grids, this, "")
            match.prepare(self.store, this)
            tokens = sum(math.prod(self.store.array(layout.gram(this.ratio, axis)).shape[:3]) for axis in AXES)
            share = tokens / math.prod(volume.grid(this.ratio))
            works = [_work(20 * share * n, 4 * n, n * costs.CELL, "features") for n in map(_voxels, stage.units)]
            self._add("match", stage, works)

    def propose(self) -> None:
        """Describing candidates and random places, where they are ranked so; then choosing, which the driver does."""
        if self.settings.match.rank == "profile":
            self._rank()
        self._driver("propose", costs.PROPOSE)

    def _rank(self) -> None:
        radius = {"radius": self.diameter / 2}
        self.store.put(f"{layout.query(self.name)}/profiles", np.zeros((1, 1)), ("instance", "shell"), radius)
        count = max(propose.SHORTLIST, int(propose.SHORTLIST_DENSITY * math.prod(self.shape)))
        count = min(count, math.prod(geometry.cell_grid(self.shape, self.settings.match.ratios[-1])))
        places = np.random.default_rng(0).uniform(0, np.array(self.shape) - 1, (min(count, PLACES), 3))
        stage = rank.plan(self.store, self.name, places, "")
        each = max(1.0, count / PLACES)
        block = math.prod(min(3 * rank.BLOCK // 2, n) for n in self.shape) * self.voxel_bytes
        works = [_work(block, 0, each * len(u.params["points"]) * costs.PLACE, "tomogram") for u in stage.units]
        self._add("rank", stage, works)

    def query(self) -> None:
        points = [[n / 2 for n in self.shape]]
        stage = query.plan(self.store, self.name, self.settings.match, 1, points, "")
        self._add("query", stage, [_work(self.pool_bytes, 0, costs.POOL, "features")])

    def negatives(self, points: NDArray[np.float64]) -> None:
        """Averaging features over negatives, and describing them."""
        chosen = self.settings.match
        groups = -(-len(points) // self.settings.propagation.group)
        stage = negative.plan(self.store, self.name, chosen, groups, points.tolist(), "")
        seconds = costs.POOL * len(points)
        if chosen.rank == "profile":
            seconds += negative.PLACES * len(points) * costs.PLACE
        self._add("negative", stage, [_work(self.pool_bytes * len(points), 0, seconds, "features")])

    def segment(self, where: str, points: NDArray[np.float64], waves: list[Wave]) -> None:
        """Embedding and segmenting, in turns."""
        compared = layout.query(self.name) if where == layout.instances(self.name) else None
        stage = segment.plan(self.shape, self.settings.propagation, "", where, points, compared)
        ends = {turn.group: number for number, wave in enumerate(waves) for turn in wave.turns}
        for number, wave in enumerate(waves):
            planes = self.embeddings(wave)
            self._add(embed.NAME, planes, [self.embedding(unit) for unit in planes.units])
            works = []
            for turn in wave.turns:
                ended = compared is not None and ends[turn.group] == number
                works.append(self._turn(turn, len(stage.units[turn.group].params["prompts"]) if ended else 0))
            self._add("segment", stage, works)
            self.rounds.append(Round(wave, works))

    def embeddings(self, wave: Wave) -> Stage:
        """The units that embed a wave's planes."""
        return embed.plan(self.shape, self.settings.propagation, "", wave.planes)

    def embedding(self, unit: Unit) -> Work:
        """Embedding a bundle of planes."""
        chosen, axis, count = self.settings.propagation, unit.params["axis"], len(unit.marks)
        plane = geometry.plane_shape(self.shape, axis)
        seconds = count * costs.embed_seconds(self.segmenter, plane, chosen.precision, self.worker)
        return _work(sum(map(self._touched, unit.reads)), count * self.plane_bytes(axis), seconds, "embeddings")

    def plane_bytes(self, axis: Axis) -> int:
        """Bytes of one plane of an axis with its embedding."""
        plane = geometry.plane_shape(self.shape, axis)
        embedding = math.prod(self.segmenter.embedding_shape(plane)) * self.segmenter.embedding_dtype.itemsize
        return math.prod(plane) + embedding

    def _turn(self, turn: Turn, pools: int) -> Work:
        """One group in one wave, with the features of `pools` instances pooled in its end."""
        precision = self.settings.propagation.precision
        seconds = costs.predict_seconds(self.segmenter, turn.first, turn.further, precision, self.worker)
        plane = sum(self.plane_bytes(axis) for axis in AXES) / len(AXES)
        count = len(turn.planes)
        return _work(count * plane + pools * self.pool_bytes, 0, seconds + count * costs.TURN, "embeddings")

    @cached_property
    def pool_bytes(self) -> float:
        """Bytes of the chunks of native latents under one instance."""
        total = 0.0
        for axis in AXES:
            array = self.store.array(layout.latents(1, axis))
            lengths = (self.shape[geometry.axis_index(axis)], *geometry.plane_shape(self.shape, axis))
            touched = 1.0
            for length, tokens, chunk in zip(lengths, array.shape, array.chunks, strict=False):
                size = self.diameter * tokens / length + 1
                touched *= min(-(-tokens // chunk), 1 + (size - 1) / chunk)
            total += touched * math.prod(array.chunks) * array.dtype.itemsize
        return total

    def label(self, points: NDArray[np.float64]) -> None:
        """Choosing instances, which the driver does; then painting."""
        low = np.maximum(points - self.diameter / 2, 0).astype(np.int64)
        high = np.minimum(points + self.diameter / 2 + 1, self.shape).astype(np.int64)
        sources = [(0, i, i + 1) for i in range(len(points))]
        stage = label.plan(self.store, self.name, np.concatenate([low, high], axis=1), sources, "")
        label.prepare(self.store, self.name)
        works = [_work(0, 5 * n * 8 / 7, n * costs.LABEL, "labels") for n in map(_voxels, stage.units)]
        self._driver("select", len(points) * costs.SELECT)
        self._add("label", stage, works)

    def label_kinds(self, points: NDArray[np.float64], kinds: int) -> None:
        """Painting the image of all kinds."""
        names = names_of(kinds)
        low = np.maximum(points - self.diameter / 2, 0).astype(np.int64)
        high = np.minimum(points + self.diameter / 2 + 1, self.shape).astype(np.int64)
        sources = [(0, i, 1, names[0]) for i in range(len(points))]
        stage = label.plan(self.store, layout.KINDS, np.concatenate([low, high], axis=1), sources, "", names)
        label.prepare(self.store, layout.KINDS, names)
        works = [_work(0, n * 8 / 7, n * costs.LABEL, "labels") for n in map(_voxels, stage.units)]
        self._add("label", stage, works)


def names_of(kinds: int) -> list[str]:
    """What kinds are called in a plan."""
    return [NAME] if kinds == 1 else [f"{NAME}{i}" for i in range(1, kinds + 1)]


def planes_of(waves: list[Wave]) -> dict[Axis, int]:
    """Planes that are embedded, by axis."""
    planes: set[Plane] = {plane for wave in waves for plane in wave.planes}
    return {axis: sum(a == axis for a, _ in planes) for axis in AXES}


def _without_weights(settings: Settings) -> Settings:
    """The same models, with this file for their weights: stages want weights' digest, and a plan must fetch none."""
    encoder, _ = encoder_entry(settings.features.encoder)
    segmenter, _ = segmenter_entry(settings.propagation.segmenter)
    models = {"features.encoder": encoder, "propagation.segmenter": segmenter}
    return settings.replace(
        {setting: model.name if model.version else f"{model.name}={__file__}" for setting, model in models.items()}
    )


def _size(region: Region) -> int:
    return math.prod(b - a for a, b in zip(region.start, region.stop, strict=True))


def _voxels(unit: Unit) -> int:
    return sum(map(_size, unit.writes))


def _work(read: float, written: float, seconds: float, kind: str, *, coded: bool = True) -> Work:
    """A unit that reads and writes so many bytes; `coded`: what it reads was compressed, as what it writes will be."""
    share = costs.COMPRESSED[kind]
    decoding = read / (costs.READ if coded else costs.COPY)
    return Work(
        costs.UNIT + decoding + written / costs.WRITE + seconds, read * (share if coded else 1.0), written * share
    )
