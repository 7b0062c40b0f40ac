"""Cross-plane self-prompting: from points to instance masks, for any prompted segmenter.

For each prompt and each axis the plane through the point is prompted with the point. From there two walkers leave,
one each way; on every next plane a walker prompts with the peak and the logits of the plane before, and stops by a
rule. The masks of all planes of a prompt are then merged into one instance. The state is plain data: a caller may
serve the planes in any order, a few at a time, store the state in between and go on elsewhere; the result is the same.

    work = Propagation.start(points, shape, settings)
    while need := work.needed():                        # {(axis, plane): walkers that wait for it}
        for axis, plane in sorted(need):
            work.step(segmenter, axis, plane, embedding, image)
    instances = work.instances()                        # one per prompt, or None
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.geometry import plane_shape
from cryosam_dask.kernels.candidates import candidates, held
from cryosam_dask.kernels.instance import Instance, Patch, merge_patches, pack, unpack
from cryosam_dask.kernels.walkers import REASONS, Choice, Image, Reason, Reference, Seen, Walker, choose
from cryosam_dask.settings import PropagationRules
from cryosam_dask.types import (
    AXES,
    Array,
    Axis,
    Candidates,
    Point,
    PromptedSegmenter,
    Shape3,
    Window,
)


@dataclass
class Propagation:
    """The propagation of a group of prompts (points in voxels) through a volume of `shape`."""

    points: list[Point]
    shape: Shape3
    settings: PropagationRules
    walkers: list[Walker]

    @classmethod
    def start(cls, points: Sequence[Point], shape: Shape3, settings: PropagationRules) -> Propagation:
        """Three walkers per point, each on its start plane. Raises InputError for a point outside the volume."""
        walkers = []
        for prompt, point in enumerate(points):
            for a, axis in enumerate(AXES):
                plane = int(np.floor(point[a] + 0.5))
                if not 0 <= plane < shape[a]:
                    raise InputError(
                        f"point {tuple(point)}: {axis} = {point[a]:g} lies outside the volume; "
                        f"expected 0 to {shape[a] - 1} for shape (z, y, x) = {tuple(shape)}"
                    )
                row, col = (float(v) for i, v in enumerate(point) if i != a)
                walkers.append(Walker(prompt, axis, 0, plane, (row, col)))
        return cls([(float(z), float(y), float(x)) for z, y, x in points], shape, settings, walkers)

    def needed(self) -> dict[tuple[Axis, int], list[Walker]]:
        """The planes that active walkers wait for; empty when all have finished."""
        need: dict[tuple[Axis, int], list[Walker]] = {}
        for walker in self.walkers:
            if not walker.finished:
                need.setdefault((walker.axis, walker.plane), []).append(walker)
        return need

    def step(
        self, segmenter: PromptedSegmenter, axis: Axis, plane: int, embedding: Array, image: Image | Callable[[], Image]
    ) -> None:
        """Decode all walkers that wait for this plane, and move each one on or finish it.

        embedding : the plane's embedding; image : (rows, columns) the plane that it was made from, or what gives it
        where it is looked at. A plane that no walker waits for changes nothing.
        """
        size = plane_shape(self.shape, axis)
        seen = Seen(image, (axis, plane), size)
        waiting = [w for w in self.walkers if not w.finished and w.axis == axis and w.plane == plane]
        if not waiting:
            return
        count, there = max(1, segmenter.batch), held(segmenter, embedding)
        for fresh in (True, False):  # one call has either no logits or logits for all
            group = [w for w in waiting if (w.logits is None) == fresh]
            for batch in (group[i : i + count] for i in range(0, len(group), count)):
                points = np.array([w.point for w in batch], np.float32)
                logits = None if fresh else [w.logits for w in batch if w.logits]
                proposed = candidates(segmenter, there, size, points, logits)
                choices = choose(batch, proposed, seen, self.settings)
                for walker, candidate, choice in zip(batch, proposed, choices, strict=True):
                    self._advance(walker, candidate, choice)

    def _advance(self, walker: Walker, proposed: Candidates, choice: Choice | Reason) -> None:
        if isinstance(choice, str):
            walker.finish(choice)
            return
        m, patch, reference = choice
        point, logits = proposed.peak(m), proposed.logits(m)
        walker.patches.append(patch)
        if walker.direction == 0:
            walker.finish("forked")
            moved = [
                Walker(walker.prompt, walker.axis, d, walker.plane + d, point, logits, reference, patch)
                for d in (-1, 1)
            ]
            self.walkers.extend(moved)
        else:
            walker.plane += walker.direction
            walker.point, walker.logits, walker.last = point, logits, patch
            moved = [walker]
        for follower in moved:
            if not 0 <= follower.plane < self.shape[AXES.index(follower.axis)]:
                follower.finish("volume ends")
            elif reference is not None and len(follower.patches) >= self._reach(reference):
                follower.finish("reach")

    def _reach(self, start: Reference) -> int:
        return max(4, round(self.settings.max_reach * 2 * float(np.sqrt(start.area / np.pi))))

    def instances(self) -> list[Instance | None]:
        """One instance per prompt; None where nothing was segmented or, under "agreement", the axes share nothing."""
        votes = 1 if self.settings.merge == "union" else self.settings.min_votes
        own: list[dict[Axis, list[Patch]]] = [{a: [] for a in AXES} for _ in self.points]
        for walker in self.walkers:
            own[walker.prompt][walker.axis] += walker.patches
        return [merge_patches(i, p, own[i], votes) for i, p in enumerate(self.points)]

    def to_arrays(self) -> dict[str, Array]:
        """The whole state but the settings, as plain arrays; `from_arrays` is the inverse, bit for bit."""
        walkers, nothing = self.walkers, Window((0, 0), 0, 0, np.zeros((0, 0), np.float32))
        patches = [p for w in walkers for p in w.patches]
        logits = [w.logits or nothing for w in walkers]
        none = (np.nan,) * 4
        return {
            "points": np.array(self.points, np.float64).reshape(-1, 3),
            "shape": np.array(self.shape, np.int64),
            "walkers": np.array(
                [
                    (
                        w.prompt,
                        AXES.index(w.axis),
                        w.direction,
                        w.plane,
                        REASONS.index(w.finished),
                        len(w.patches),
                    )
                    for w in walkers
                ],
                np.int64,
            ).reshape(-1, 6),
            "places": np.array([(*w.point, *(w.reference or none)) for w in walkers], np.float64).reshape(-1, 6),
            "logits_boxes": np.array([(*v.shape, v.row, v.col, *v.block.shape) for v in logits], np.int64).reshape(
                -1, 6
            ),
            "logits": np.concatenate([v.block.ravel() for v in (nothing, *logits)]),
            "patches": np.array([(p.plane, p.row, p.col, *p.mask.shape) for p in patches], np.int64).reshape(-1, 5),
            "scores": np.array([p.score for p in patches], np.float64),
            "bits": pack([p.mask for p in patches]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], settings: PropagationRules) -> Propagation:
        """Continue from `to_arrays`, under the same settings."""
        table = np.asarray(arrays["patches"])
        masks = unpack(np.asarray(arrays["bits"]), [(int(h), int(w)) for h, w in table[:, 3:]])
        patches = iter(
            Patch(int(plane), int(row), int(col), mask, float(score))
            for (plane, row, col), mask, score in zip(table[:, :3], masks, arrays["scores"], strict=True)
        )
        boxes, flat = np.asarray(arrays["logits_boxes"]), np.asarray(arrays["logits"])
        stops = np.cumsum(boxes[:, 4] * boxes[:, 5])
        walkers: list[Walker] = []
        starts: dict[tuple[int, int], Patch] = {}
        for state, place, box, stop in zip(arrays["walkers"], arrays["places"], boxes, stops, strict=True):
            prompt, axis, direction, plane, finished, count = (int(v) for v in state)
            h, w, row, col, a, b = (int(v) for v in box)
            walker = Walker(prompt, AXES[axis], direction, plane, (float(place[0]), float(place[1])))
            walker.patches = [next(patches) for _ in range(count)]
            walker.finished = REASONS[finished]
            walker.logits = Window((h, w), row, col, flat[stop - a * b : stop].reshape(a, b)) if h else None
            if not np.isnan(place[2]):
                walker.reference = Reference(*(float(v) for v in place[2:]))
            if direction == 0 and count:
                starts[prompt, axis] = walker.patches[0]
            elif direction:
                walker.last = walker.patches[-1] if count else starts[prompt, axis]
            walkers.append(walker)
        z, y, x = (int(v) for v in arrays["shape"])
        points = [(float(p[0]), float(p[1]), float(p[2])) for p in arrays["points"]]
        return cls(points, (z, y, x), settings, walkers)
