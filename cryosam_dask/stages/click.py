"""What a click is on: its mask at once, in this process, from the tomogram alone.

The mask is the one that the query's stage makes of the same point. Of a segmenter of planes only those that the click
comes to are embedded, in memory.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryosam_dask import geometry
from cryosam_dask.kernels.extent import extent
from cryosam_dask.kernels.instance import Instance
from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.models.cache import get_segmenter
from cryosam_dask.models.catalog import segmenter_info, volume_info
from cryosam_dask.models.threads import compute_alone
from cryosam_dask.settings import PropagationSettings, Settings
from cryosam_dask.stages import doubts, looked_at, segment_volume, sight
from cryosam_dask.stages.embed import Plane
from cryosam_dask.stages.sampling import Sample
from cryosam_dask.store import layout
from cryosam_dask.store.instances import as_box
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array, Axis, Point

KEPT = 384 << 20
"""Bytes of planes that are kept for clicks nearby."""


HELD = 128 << 20
"""Bytes of neighbouring slices that are held; of each axis twice."""

WAYS = 8
"""In which a click is looked at, at most."""


@dataclass(frozen=True)
class Mask:
    """The mask of a click, None where nothing could be segmented, and what is doubtful of it.

    final : whether it is the mask that a query would get; else a first look, which a better one may follow
    """

    instance: Instance | None
    doubts: tuple[str, ...] = ()
    final: bool = True


class Looker:
    """Makes the masks of clicks in one run.

    settings : with precisions decided; device : of this process; threads : that look at a click at once
    """

    def __init__(self, store: RunStore, settings: Settings, device: str, threads: int = 2) -> None:
        self._store, self._settings, self._device = store, settings, device
        self._planes: OrderedDict[Plane, tuple[NDArray[np.uint8], Array]] = OrderedDict()
        self._samples: dict[tuple[Axis, int], Sample] = {}
        self._bytes = 0
        self._pool = ThreadPoolExecutor(max(1, min(WAYS, threads)), "click", initializer=compute_alone)

    @property
    def segmenter(self) -> str:
        return self._settings.propagation.segmenter

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def load(self) -> None:
        """Load the model, and what is known of the tomogram's levels, so that the first click need not wait."""
        chosen = self._settings.propagation
        if volume_info(chosen.segmenter) is None:
            get_segmenter(chosen.segmenter, self._device, chosen.precision)
            return
        model, info = sight.model_of(chosen.segmenter, self._device, chosen.precision)
        middle = np.array([(n - 1) / 2 for n in self._store.shape])
        list(self._pool.map(lambda boxes: sight.clicked(model, info, boxes, middle), sight.every_way(self._store)))

    def masks(self, point: Point, check: Callable[[], None]) -> Iterator[Mask]:
        """The mask of a point, the last one final. check : called often; what it raises ends the work."""
        if volume_info(self._settings.propagation.segmenter) is not None:
            yield from self._in_boxes(point, check)
        else:
            instance = self._through_planes(point, check)
            yield Mask(instance, tuple(self._doubts(instance, self._is_particle(instance))))

    def _in_boxes(self, point: Point, check: Callable[[], None]) -> Iterator[Mask]:
        chosen = self._settings.propagation
        model, info = sight.model_of(chosen.segmenter, self._device, chosen.precision)
        ways, likely = sight.every_way(self._store), _is_bright(self._store)

        def look(number: int) -> sight.Clicked:
            check()
            return sight.clicked(model, info, ways[number], np.asarray(point, float))

        # first the contrast that the tomogram seems to have
        order = sorted(range(len(ways)), key=lambda i: ways[i].bright != likely)
        seen: dict[int, sight.Clicked] = {}
        for number, clicked in zip(order, self._pool.map(look, order), strict=True):
            seen[number] = clicked
            if len(seen) == len(ways) // 2:
                first, _ = sight.best(sight.weighed([seen[i] for i in sorted(seen)]))
                yield Mask(segment_volume.of_click(self._store, first, 0), final=False)
        every = sight.weighed([seen[i] for i in sorted(seen)])
        looked_at.keep(self._store, chosen, self._device, point, every)
        best, said = sight.best(every)
        instance = segment_volume.of_click(self._store, best, 0)
        structure = self._settings.match.structure
        kind = 1 + int(np.argmax(best.hypothesis.classes[1:]))
        particle = structure == "particle" or (structure == "auto" and kind not in sight.EXTENDED)
        more = self._doubts(instance, particle)
        yield Mask(instance, (*said, *(text for text in more if text not in said)))

    def _through_planes(self, point: Point, check: Callable[[], None]) -> Instance | None:
        chosen = self._settings.propagation
        segmenter = get_segmenter(chosen.segmenter, self._device, chosen.precision)
        work = Propagation.start([point], self._store.shape, chosen)
        while need := work.needed():
            for plane in sorted(need):
                check()
                image, embedding = self._plane(plane, chosen)
                work.step(segmenter, *plane, embedding, image)
        return work.instances()[0]

    def _plane(self, plane: Plane, chosen: PropagationSettings) -> tuple[NDArray[np.uint8], Array]:
        """A plane and its embedding, as the store would keep it."""
        if plane not in self._planes:
            segmenter = get_segmenter(chosen.segmenter, self._device, chosen.precision)
            image = self._sample(plane, chosen.plane_thickness).grey([plane[1]])
            embedding = np.asarray(segmenter.embed(image)[0])
            self._planes[plane] = image[0], embedding.astype(segmenter_info(chosen.segmenter).embedding_dtype)
            self._bytes += sum(array.nbytes for array in self._planes[plane])
            while self._bytes > KEPT and len(self._planes) > 1:
                self._bytes -= sum(array.nbytes for array in self._planes.popitem(last=False)[1])
        self._planes.move_to_end(plane)
        return self._planes[plane]

    def _sample(self, plane: Plane, thickness: int) -> Sample:
        """Slices around a plane, as many of its row of chunks as are held: to decode that row once is most of it."""
        axis, index = plane
        across = geometry.axis_index(axis)
        row = layout.CHUNK[across]
        most = min(row, max(1, HELD // (4 * math.prod(geometry.plane_shape(self._store.shape, axis)))))
        first = index // row * row + index % row // most * most
        if (axis, first) not in self._samples:
            last = min(first + most, index // row * row + row, self._store.shape[across])
            before = [key for key in self._samples if key[0] == axis]
            if len(before) == 2:  # walkers go both ways, and come to two rows in turn
                del self._samples[before[0]]
            self._samples[axis, first] = Sample(self._store, axis, range(first, last), thickness)
        return self._samples[axis, first]

    def _is_particle(self, instance: Instance | None) -> bool:
        told = self._settings.match.structure
        if instance is None or told != "auto":
            return told != "extended"
        return extent(instance.mask, self._store.voxel_size).form == "compact"

    def _doubts(self, instance: Instance | None, particle: bool) -> list[str]:
        if instance is None or not particle:
            return []
        return doubts.of_mask(self._store, instance.mask, as_box(np.asarray(instance.box)))


def _is_bright(store: RunStore) -> bool:
    """Whether particles seem to be brighter than the solvent: where the longer tail of densities is."""
    told = store.info["statistics"]
    return bool(told["high"] - told["mean"] >= told["mean"] - told["low"])
