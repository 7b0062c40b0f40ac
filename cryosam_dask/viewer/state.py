"""What a run says of itself to the page: its tomogram, and each kind's query, similarity, candidates and picks.

Whatever is asked for again and again is read again only where a file that shows a change has changed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from cryosam_dask.errors import CryosamError
from cryosam_dask.kernels import images
from cryosam_dask.kernels.instance import Instance
from cryosam_dask.kernels.standing_out import UNKNOWN
from cryosam_dask.pipeline import checks
from cryosam_dask.settings import Settings
from cryosam_dask.stages import borrow, doubts, ingest, label, learned, match, negative, propose, query, refine, segment
from cryosam_dask.stages import cut as cuts
from cryosam_dask.stages.click import Mask
from cryosam_dask.storage.address import is_local
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, marks, picks
from cryosam_dask.store.clicks import Kind
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Json, Point

T = TypeVar("T")

SIGMAS = 6
"""Deviations from the mean beyond which densities are shown like the last of them."""

REMOTE = 5.0
"""Seconds for which the state of a run in object storage is not asked for again."""

SLICES = 3.0
"""Seconds between two times that slices of an ingest that goes on are shown."""

SAMPLED = 64
"""Boxes of the tomogram whose statistics stand for all while it is ingested."""


@dataclass
class KindState:
    """What a run has of one kind.

    Attributes
    ----------
    made : whether the query is finished; points, negatives : (n, 3) voxels that it is made from
    borrowed : whether it was made in another tomogram
    settings : that it is searched for with; None before it is made
    count : of candidates, where that was chosen
    refined : whether decisions were learned from; learned : those places, and whether they were accepted
    size : voxels of a typical mask, 0 where it is not known
    similarity, candidates, picks : as of the snapshot, None where there are none
    numbers : of picks, by their positions as they are listed
    """

    made: bool = False
    begun: bool = False
    points: list[list[float]] = field(default_factory=list)
    negatives: list[list[float]] = field(default_factory=list)
    borrowed: bool = False
    settings: Settings | None = None
    count: int | None = None
    refined: bool = False
    learned: dict[Point, bool] = field(default_factory=dict)
    size: float = 0.0
    similarity: Json | None = None
    candidates: Json | None = None
    picks: Json | None = None
    numbers: dict[Point, int] = field(default_factory=dict)


class RunState:
    """Reads the state of the run at a URL. Not for several threads at once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._kept: dict[str, tuple[object, float, Any]] = {}
        self._slices: tuple[float, str] = (0.0, "")
        self._watched: RunStore | None = None

    def store(self) -> RunStore | None:
        """The run, opened anew; None where there is none (yet)."""
        try:
            return RunStore.open(self.url)
        except CryosamError:
            return None

    def kind(self, store: RunStore, name: str) -> KindState:
        """What there is of a kind."""
        return self._once(f"kind {name}", store, _files_of(store, name), lambda: read_kind(store, name))

    def prompted(self, store: RunStore, name: str) -> dict[int, Mask]:
        """The masks of a query's prompts; see `prompted`."""
        files = [f"{layout.marks(query.stage_name(name))}/{file}" for file in ("zarr.json", "c")]
        return self._once(f"prompted {name}", store, files, lambda: prompted(store, name))

    def names(self, store: RunStore) -> list[str]:
        """Names of the run's queries."""
        return self._once("names", store, [layout.QUERIES], lambda: store.groups(layout.QUERIES))

    def tomogram(self, store: RunStore) -> Json | None:
        """Range and window of the densities, the number of levels, and a version that changes as slices come; None
        before the first of them."""
        if "statistics" in store.info:
            told = store.info["statistics"]
            record = marks.found_stage(store, ingest.NAME) or {}
            version = str(record.get("fingerprint", "0"))[:12]
        else:
            done = marks.done(store, ingest.NAME) if marks.is_there(store, ingest.NAME) else np.zeros(0, bool)
            if not done.any():
                return None
            version = self._slowly(f"part{int(done.sum())}")
            told = self._once("part", store, [], lambda: _partly(store, done))
        low, high = (told["mean"] + sign * SIGMAS * told["std"] for sign in (-1, 1))
        low, high = max(low, told["minimum"]), min(high, told["maximum"])
        levels = layout.level_count(store.shape)
        window = [max(low, told["low"]), min(high, told["high"])]
        return {"range": [low, high], "window": window, "levels": levels, "version": version}

    def _slowly(self, version: str) -> str:
        now = time.monotonic()
        if not self._slices[1] or now - self._slices[0] > SLICES:
            self._slices = now, version
        return self._slices[1]

    def _once(self, key: str, store: RunStore, files: list[str], read: Callable[[], T]) -> T:
        """What was read, until one of some files has changed."""
        now = time.monotonic()
        known = self._kept.get(key)
        if known is not None and not is_local(self.url) and now - known[1] < REMOTE:
            return known[2]  # type: ignore[no-any-return]
        stamp = [store.stamp(path) for path in files]
        if known is None or known[0] != stamp or not is_local(self.url):
            known = stamp, now, read()
            self._kept[key] = known
        return known[2]

    def forget(self) -> None:
        """Read everything again."""
        self._kept.clear()
        self._watched = None

    def signs(self) -> object:
        """What is another once anybody has clicked, decided, or run a command: few requests, however large the run."""
        store = self._watched = self._watched or RunStore.open(self.url)
        written = [store.stamp("zarr.json"), store.stamp(f"{layout.JOURNAL}/zarr.json")]
        return [*written, store.stamps(layout.CLICKS), store.stamps(layout.REVIEWS)]


def same_clicks(kind: Kind, state: KindState) -> bool:
    """Whether a query is made from just the clicks that there are; a borrowed one has none of its own."""
    positive, negative = kind.points(True), kind.points(False)
    return (state.points == positive or (state.borrowed and not positive)) and state.negatives == negative


def _files_of(store: RunStore, name: str) -> list[str]:
    """Files and folders of which one changes whenever the state of a kind does."""
    stages = [query.stage_name(name), negative.stage_name(name), refine.STAGE.stage_name(name)]
    stages += [f"{match.STAGE.stage_name(name)}/r{ratio}" for ratio in (1, 2, 4, 8, 16)]
    stages += [segment.PROPOSALS.stage_name(name), label.stage_name(name)]
    groups = [layout.query(name), layout.proposals(name), layout.picks(name), layout.labels_group(name)]
    of_stages = [f"{layout.marks(stage)}/{file}" for stage in stages for file in ("zarr.json", "c")]
    return [*(f"{group}/zarr.json" for group in groups), *of_stages]


def read_kind(store: RunStore, name: str) -> KindState:
    """What there is of a kind; what can't be read (just now) is not there."""
    out = KindState()
    where = layout.query(name)
    try:
        if where not in store:
            return out
        begun = marks.found_stage(store, query.stage_name(name))
        out.begun = True
        out.borrowed = borrow.origin(store, name) is not None
        out.negatives = negative.given(store, name)
        out.points = [[float(v) for v in p] for p in (begun or {}).get("settings", {}).get("points") or []]
        out.settings = checks.queried(store, name)
        count = store.group(where).attrs.get(checks.COUNT)
        out.count = None if count is None else int(str(count))
        out.made = True
    except (CryosamError, OSError, ValueError, KeyError, TypeError):
        return out
    for read in (_read_size, _read_similarity, _read_candidates, _read_picks):
        try:
            read(store, name, out)
        except (CryosamError, OSError, ValueError, KeyError, TypeError):  # it is being replaced
            continue
    return out


def _read_size(store: RunStore, name: str, out: KindState) -> None:
    out.refined = learned.is_there(store, name)
    for accepted, places in zip((True, False), learned.decided(store, name), strict=True):
        out.learned |= dict.fromkeys(map(tuple, places.tolist()), accepted)
    sizes = layout.query_array(name, "sizes")
    out.size = float(np.median(store.read(sizes))) if sizes in store else 0.0


def listed(position: ArrayLike) -> Point:
    """A pick's position, as the page lists it: decisions have it from there."""
    z, y, x = np.round(np.asarray(position, float), 2).tolist()
    return z, y, x


def _read_similarity(store: RunStore, name: str, out: KindState) -> None:
    assert out.settings is not None
    last = match.passes(name, out.settings.match)[-1]
    stage = match.stage_name(name, last.ratio)
    record = marks.found_stage(store, stage)
    if record is not None and bool(marks.done(store, stage).all()):
        threshold = learned.searched(store, name, out.settings.match).tau_sim
        out.similarity = {"version": str(record["fingerprint"])[:12], "threshold": threshold, "ratio": last.ratio}


def _read_candidates(store: RunStore, name: str, out: KindState) -> None:
    every = propose.read_candidates(store, name)
    points, upstream = propose.read(store, name)
    if every is None or out.settings is None:
        return
    attributes = store.group(layout.proposals(name)).attrs
    given = int(str(attributes["given"]))
    kept = len(points) - given
    version = hashlib.sha256(points.tobytes() + every[1].tobytes() + upstream.encode()).hexdigest()[:12]
    told = propose.read_cut(store, name)
    if told is None and len(every[1]):
        automatic = out.settings.match.model_copy(update={"count": "auto"})
        told = cuts.find(np.asarray(every[1], float), automatic, UNKNOWN)
    threshold = None if told is None or not np.isfinite(told.threshold) else told.threshold
    scores = store.read(layout.proposal_array(name, "scores"))[given:]
    counted = attributes.get(propose.CUT) is None
    chosen = (float(scores.min()) if len(scores) else None) if counted else threshold
    words = f"the best {out.settings.match.count} places" if counted else ("" if told is None else told.reason)
    out.candidates = {
        "version": version,
        "count": len(every[1]),
        "cut": {"automatic": threshold, "chosen": chosen, "words": words, "clear": told is None or told.clear},
        "kept": kept,
    }


def _read_picks(store: RunStore, name: str, out: KindState) -> None:
    stage, painted = segment.PROPOSALS.stage_name(name), label.stage_name(name)
    where = layout.picks(name)
    if where in store and marks.all_done(store, painted):
        attributes = store.group(where).attrs
        count = int(str(attributes["kept"])) if "kept" in attributes else 0
        version = str((marks.found_stage(store, painted) or {})["fingerprint"])[:12]
        out.picks = {"version": version, "count": count, "complete": True}
        rows = picks.read(store, name)
        positions = rows[list(AXES)].to_numpy(float)
        out.numbers = dict(zip(map(listed, positions), rows["instance"].astype(int).tolist(), strict=True))
        return
    if (record := marks.found_stage(store, stage)) is None:
        return
    groups = np.flatnonzero(marks.done(store, stage)).tolist()
    count = sum(int(store.array(layout.instance_array(layout.instances(name), g, "size")).shape[0]) for g in groups)
    version = f"{str(record['fingerprint'])[:12]}.{len(groups)}"
    out.picks = {"version": version, "count": count, "complete": False}


def done_groups(store: RunStore, name: str) -> dict[int, stored.StoredInstances]:
    """The instances of the groups of proposals that are segmented so far."""
    stage = segment.PROPOSALS.stage_name(name)
    groups = np.flatnonzero(marks.done(store, stage)).tolist()
    return {g: stored.read(store, layout.group(layout.instances(name), g)) for g in groups}


def prompted(store: RunStore, name: str) -> dict[int, Mask]:
    """The masks of a query's prompts, by their numbers, and what is doubtful of each."""
    where, out, group = layout.query(name), dict[int, Mask](), 0
    said = doubts.read(store, name)
    while layout.group(where, group) in store:
        instances = stored.read(store, layout.group(where, group))
        for i, prompt in enumerate(instances.prompt.tolist()):
            z0, y0, x0, z1, y1, x1 = (int(v) for v in instances.box[i])
            mask = Instance(prompt, (z0, y0, x0, z1, y1, x1), instances.mask(i), float(instances.quality[i]), {})
            out[prompt] = Mask(mask, tuple(said[prompt]) if prompt < len(said) else ())
        group += 1
    return out


def _partly(store: RunStore, done: Any) -> Json:
    """The statistics of the boxes that are ingested so far."""
    rows = [store.read(layout.STATISTICS, i) for i in np.flatnonzero(done)[:SAMPLED]]
    return dict(images.merge_summaries(np.stack(rows)).to_json())
