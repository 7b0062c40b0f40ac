"""Segment: groups of prompts → instance masks, by cross-plane self-prompting.

A unit is a group of neighbouring prompts. Prompts of a unit that come to the same plane are decoded together. The unit
works with the planes that are embedded. Where it comes to one that is not, it keeps its state in the store and names
the planes that it waits for. The driver has those embedded and runs the waiting units again. So each plane that some
prompt visits is embedded once, and no other plane is.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.errors import StoreError
from cryosam_dask.kernels.instance import Instance
from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.kernels.tokens import cosine
from cryosam_dask.models.cache import get_segmenter
from cryosam_dask.models.catalog import segmenter_info, volume_info
from cryosam_dask.models.registry import weights_identity
from cryosam_dask.settings import PropagationRules, PropagationSettings
from cryosam_dask.stages import former, learned, seen_masks, segment_volume
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult
from cryosam_dask.stages.cost import PLAIN_READ, Bench, Cost, cost
from cryosam_dask.stages.declaration import Arrays, Command, Declaration, Expected, Part, by_number
from cryosam_dask.stages.embed import Plane, is_compressed, mark_of
from cryosam_dask.stages.sight import Sight, write_tried
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Axis, Json, Point, PromptedSegmenter, Shape3

TURN = 1e-3
"""Seconds per plane that a group comes to: finding and opening its chunk."""


@dataclass(frozen=True)
class Role:
    """What a group of prompts is for: prompts of the user, negatives or proposals.

    stage : name of the stage's declaration
    place : (query's name) → the group in the store for the instances
    compared : whether each instance is given its similarity to the query
    """

    stage: str
    place: Callable[[str], str]
    compared: bool = False

    def stage_name(self, name: str) -> str:
        """Name of the stage for a query."""
        return f"{self.stage}/{name}"


PROMPTS = Role("segment/queries", layout.query)
NEGATIVES = Role("segment/negatives", layout.negatives)
PROPOSALS = Role("segment/instances", layout.instances, compared=True)


def group_prompts(points: NDArray[np.float64], size: int) -> list[list[int]]:
    """Indices of the prompts of each group: neighbours along a Z-order curve of 32-voxel cells, `size` of them."""
    cells = np.maximum(points, 0).astype(np.int64) // 32
    code = np.zeros(len(points), np.int64)
    for bit in range(16):
        for i in range(3):
            code |= ((cells[:, i] >> bit) & 1) << (3 * bit + 2 - i)
    order = np.argsort(code, kind="stable")
    return [order[i : i + size].tolist() for i in range(0, len(order), size)]


def plan(
    shape: Shape3,
    settings: PropagationSettings,
    upstream: str,
    role: Role,
    name: str,
    points: NDArray[np.float64],
    against: Sequence[str] = (),
    sight: Sight | None = None,
    direction: str | None = None,
) -> Stage:
    """One unit per group of prompts.

    Parameters
    ----------
    role : what the points are; name : the query that they are of
    points : (n, 3) prompts in voxels
    against : arrays (n, 3C) of features that instances are also compared with; their content goes into `upstream`
    sight : how a segmenter of volumes looks at them; None for a user's prompts, and for segmenters of planes
    direction : path of what instances are compared with in the place of the query's feature, if that was refined
    """
    whole, where = volume_info(settings.segmenter), role.place(name)
    query = layout.query(name) if role.compared else None
    largest = max((geometry.plane_shape(shape, axis) for axis in AXES), key=lambda s: s[0] * s[1])

    def memory(prompts: int) -> int:
        if whole is not None:
            return segment_volume.unit_memory(whole, prompts) + (layout.CHUNK_BYTES if query else 0)
        return unit_memory(settings, largest, prompts, query is not None)

    units = []
    for index, members in enumerate(group_prompts(points, settings.group)):
        units.append(
            Unit(
                name=f"prompts {index}",
                marks=(index,),
                params={
                    "index": index,
                    "prompts": members,
                    "points": [[float(v) for v in points[i]] for i in members],
                },
                writes=(Region(layout.group(where, index), (), ()),),
                memory=memory(len(members)),
            )
        )
    described = {**settings.model_dump(mode="json"), "weights": weights_identity(settings.segmenter)}
    return Stage(
        role.stage_name(name),
        work if whole is None else work_in_volume,
        {"propagation": described, "points": digest_of(points), "where": where, "query": query}
        | ({"against": list(against)} if against else {})
        | ({"sight": sight.to_json()} if sight else {})
        | ({"direction": direction} if query and direction else {}),
        upstream,
        tuple(units),
        len(units),
        uses_model=True,
        model_memory=(whole or segmenter_info(settings.segmenter)).weights_bytes,
        advice="set propagation.group lower, or give each worker more memory",
    )


def digest_of(points: NDArray[np.float64]) -> str:
    """What a stage's settings say of its prompts (n, 3)."""
    return hashlib.sha256(np.ascontiguousarray(points, "<f8").tobytes()).hexdigest()


def unit_memory(settings: PropagationSettings, plane: tuple[int, int], prompts: int, pooled: bool) -> int:
    """A plane with its embedding as read and as used, a batch of prompts, the walkers, and a chunk of latents where
    instances are pooled."""
    info = segmenter_info(settings.segmenter)
    values = int(np.prod(info.embedding_shape(plane)))
    embedding = values * (2 * info.embedding_dtype.itemsize + (4 if info.uses_torch else 0))
    walkers = 6 * prompts * info.walker_bytes(plane)
    latents = layout.CHUNK_BYTES if pooled else 0
    return BESIDES + embedding + 2 * plane[0] * plane[1] + info.predict_bytes(plane, prompts) + walkers + latents


def pack_marks(marks: Iterable[int], count: int) -> str:
    """Encode which of `count` marks are set, one bit each, in hexadecimal. Short, since it is sent with every unit."""
    there = np.zeros(count, bool)
    there[list(marks)] = True
    return np.packbits(there).tobytes().hex()


def unpack_marks(text: str) -> frozenset[int]:
    """The inverse of `pack_marks`."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    return frozenset(np.flatnonzero(bits).tolist())


def start_planes(shape: Shape3, points: NDArray[np.float64]) -> set[Plane]:
    """The planes that prompts begin on."""
    work = Propagation.start([_point(p) for p in points], shape, PropagationRules())
    return set(work.needed())


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Carry a group on as far as the embedded planes reach; write its instances when all have ended."""
    store = context.store
    chosen = PropagationSettings.model_validate({k: v for k, v in settings["propagation"].items() if k != "weights"})
    where, index = settings["where"], unit.params["index"]
    known, points = _known(store, settings, unit)
    state = layout.state(where, index)
    before = _read_state(store, state)
    if before is not None and len(before["points"]) != len(points):  # other masks were known when it began
        before = None
    propagation = (
        Propagation.start(points, store.shape, chosen) if before is None else Propagation.from_arrays(before, chosen)
    )
    waiting = _advance(context, store, chosen, propagation, unpack_marks(unit.params.get("embedded", "")))
    if waiting:
        _write_state(store, state, propagation.to_arrays())
        return UnitResult({"planes": [[axis, plane] for axis, plane in sorted(waiting)]}, done=False)
    found = _write_instances(store, settings, unit, _in_order(unit, known, propagation.instances()))
    store.delete(state)
    return UnitResult(found)


def work_in_volume(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Segment a group at once, with a segmenter of volumes."""
    store = context.store
    chosen = PropagationSettings.model_validate({k: v for k, v in settings["propagation"].items() if k != "weights"})
    known, points = _known(store, settings, unit)
    if "sight" in settings:
        descriptors = layout.member(settings["query"] or "", "descriptors")
        sight = Sight(**settings["sight"])
        instances = segment_volume.instances_of(store, chosen, context.device, points, sight, descriptors)
        return UnitResult(_write_instances(store, settings, unit, _in_order(unit, known, instances)))
    instances, doubts, tried = segment_volume.prompted(store, chosen, context.device, points)
    kept = [i for i, instance in enumerate(instances) if instance is not None]
    group = layout.group(settings["where"], unit.params["index"])
    write_tried(store, group, [tried[i] for i in kept], [doubts[i] for i in kept])
    return UnitResult(_write_instances(store, settings, unit, instances))


def _known(store: RunStore, settings: Json, unit: Unit) -> tuple[dict[int, Instance | None], list[Point]]:
    """The masks of a unit's prompts that are known, and the points of the others, which are to be segmented."""
    query = settings["query"]
    name = query.rpartition("/")[2] if query else ""
    known = {**seen_masks.masks(store, name, settings, unit), **former.masks(store, name, unit)} if query else {}
    prompted = zip(unit.params["prompts"], unit.params["points"], strict=True)
    return known, [_point(point) for prompt, point in prompted if prompt not in known]


def _in_order(unit: Unit, known: dict[int, Instance | None], segmented: list[Instance | None]) -> list[Instance | None]:
    """The instances of all prompts of a unit in their order."""
    new = iter(segmented)
    return [known[prompt] if prompt in known else next(new) for prompt in unit.params["prompts"]]


def _write_instances(store: RunStore, settings: Json, unit: Unit, instances: list[Instance | None]) -> Json:
    """Write the instances of a group's prompts; how many there are, and how many prompts have none."""
    where, index = settings["where"], unit.params["index"]
    prompted = zip(unit.params["prompts"], instances, strict=True)
    kept = [(prompt, instance) for prompt, instance in prompted if instance is not None]
    query = settings["query"]
    feature = settings.get("direction") or layout.member(query or "", "feature")
    references = [feature, *settings.get("against", ())] if query else []
    vectors = [np.atleast_2d(store.read(path)) for path in references]
    cosines = [_similarities(store, instance, query, np.concatenate(vectors)) for _, instance in kept] if query else []
    # of a refined query they are brought to the scale of the query's own, which others are compared by
    scale = learned.scale(store, settings.get("direction"))
    similarity = [min(float(values[0]) / scale, 1.0) for values in cosines] if query else [1.0] * len(kept)
    if settings.get("against"):
        rivals = np.array([max(values[1:]) for values in cosines], np.float32)
        store.put(layout.instance_array(where, index, stored.RIVAL), rivals, ("instance",))
    stored.write(
        store,
        layout.group(where, index),
        stored.collect(
            [prompt for prompt, _ in kept],
            [instance.box for _, instance in kept],
            [instance.mask for _, instance in kept],
            [instance.score for _, instance in kept],
            similarity,
        ),
    )
    return {"found": len(kept), "lost": len(instances) - len(kept)}


def _advance(
    context: Context,
    store: RunStore,
    settings: PropagationSettings,
    propagation: Propagation,
    embedded: frozenset[int],
) -> set[Plane]:
    """Step through the planes that are embedded. Return the planes that the group then waits for."""
    segmenter = get_segmenter(settings.segmenter, context.device, settings.precision)
    while need := propagation.needed():
        ready = {plane for plane in need if mark_of(store.shape, plane) in embedded}
        if not ready:
            break
        for axis in AXES:
            for way in (1, -1):
                _sweep(store, segmenter, propagation, axis, way, embedded)
    return set(need)


def _sweep(
    store: RunStore,
    segmenter: PromptedSegmenter,
    propagation: Propagation,
    axis: Axis,
    way: int,
    embedded: frozenset[int],
) -> None:
    """Step through the embedded planes of an axis, one after the other: walkers that go the same way come along, so
    that each plane is read once for all that pass it this way."""
    last = -1 if way > 0 else store.shape[geometry.axis_index(axis)]
    while True:
        ahead = [
            plane
            for along, plane in propagation.needed()
            if along == axis and (plane - last) * way > 0 and mark_of(store.shape, (axis, plane)) in embedded
        ]
        if not ahead:
            return
        last = min(ahead, key=lambda plane: plane * way)
        image = functools.partial(store.read, layout.planes(axis), last)
        propagation.step(segmenter, axis, last, store.read(layout.embeddings(axis), last), image)


def _similarities(store: RunStore, instance: Instance, query: str, vectors: Array) -> list[float]:
    """Cosines of the instance's own mean feature with each of (n, 3C) vectors, in the frame that a query was made
    for."""
    mean = store.read(layout.member(query, "mean"))
    box = stored.as_box(np.asarray(instance.box))
    pooled = FeatureVolume(store).pool_block(instance.mask, box) / instance.size
    return [float(_cosine(pooled - mean, vector - mean)) for vector in vectors]


def _cosine(a: Array, b: Array) -> float:
    numerator, squared = np.asarray(a @ b, np.float32), np.asarray(a @ a, np.float32)
    return float(cosine(numerator, squared, float(np.linalg.norm(b))))


def _point(values: Sequence[float] | Array) -> Point:
    z, y, x = (float(v) for v in values)
    return z, y, x


def _write_state(store: RunStore, path: str, arrays: dict[str, Array]) -> None:
    """Write the state as one array that holds an npz file: many small arrays would cost more than the work itself."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    store.put(path, np.frombuffer(file.getvalue(), np.uint8), (f"byte_of_{path.rpartition('/')[2]}",))


def _read_state(store: RunStore, path: str) -> dict[str, Array] | None:
    """Read the state of a group; None if it has just begun, or its state was not written to the end."""
    if path not in store:
        return None
    try:
        packed = store.read(path).tobytes()
    except StoreError:
        return None
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        return dict(arrays)


def turn_cost(bench: Bench, first: int, further: int, planes: int, pooled: int) -> Cost:
    """The cost of a group that goes on until it waits or ends.

    first, further : predictions from points, and from points with the mask of the plane before
    planes : that it reads; pooled : instances whose features are pooled in its end
    """
    plane = sum(bench.plane_bytes(axis) for axis in AXES) / len(AXES)
    if bench.settings.propagation.rule == "plain":  # which looks at embeddings alone
        plane -= sum(math.prod(geometry.plane_shape(bench.store.shape, axis)) for axis in AXES) / len(AXES)
    seconds = bench.predict_seconds(first, further) + planes * TURN
    if is_compressed(segmenter_info(bench.settings.propagation.segmenter)):
        return cost(planes * plane + pooled * bench.pool_bytes, 0, seconds, "embeddings")
    raw = planes * plane
    of_features = cost(pooled * bench.pool_bytes, 0, seconds + raw / PLAIN_READ, "latents")
    return of_features._replace(read=of_features.read + raw)


def _declaration(role: Role, words: str, made_from: tuple[str, ...], command: Command, part: Part) -> Declaration:
    """Prompts, negatives and proposals are segmented alike, each kind by a stage of its own."""

    def expected(store: RunStore, query: str, settings: Json, done: list[int]) -> Expected:
        arrays = (*stored.ARRAYS, stored.RIVAL) if settings.get("against") else stored.ARRAYS
        return ((layout.instance_array(role.place(query), i, array), i) for i in done for array in arrays)

    return Declaration(
        role.stage,
        command,
        words=words,
        part=part,
        per="query",
        made_from=made_from,
        arrays=(
            Arrays(
                layout.pattern(lambda name, index, array: layout.instance_array(role.place(name), index, array)),
                "unit",
                by_number,
            ),
            Arrays(layout.pattern(lambda name, index: layout.state(role.place(name), index)), "state"),
            *(_FORMER if role is PROMPTS else ()),
        ),
        expected=expected,
        places=lambda store, query: (role.place(query), *([layout.former(query)] if role is PROMPTS else [])),
    )


# masks of former proposals are right as long as the query's prompts are
_FORMER = (
    Arrays(layout.pattern(layout.former_places), "state"),
    Arrays(
        layout.pattern(lambda name, index, array: layout.instance_array(layout.former(name), index, array)), "state"
    ),
)


STAGES = (
    _declaration(PROMPTS, "Masks of the prompts", ("features",), "query", "query"),
    _declaration(NEGATIVES, "Masks of the negative points", ("features", "query"), "query", ""),
    _declaration(PROPOSALS, "Masks of the proposals", ("propose",), "segment", "segmentation"),
)
