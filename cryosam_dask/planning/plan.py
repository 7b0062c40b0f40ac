"""`plan_run`: a whole run's plan, as data."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import SettingsError
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.planning import costs
from cryosam_dask.planning.estimate import Bulk, Cluster, Limit, estimate
from cryosam_dask.planning.many import ManyRuns, estimate_many
from cryosam_dask.planning.stages import Planner, StageCost, names_of, planes_of
from cryosam_dask.planning.waves import Reach, Wave, plane_reach, play, spread, walk_length
from cryosam_dask.settings import Settings
from cryosam_dask.stages import chain, embed, origin, segment, structure
from cryosam_dask.stages.cost import COMPRESSED
from cryosam_dask.stages.embed import Plane
from cryosam_dask.store import layout
from cryosam_dask.store.blueprint import array_sizes
from cryosam_dask.types import AXES

WORKERS = tuple(1 << i for i in range(9))
ASSUMED_COUNT = 512
"""Number of prompts that a plan assumes where the program is to choose it."""

DIAMETER = 250.0
"""Diameter of a ribosome in ångström."""


@dataclass(frozen=True)
class Measured:
    """An earlier run, as a measure for planning.

    url : its store; where : what it ran on, for people
    factors : by stage, the seconds that a unit took over those that its plan gives
    density : number of prompts that its matching proposed, per voxel
    settings : those of its query, of the first one if it has several
    """

    url: str
    where: str
    factors: Mapping[str, float]
    density: float
    settings: Settings


@dataclass(frozen=True)
class Options:
    """The options of a plan.

    workers : numbers of workers to give times for; machine : the speed of a worker
    diameter : the particles' diameter in ångström; driver_seconds : the driver's time for each unit
    bandwidth : bytes per second of the storage that all workers share
    like : an earlier run to go by
    kinds : number of kinds that are clicked; negatives : number of negative points besides the clicks on other kinds
    tomograms : number of tomograms like this one; at_once : how many of them go on at once, None: as `run` chooses
    """

    workers: tuple[int, ...] = WORKERS
    machine: costs.Machine = costs.MACHINES["cpu"]
    diameter: float = DIAMETER
    driver_seconds: float = 2e-3
    bandwidth: float = math.inf
    like: Measured | None = None
    kinds: int = 1
    negatives: int = 0
    tomograms: int = 1
    at_once: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.kinds <= layout.MOST_KINDS or self.negatives < 0:
            raise SettingsError(
                f"{self.kinds} kinds and {self.negatives} negatives: expected 1 to {layout.MOST_KINDS}, and 0 or more"
            )
        if self.tomograms < 1 or (self.at_once is not None and self.at_once < 1):
            raise SettingsError(f"{self.tomograms} tomograms, {self.at_once or 0} at once: expected 1 or more")
        if not self.workers or min(self.workers) < 1:
            raise SettingsError(f"workers {','.join(map(str, self.workers))}: expected numbers from 1, as 1,8,64")
        for name, value, least in (
            ("diameter", self.diameter, 1e-6),
            ("bandwidth", self.bandwidth, 1e-6),
            ("driver seconds per unit", self.driver_seconds, 0.0),
        ):
            if not value >= least or (name != "bandwidth" and math.isinf(value)):
                raise SettingsError(f"{name} {value:g}: expected {'0 or more' if least == 0 else 'a number above 0'}")


def worker_counts(text: str) -> tuple[int, ...]:
    """Numbers of workers, as `1,8,64`; `SettingsError` for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(f"workers {text}: expected whole numbers separated by commas, as 1,8,64") from None


@dataclass(frozen=True)
class Stored:
    """A kind of arrays: bytes before and (estimated) after compression, and chunks, which are files or objects."""

    kind: str
    bytes: int
    compressed: int
    chunks: int


@dataclass(frozen=True)
class Time:
    """Wall time on some workers, the stage that takes most of it, and what limits that stage."""

    workers: int
    seconds: float
    stage: str
    stage_seconds: float
    limit: Limit


@dataclass(frozen=True)
class Plan:
    """What a run will cost. `notes` say what was assumed; `bulks` are its units in their order, for `estimate`; `many`
    is the time of all tomograms, where there are several."""

    shape: tuple[int, int, int]
    dtype: str
    voxel_size: tuple[float, float, float]
    models: str
    prompts: int
    options: Options
    stages: tuple[StageCost, ...]
    stored: tuple[Stored, ...]
    planes: Reach
    waves: int
    times: tuple[Time, ...]
    notes: tuple[str, ...]
    bulks: tuple[Bulk, ...]
    many: tuple[ManyRuns, ...] = ()


def plan_run(source: TomogramSource, settings: Settings, options: Options | None = None) -> Plan:
    """Plan a run of one prompt for each kind. Reads the tomogram's header only; needs no weights, no torch, no store.

    Raises `SettingsError` or `ModelError` for invalid settings and models, and for settings that differ from those of
    the earlier run in `like`.
    """
    chosen = options or Options()
    if chosen.like is not None and _models(settings) != _models(chosen.like.settings):
        raise SettingsError(
            f"{chosen.like.url} was made with {_models(chosen.like.settings)}, and says nothing of what "
            f"{_models(settings)} takes; leave --models out, or --like"
        )
    diameter = chosen.diameter / float(np.mean(source.voxel_size))
    if diameter > max(source.shape):
        raise SettingsError(
            f"diameter {chosen.diameter:g} Å is {diameter:.0f} voxels, more than the tomogram's {max(source.shape)}; "
            "give that of the particles"
        )
    if settings.match.structure == "extended":
        settings = structure.extended(settings)
    planner = Planner(source, settings, chosen.machine, diameter, chosen.like.factors if chosen.like else {})
    like = chosen.like
    points, waves = plan_stages(
        planner,
        max(1, round(like.density * math.prod(source.shape))) if like else ASSUMED_COUNT,
        chosen.kinds,
        chosen.negatives,
    )
    return Plan(
        source.shape,
        str(source.dtype),
        source.voxel_size,
        settings.preset,
        len(points),
        chosen,
        tuple(planner.stages.values()),
        tuple(_stored(planner, waves, len(points), diameter)),
        plane_reach(source.shape, waves, len(points), settings.propagation, diameter),
        len(waves),
        tuple(_time(planner.bulks, n, chosen) for n in chosen.workers),
        tuple(_notes(settings, chosen, diameter, len(points) // chosen.kinds - 1)),
        tuple(planner.bulks),
        tuple(_many(planner.bulks, n, chosen) for n in chosen.workers) if chosen.tomograms > 1 else (),
    )


def plan_stages(
    planner: Planner, assumed: int = ASSUMED_COUNT, kinds: int = 1, negatives: int = 0
) -> tuple[NDArray[np.float64], list[Wave]]:
    """Plan all stages in their order; the prompts (n, 3) of all kinds' proposals, the clicks first, and all waves.

    assumed : number of prompts of a kind where the run itself chooses it
    """
    shape, chosen = planner.shape, planner.settings
    click = np.array([[n // 2 for n in shape]], float)
    count = assumed if chosen.match.count == "auto" else chosen.match.count
    proposed = spread(shape, count * kinds)
    unlike = np.repeat(click, negatives + kinds - 1, axis=0)
    embedded: set[Plane] = set()
    waves: list[Wave] = []
    length, size = walk_length(planner.diameter), chosen.propagation.group

    def propagate(role: segment.Role, points: NDArray[np.float64]) -> None:
        groups = segment.group_prompts(points, size)
        played = [] if planner.whole is not None else play(shape, points, groups, length, embedded)
        planner.segment(role, points, played)
        waves.extend(played)

    planner.ingest()
    planner.features()
    names = names_of(kinds)
    for name in names:
        planner.name = name
        propagate(segment.PROMPTS, click)
        planner.query()
        if len(unlike):
            propagate(segment.NEGATIVES, unlike)
            planner.negatives(unlike)
    every = [np.concatenate([click, proposed[i::kinds]]) for i in range(kinds)]
    for name in names:
        planner.name = name
        planner.match()
        planner.propose()
    for name, points in zip(names, every, strict=True):
        planner.name = name
        propagate(segment.PROPOSALS, points)
    for name, points in zip(names, every, strict=True):
        planner.name = name
        planner.label(points)
    points = np.concatenate([np.repeat(click, kinds, axis=0), *(each[1:] for each in every)])
    if kinds > 1:
        planner.label_kinds(points, kinds)
    return points, waves


def to_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON: bytes and seconds, without its bulks; a bandwidth that is not limited is null."""
    out = asdict(plan)
    del out["bulks"]
    if math.isinf(plan.options.bandwidth):
        out["options"]["bandwidth"] = None
    return out


def _stored(planner: Planner, waves: list[Wave], prompts: int, diameter: float) -> list[Stored]:
    """All arrays by kind; embeddings of the planes that are expected to be embedded."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for array in array_sizes(planner.store):
        kind = _kind(array.path)
        sums[kind][0] += array.bytes
        sums[kind][1] += array.chunks
    for axis, count in planes_of(waves).items() if waves else ():
        sums["embeddings"][0] += count * planner.plane_bytes(axis)
        sums["embeddings"][1] += 2 * count
    # the masks' bits in their bounding boxes
    sums["instances"][0] += prompts * (diameter + 1) ** 3 / 8
    sums["instances"][1] += 8 * -(-prompts // planner.settings.propagation.group)
    declared = [arrays.holds for stage in chain.STAGES for arrays in stage.arrays if arrays.holds]
    kinds = [kind for kind in dict.fromkeys((*declared, "instances", "other")) if kind in sums]
    return [Stored(k, round(sums[k][0]), round(sums[k][0] * _share(planner, k)), round(sums[k][1])) for k in kinds]


def _share(planner: Planner, kind: str) -> float:
    if kind == "embeddings":
        return planner.segmenter.embedding_share if embed.is_compressed(planner.segmenter) else 1.0
    return COMPRESSED.get(kind, 1.0)


def _kind(path: str) -> str:
    """The name of a kind of array, for people."""
    owner = origin.owner_of(path)
    return owner[1].holds if owner is not None and owner[1].holds else "other"


def _cluster(workers: int, options: Options) -> Cluster:
    return Cluster(workers, options.driver_seconds, options.bandwidth)


def _many(order: list[Bulk], workers: int, options: Options) -> ManyRuns:
    return estimate_many(order, _cluster(workers, options), options.tomograms, options.at_once)


def _time(order: list[Bulk], workers: int, options: Options) -> Time:
    cluster = _cluster(workers, options)
    seconds: dict[str, float] = defaultdict(float)
    by_limit: dict[tuple[str, Limit], float] = defaultdict(float)
    for bulk in order:
        took, what = estimate(bulk, cluster)
        seconds[bulk.stage] += took
        by_limit[bulk.stage, what] += took
    stage = max(seconds, key=lambda name: seconds[name])
    what = max((pair for pair in by_limit if pair[0] == stage), key=lambda pair: by_limit[pair])[1]
    return Time(workers, sum(seconds.values()), stage, seconds[stage], what)


def _models(settings: Settings) -> str:
    """The names of the models, without the paths of weights."""
    specs = settings.features.encoder, settings.propagation.segmenter
    return "+".join(spec.partition("=")[0] for spec in specs)


def _notes(settings: Settings, options: Options, diameter: float, count: int) -> list[str]:
    axes = ", ".join(AXES)
    assumed = f"speed of a worker: {options.machine.name}, {options.machine.basis}; seconds are good to a factor of two"
    if (like := options.like) is not None:
        assumed = f"seconds of {', '.join(like.factors)} go by what {like.url} took on {like.where}"
    notes = [
        assumed,
        f"planes: {count} prompts spread evenly, {2 * walk_length(diameter) + 1} planes of each of {axes} for a "
        f"particle of {options.diameter:g} Å ({diameter:.0f} voxels)",
        "matching: as if every cell were evaluated; cells that a coarser ratio rules out cost nothing",
    ]
    if settings.match.count == "auto":
        basis = "are assumed" if like is None else "follow from those of that run"
        notes.append(f"K is chosen by the run itself; {count} prompts {basis}, --count says otherwise")
    if settings.match.structure == "extended":
        notes.append("an extended structure: K grows with its area, a prompt for each patch as wide as it is thick")
    if options.kinds > 1:
        notes.append(f"{options.kinds} kinds, so many prompts for each; their clicks are negative points of each other")
    if math.isinf(options.bandwidth):
        notes.append("the storage is taken to be as fast as the workers ask; --bandwidth says otherwise")
    return notes
