"""Select: all segmented proposals → the distinct instances that belong to the query, numbered best first.

Several kinds are selected together: of instances of different kinds at one place the best stays, by the rule that also
holds within a kind. Of an extended structure (`stages.structure`) instances that touch are pieces of one, which has one
number and one pick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels import merging
from cryosam_dask.settings import Settings
from cryosam_dask.stages import learned, pieces, propose, structure
from cryosam_dask.stages.declaration import Arrays, Declaration
from cryosam_dask.stages.label import Source
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, picks, reviews
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool, Float32

if TYPE_CHECKING:
    import pandas as pd

SIZE_FACTOR = 2.0
"""An instance that is larger or smaller than the prompted ones by more than this factor is left out."""

SECONDS = 1.2e-3
"""Seconds of the driver for each instance that it selects among: measured with 512, apart and one on the other."""

_NONE = stored.Measured(
    prompt=np.empty(0, np.int64),
    box=np.empty((0, 6), np.int64),
    size=np.empty(0, np.int64),
    quality=np.empty(0, np.float32),
    similarity=np.empty(0, np.float32),
)
"""The instances of a borrowed query that found nothing here: without prompts there are no groups."""


@dataclass(frozen=True)
class Selection:
    """The instances that were chosen for one query: its picks, what `label` paints, and what the user should know.

    Attributes
    ----------
    table : the picks; attributes : that are kept beside them
    boxes, sources : of the instances to paint, worst first; where kinds are told apart, with those of the others
    scores : of the masks of this query among these
    pieces : (n, 3) instance, group, index in the group of each piece of extended structures; None for particles
    """

    name: str
    table: pd.DataFrame
    attributes: dict[str, Any]
    boxes: NDArray[np.int64]
    sources: list[Source]
    notes: list[str]
    scores: Float32
    pieces: NDArray[np.int64] | None = None

    def write(self, store: RunStore) -> None:
        """Write the picks."""
        picks.write(store, self.name, self.table, self.attributes, self.pieces)


@dataclass(frozen=True)
class _Segmented:
    """All instances of one query, and which of them may be kept.

    places : (group, index in the group) of each; score : between instances of any query with the same settings
    rejected : sentences on those that may not
    shortest : voxels of the longest side of an instance of an extended structure, at least
    """

    name: str
    settings: Settings
    places: list[tuple[int, int]]
    measured: stored.Measured
    score: Float32
    prompted: NDArray[np.bool_]
    fitting: NDArray[np.intp]
    masks: stored.Masks
    rejected: list[str] = field(default_factory=list)
    shortest: float = 0.0

    def mask(self, i: int) -> Bool:
        return self.masks.mask(*self.places[i])

    @property
    def extended(self) -> bool:
        """Whether they are pieces of extended structures."""
        return self.settings.match.structure == "extended"

    @property
    def overlap(self) -> float:
        """The share of a mask inside a better one that makes it a duplicate."""
        return share_of_duplicates(self.settings)

    @property
    def rank(self) -> Float32:
        """The order in which instances are kept: what a user clicked first."""
        return np.where(self.prompted, self.score + 1, self.score).astype(np.float32)


def select(store: RunStore, name: str, groups: int, settings: Settings, first: int | None = None) -> Selection:
    """Score the instances, drop those of another size or largely inside better ones, and number the rest.

    The score is that of the prompt where proposals were ranked by their profiles or descriptors, else the similarity of
    the instance's own mean feature with the query, times the segmenter's quality. Sizes are looked at in the first
    case only: proposals that are like the query as a whole have its size. In the second case instances go whose mean
    feature is more similar to a negative's than to the query. Of extended structures that were ranked by similarity
    the score is the similarity alone, which must be `structure.MOST_UNLIKE` at least: how well masks of the three axes
    agree says little where each ends somewhere.

    first : of all prompts only so many, the clicked ones and then the best proposals: what a smaller K gives
    """
    segmented = _find(store, name, groups, settings)
    inside, measured = segmented.fitting, segmented.measured
    if first is not None:
        inside = inside[measured.prompt[inside] < first]
    kept = inside[
        merging.distinct(
            measured.box[inside],
            measured.size[inside],
            segmented.rank[inside],
            lambda i: segmented.mask(int(inside[i])),
            segmented.overlap,
        )
    ]
    kept = kept[np.argsort(-segmented.score[kept], kind="stable")]
    bodies = _bodies(segmented, kept)
    short = _short(int((bodies < 0).sum()))
    kept, bodies = kept[bodies >= 0], bodies[bodies >= 0]
    table, numbers, joined = _numbered(segmented, kept, bodies)
    order = kept[::-1]
    painted: list[Source] = [(*segmented.places[i], n) for i, n in zip(order, numbers[::-1].tolist(), strict=True)]
    attributes = {"segmented": len(segmented.places), "kept": len(table)}
    notes = [_counts(segmented, len(table), len(kept)), *segmented.rejected, *short]
    return Selection(name, table, attributes, measured.box[order], painted, notes, segmented.score[order], joined)


def compete(store: RunStore, groups: Mapping[str, int], settings: Mapping[str, Settings]) -> list[Selection]:
    """`select` for several kinds at once: of instances of different kinds at one place, the best stays.

    Scores of different kinds can be compared: both a calibrated distance and a cosine say how like its own query an
    instance is. A worse instance that lies only partly in a better one of another kind stays, without the voxels that
    they share: `Selection.sources` hold the better ones of all kinds, to be painted over it.

    groups : of each kind, in the order in which kinds are numbered from 1
    """
    every = [_find(store, name, count, settings[name], len(groups)) for name, count in groups.items()]
    kinds = np.concatenate([np.full(len(segmented.fitting), k) for k, segmented in enumerate(every)])
    index = np.concatenate([segmented.fitting for segmented in every])
    boxes = np.concatenate([segmented.measured.box[segmented.fitting] for segmented in every])
    sizes = np.concatenate([segmented.measured.size[segmented.fitting] for segmented in every])
    score = np.concatenate([segmented.score[segmented.fitting] for segmented in every])
    rank = np.concatenate([segmented.rank[segmented.fitting] for segmented in every])
    overlap = np.array([segmented.overlap for segmented in every])[kinds]
    second = np.zeros(len(kinds), np.int64)
    runner_up = np.zeros(len(kinds), np.float32)

    def met(better: int, worse: int) -> None:
        if second[better] == 0 or score[worse] > runner_up[better]:
            second[better], runner_up[better] = kinds[worse] + 1, score[worse]

    kept = merging.distinct(
        boxes, sizes, rank, lambda i: every[kinds[i]].mask(int(index[i])), overlap, kinds=kinds, met=met
    )
    kept = kept[np.lexsort((index[kept], kinds[kept], -score[kept]))]
    numbers = np.zeros(len(kinds), np.int64)
    bodies = np.zeros(len(kinds), np.int64)
    for k, segmented in enumerate(every):
        own = kept[kinds[kept] == k]
        bodies[own] = _bodies(segmented, index[own])
    distinct, kept = kept, kept[bodies[kept] >= 0]
    told = []
    for k, segmented in enumerate(every):
        own = kept[kinds[kept] == k]
        table, numbers[own], joined = _numbered(segmented, index[own], bodies[own])
        # of a structure in pieces the best one's; each number's first is the best, since they come best first
        best = own[np.unique(numbers[own], return_index=True)[1]]
        table["second"] = second[best]
        table["margin"] = (table["score"] - runner_up[best]).astype(np.float32)
        told.append((own, table, joined))
    order = kept[::-1]
    out = []
    for k, (segmented, (own, table, joined)) in enumerate(zip(every, told, strict=True)):
        shown = order[(kinds[order] == k) | _touch(boxes[order], boxes[own])]
        sources = [_source(every[kinds[i]], int(index[i]), int(numbers[i]), kinds[i] == k) for i in shown]
        attributes = {"segmented": len(segmented.places), "kept": len(table), "kinds": list(groups)}
        lost = int((kinds == k).sum()) - int((kinds[distinct] == k).sum())
        notes = [f"{segmented.name}: {_counts(segmented, len(table), len(own))}", *segmented.rejected]
        notes += _short(int((kinds[distinct] == k).sum()) - len(own))
        if lost:
            notes.append(f"{lost} of them left out, largely inside better ones")
        out.append(Selection(segmented.name, table, attributes, boxes[shown], sources, notes, score[own][::-1], joined))
    return out


def _bodies(segmented: _Segmented, kept: NDArray[np.intp]) -> NDArray[np.int64]:
    """The number of the instance that each of the kept masks is of, from 0; −1 for one that is left out after all."""
    if not segmented.extended:
        return np.arange(len(kept))
    boxes, prompted = segmented.measured.box[kept], segmented.prompted[kept]
    return pieces.bodies(boxes, lambda i: segmented.mask(int(kept[i])), prompted, segmented.shortest)


def _numbered(
    segmented: _Segmented, kept: NDArray[np.intp], bodies: NDArray[np.int64]
) -> tuple[pd.DataFrame, NDArray[np.int64], NDArray[np.int64] | None]:
    """The picks of the kept masks, which come best first and are of these bodies; the label of each mask; and
    `Selection.pieces`."""
    table = _table(segmented, kept)
    if not segmented.extended or not len(kept):
        return table, np.arange(1, len(kept) + 1), None
    boxes = segmented.measured.box[kept]
    table, labels = pieces.joined(table, bodies, boxes, lambda i: segmented.mask(int(kept[i])))
    places = np.array([segmented.places[i] for i in kept], np.int64)
    return table, labels, np.column_stack([labels, places])


def _counts(segmented: _Segmented, instances: int, masks: int) -> str:
    of = f"of {len(segmented.places)} segmented"
    if not segmented.extended:
        return f"{instances} instances kept {of}"
    return f"{masks} pieces kept {of}, joined to {instances} where they touch"


def combined(selections: list[Selection]) -> tuple[NDArray[np.int64], list[Source]]:
    """Boxes and sources of all kinds' instances, worst first, each with the number of its kind as its label."""
    boxes, sources, keys = [], [], []
    for number, selection in enumerate(selections, 1):
        own = [i for i, source in enumerate(selection.sources) if len(source) == 3]
        boxes.append(selection.boxes[own])
        sources += [(*selection.sources[i][:2], number, selection.name) for i in own]
        keys.append(np.stack([np.arange(len(own)), np.full(len(own), -number), selection.scores]))
    order = np.lexsort(np.concatenate(keys, axis=1))  # of equals, in the order in which `compete` has them painted
    return np.concatenate(boxes)[order], [sources[i] for i in order]


def _short(count: int) -> list[str]:
    """What is said of pieces that end too soon to be of an extended structure."""
    return [f"{count} of them left out, which end too soon to be of such a structure"] if count else []


def share_of_duplicates(settings: Settings) -> float:
    """The share of a mask inside a better one that makes it a duplicate. Pieces of extended structures are joined
    anyway, so that all that they add is kept."""
    overlap = settings.label.overlap
    return max(overlap, pieces.DUPLICATE) if settings.match.structure == "extended" else overlap


def _source(segmented: _Segmented, i: int, number: int, own: bool) -> Source:
    return (*segmented.places[i], number) if own else (*segmented.places[i], 0, segmented.name)


def _touch(boxes: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of (n, 6) boxes have a voxel in common with one of the others."""
    out = np.zeros(len(boxes), bool)
    for i, box in enumerate(boxes):
        out[i] = ((others[:, :3] < box[3:]) & (others[:, 3:] > box[:3])).all(axis=1).any()
    return out


def _find(store: RunStore, name: str, groups: int, settings: Settings, kinds: int = 1) -> _Segmented:
    """All instances of a query, and which may be kept."""
    where = layout.instances(name)
    parts = stored.read_all_measured(store, [layout.group(where, g) for g in range(groups)]) or [_NONE]
    masks = stored.Masks(store, where, stored.KEPT_BYTES // kinds)
    places = [(g, i) for g, part in enumerate(parts) for i in range(len(part.prompt))]
    every = stored.Measured(
        prompt=np.concatenate([part.prompt for part in parts]),
        box=np.concatenate([part.box for part in parts]),
        size=np.concatenate([part.size for part in parts]),
        quality=np.concatenate([part.quality for part in parts]),
        similarity=np.concatenate([part.similarity for part in parts]),
    )
    given = int(str(store.group(layout.proposals(name)).attrs["given"]))
    prompted = every.prompt < given
    fitting = np.ones(len(places), bool)
    rejected = []
    if settings.match.rank != "similarity":
        score = np.asarray(store.read(layout.proposal_array(name, "scores")))[every.prompt]
        typical = float(np.median(store.read(layout.query_array(name, "sizes"))))
        if settings.match.structure != "extended":
            fitting = prompted | of_size(every.box, every.size, typical, store.shape)
        if strange := int((~fitting).sum()):
            rejected.append(
                f"{strange} of them left out, less than half or more than twice as large as what was prompted"
            )
    else:
        extended = settings.match.structure == "extended"
        score = np.maximum(every.similarity, 0).astype(np.float32)
        if not extended:
            score *= every.quality
        fitting = prompted | (every.similarity >= _rivals(store, where, parts))
        if unlike := int((~fitting).sum()):
            rejected.append(f"{unlike} of them left out, more similar to a negative than to the query")
            if store.group(layout.proposals(name)).attrs.get(propose.FULL):
                best = f"the best {settings.match.count} places (match.count)"
                rejected.append(f"they were among {best}; with more, others may be found")
        if extended:
            like = prompted | (every.similarity >= structure.MOST_UNLIKE)
            if other := int((fitting & ~like).sum()):
                rejected.append(
                    f"{other} of them left out, of something else (similarity below {structure.MOST_UNLIKE})"
                )
            fitting &= like
    fitting &= prompted | ~_rejected(store, name, every.box)
    shortest = structure.SHORTEST * structure.thickness(store, name)
    return _Segmented(
        name, settings, places, every, score, prompted, np.flatnonzero(fitting), masks, rejected, shortest
    )


def _rejected(store: RunStore, name: str, boxes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of (n, 6) boxes have their middle where a person rejected something: a mask may grow back there."""
    _, rejected = learned.decided(store, name)
    middles = (boxes[:, :3] + boxes[:, 3:] - 1) / 2
    return propose.near(middles, rejected, reviews.radius(store, name))


def _rivals(store: RunStore, where: str, parts: list[stored.Measured]) -> Float32:
    """Similarity of each instance to the most similar negative; −∞ where the query has none."""
    rivals = [np.full(len(part.prompt), -np.inf, np.float32) for part in parts]
    for group, values in enumerate(rivals):
        path = layout.instance_array(where, group, stored.RIVAL)
        if len(values) and path in store:
            rivals[group] = store.read(path)
    return np.concatenate(rivals)


def _table(segmented: _Segmented, kept: NDArray[np.intp]) -> pd.DataFrame:
    """The picks: kept instances, best first."""
    import pandas as pd

    measured = segmented.measured
    centers = np.empty((len(kept), 3))
    for n in np.argsort(kept):  # group by group
        centers[n] = merging.center_of_mass(measured.box[kept[n]], segmented.mask(int(kept[n])))
    return pd.DataFrame(
        {
            "z": centers[:, 0],
            "y": centers[:, 1],
            "x": centers[:, 2],
            "score": segmented.score[kept],
            "instance": np.arange(1, len(kept) + 1),
            "size": measured.size[kept],
            "similarity": measured.similarity[kept],
            "quality": measured.quality[kept],
            "prompted": segmented.prompted[kept].astype(np.uint8),
            "group": np.array([segmented.places[i][0] for i in kept], np.int64),
            "member": np.array([segmented.places[i][1] for i in kept], np.int64),
        }
    )


def of_size(
    boxes: NDArray[np.int64], sizes: NDArray[np.int64], typical: float, shape: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """Which (n,) instances have about `typical` voxels; one that the tomogram's border cuts may have fewer."""
    cut = (boxes[:, :3] <= 0).any(axis=1) | (boxes[:, 3:] >= np.array(shape)).any(axis=1)
    result: NDArray[np.bool_] = (sizes <= SIZE_FACTOR * typical) & (cut | (sizes * SIZE_FACTOR >= typical))
    return result


STAGE = Declaration(
    "select",
    "segment",
    per="query",
    made_from=("segment/instances",),
    arrays=(
        Arrays(layout.pattern(layout.pick_column), "driver"),
        Arrays(layout.pattern(layout.piece_column), "driver"),
    ),
    places=lambda store, query: (layout.picks(query),),
)
