"""The stages of a run, planned by their own functions on a blueprint of its store, and what their units cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.models.catalog import encoder_entry, encoder_info, segmenter_entry, segmenter_info, volume_info
from cryosam_dask.models.info import SegmenterInfo
from cryosam_dask.planning import costs
from cryosam_dask.planning.estimate import Bulk
from cryosam_dask.planning.waves import Wave
from cryosam_dask.settings import Settings
from cryosam_dask.stages import (
    chain,
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
    recognize,
    segment,
    segment_volume,
    select,
    standardize,
)
from cryosam_dask.stages.base import Region, Stage
from cryosam_dask.stages.cost import Cost
from cryosam_dask.stages.declaration import Command, Declaration
from cryosam_dask.stages.embed import Plane
from cryosam_dask.stages.sight import Sight
from cryosam_dask.store import layout
from cryosam_dask.store.blueprint import blueprint
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.types import AXES, Axis, Shape3

NAME = "query"
PLACES = 100_000
"""The most places that ranking is planned with; with more of them the number of blocks stays the same."""


@dataclass
class StageCost:
    """The cost of one stage.

    units : number of runs of units; seconds : their total, one after the other
    memory : bytes of the largest unit, without the model; model : bytes of the model, once per worker
    """

    name: str
    units: int = 0
    seconds: float = 0.0
    memory: int = 0
    model: int = 0


class Round(NamedTuple):
    """A wave, with the work of each of its turns."""

    wave: Wave
    turns: list[Cost]


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
        self.whole = volume_info(self.settings.propagation.segmenter)
        self.name = NAME
        self.stages: dict[str, StageCost] = {}
        self.bulks: list[Bulk] = []
        self.rounds: list[Round] = []
        self.voxel_bytes = ingest.stored_dtype(source.dtype).itemsize

    def _add(self, name: str, stage: Stage, costs_of: Sequence[Cost]) -> None:
        """Units of a stage, as many as costs, that may run at once."""
        if not costs_of:
            return
        factor = self.factors.get(name, 1.0)
        costs_of = [cost._replace(seconds=factor * cost.seconds) for cost in costs_of]
        total = self.stages.setdefault(name, StageCost(name))
        total.units += len(costs_of)
        total.seconds += sum(cost.seconds for cost in costs_of)
        total.memory = max([total.memory, *(unit.memory for unit in stage.units)])
        total.model = stage.model_memory
        mean = Cost(*(sum(values) / len(costs_of) for values in zip(*costs_of, strict=True)))
        longest = max(cost.seconds for cost in costs_of)
        self.bulks.append(Bulk(name, len(costs_of), mean, longest, costs.EXECUTE))

    def _plan(self, declared: Declaration, stage: Stage, times: float = 1.0) -> None:
        """A stage by the cost that it declares for its units. Kinds and ratios count together."""
        if declared.cost is not None:
            costs = [declared.cost(self, unit) for unit in stage.units]
            self._add(declared.name, stage, [cost._replace(seconds=times * cost.seconds) for cost in costs])

    def _driver(self, name: str, seconds: float) -> None:
        """What the driver does itself."""
        self.bulks.append(Bulk(name, 0, Cost(0.0), driver=seconds))

    def _declared(self, command: Command, per: str) -> None:
        """The stages that a command makes by their declarations alone."""
        for declared in chain.made_alone(command, per):
            if declared.plan is not None:
                if declared.prepare is not None:
                    declared.prepare(self.store, self.settings, self.name)
                self._plan(declared, declared.plan(self.store, self.settings, self.name, ""))

    def ingest(self) -> None:
        stage = ingest.plan(self.source, "", {})
        ingest.prepare(self.store, self.source)
        self._plan(ingest.STAGE, stage)
        self._declared("ingest", "run")

    def features(self) -> None:
        chosen = self.settings.features
        features.prepare(self.store, chosen)
        features.finish(self.store, chosen)
        fitting = standardize.plan(self.shape, chosen, "")
        self._plan(standardize.STAGE, fitting)
        if fitting.units and (slices := standardize.slices_of(fitting, self.shape, chosen)):
            self.bulks[-1] = _cut(self.bulks[-1], len(slices))
        self._plan(features.STAGE, features.plan(self.shape, chosen, ""))
        self._declared("features", "run")

    def encode_seconds(self, axis: Axis) -> float:
        """See `Bench`."""
        return costs.encode_seconds(self.shape, axis, self.settings.features, self.encoder, self.worker)

    def reduce_seconds(self, tokens: int) -> float:
        """See `Bench`."""
        return costs.reduce_seconds(self.encoder, tokens, self.worker)

    def embed_seconds(self, axis: Axis) -> float:
        """See `Bench`."""
        plane = geometry.plane_shape(self.shape, axis)
        return costs.embed_seconds(self.segmenter, plane, self.settings.propagation.precision, self.worker)

    def predict_seconds(self, first: int, further: int) -> float:
        """See `Bench`."""
        precision = self.settings.propagation.precision
        return costs.predict_seconds(self.segmenter, first, further, precision, self.worker)

    def look_seconds(self, shape: Shape3, clicks: int) -> float:
        """See `Bench`."""
        return costs.look_seconds(self.whole, shape, clicks, self.settings.propagation.precision, self.worker)

    @cached_property
    def segmenter(self) -> SegmenterInfo:
        """The segmenter of planes."""
        return segmenter_info(self.settings.propagation.segmenter)

    @property
    def _sight(self) -> Sight:
        """How particles of the diameter are looked at."""
        return Sight.of_diameter(self.diameter)

    def touched(self, region: Region) -> int:
        """See `Bench`."""
        array = self.store.array(region.array)
        counts = (-(-b // c) - a // c for a, b, c in zip(region.start, region.stop, array.chunks, strict=True))
        return math.prod(counts) * math.prod(array.chunks) * array.dtype.itemsize

    def match(self) -> None:
        """Matching as if every cell were evaluated; cells that coarse ratios rule out make it cheaper."""
        volume = FeatureVolume(self.store)
        for this in match.passes(self.name, self.settings.match):
            products = project.plan(self.shape, volume.token_grids, volume.view_channels, this, "")
            project.prepare(self.store, this)
            self._plan(project.STAGE, products)
            match.prepare(self.store, this)
            self._plan(match.STAGE, match.plan(self.shape, volume.token_grids, this, ""))

    def propose(self) -> None:
        """Describing candidates and random places, where they are ranked so; then choosing, which the driver does."""
        if propose.ranks(self.settings.match):
            self._rank()
        if self.settings.match.rank == "descriptor":
            self._plan(
                recognize.STAGE, recognize.plan(self.store, self.name, self.settings.propagation, self._sight, "")
            )
        self._driver("propose", propose.SECONDS)
        self._declared("match", "query")

    def _rank(self) -> None:
        radius = {"radius": self.diameter / 2}
        path = layout.query_array(self.name, "profiles")
        self.store.put(path, np.zeros((1, 1)), ("instance", "shell"), radius)
        count = propose.shortlist_length(self.shape)
        count = min(count, math.prod(geometry.cell_grid(self.shape, self.settings.match.ratios[-1])))
        places = np.random.default_rng(0).uniform(0, np.array(self.shape) - 1, (min(count, PLACES), 3))
        self._plan(rank.STAGE, rank.plan(self.store, self.name, places, ""), max(1.0, count / PLACES))

    def query(self) -> None:
        points = [[n / 2 for n in self.shape]]
        self._plan(query.STAGE, query.plan(self.store, self.name, self.settings.match, 1, points, ""))
        self._declared("query", "query")

    def negatives(self, points: NDArray[np.float64]) -> None:
        """Averaging features over negatives, and describing them."""
        groups = -(-len(points) // self.settings.propagation.group)
        stage = negative.plan(self.store, self.name, self.settings, groups, points.tolist(), "")
        self._plan(negative.STAGE, stage)

    def segment(self, role: segment.Role, points: NDArray[np.float64], waves: list[Wave]) -> None:
        """Embedding and segmenting, in turns; or at once, with a segmenter of volumes."""
        stage = segment.plan(self.shape, self.settings.propagation, "", role, self.name, points)
        if self.whole is not None:
            own = role is segment.PROMPTS
            counts = [len(unit.params["prompts"]) for unit in stage.units]
            self._add(
                "segment", stage, [segment_volume.unit_cost(self, self.whole, n, own, role.compared) for n in counts]
            )
            return
        ends = {turn.group: number for number, wave in enumerate(waves) for turn in wave.turns}
        for number, wave in enumerate(waves):
            self._plan(embed.STAGE, self.embeddings(wave))
            turns = []
            for turn in wave.turns:
                ended = role.compared and ends[turn.group] == number
                pooled = len(stage.units[turn.group].params["prompts"]) if ended else 0
                turns.append(segment.turn_cost(self, turn.first, turn.further, len(turn.planes), pooled))
            self._add("segment", stage, turns)
            self.rounds.append(Round(wave, turns))

    def embeddings(self, wave: Wave) -> Stage:
        """The units that embed a wave's planes."""
        return embed.plan(self.shape, self.settings.propagation, "", wave.planes)

    def plane_bytes(self, axis: Axis) -> int:
        """See `Bench`."""
        plane = geometry.plane_shape(self.shape, axis)
        embedding = math.prod(self.segmenter.embedding_shape(plane)) * self.segmenter.embedding_dtype.itemsize
        return math.prod(plane) + embedding

    @cached_property
    def pool_bytes(self) -> float:
        """See `Bench`."""
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
        sources = [(0, i, i + 1) for i in range(len(points))]
        stage = label.plan(self.store, self.name, self._boxes(points), sources, "")
        label.prepare(self.store, self.name)
        self._driver("select", len(points) * select.SECONDS)
        self._plan(label.STAGE, stage)
        self._declared("segment", "query")

    def label_kinds(self, points: NDArray[np.float64], kinds: int) -> None:
        """Painting the image of all kinds."""
        names = names_of(kinds)
        sources = [(0, i, 1, names[0]) for i in range(len(points))]
        stage = label.plan(self.store, layout.KINDS, self._boxes(points), sources, "", names)
        label.prepare(self.store, layout.KINDS, names)
        self._plan(label.STAGE, stage)

    def _boxes(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """Of particles (n, 3) voxels, as `label.plan` takes them."""
        low = np.maximum(points - self.diameter / 2, 0).astype(np.int64)
        high = np.minimum(points + self.diameter / 2 + 1, self.shape).astype(np.int64)
        return np.concatenate([low, high], axis=1)


def _cut(bulk: Bulk, count: int) -> Bulk:
    """The same work in more units: what the driver does where few would leave workers idle."""
    share = bulk.count / count
    return replace(bulk, count=count, work=Cost(*(share * value for value in bulk.work)), longest=share * bulk.longest)


def names_of(kinds: int) -> list[str]:
    """The names of the kinds in a plan."""
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
