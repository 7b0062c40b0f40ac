"""What this process has seen of clicks, in every way: a page shows the mask of a click before it becomes a query's."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.settings import PropagationSettings
from cryosam_dask.stages.sight import Clicked
from cryosam_dask.storage.address import absolute
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Point

KEPT = 64 << 20
"""Bytes of masks that are kept; of these clicks the latest."""

_Key = tuple[str, str, str, str, str, Point]

_seen: OrderedDict[_Key, list[Clicked]] = OrderedDict()
_guard = threading.Lock()


def keep(store: RunStore, settings: PropagationSettings, device: str, point: Point, seen: list[Clicked]) -> None:
    """Keep what was seen of a click, weighed; settings : with the precision decided."""
    with _guard:
        _seen[_key(store, settings, device, point)] = seen
        while sum(clicked.mask.nbytes for each in _seen.values() for clicked in each) > KEPT and len(_seen) > 1:
            _seen.popitem(last=False)


def seen(store: RunStore, settings: PropagationSettings, device: str, point: Point) -> list[Clicked] | None:
    """What was seen of a click, as `sight.every_hypothesis` gives it; None where it was not looked at."""
    with _guard:
        return _seen.get(_key(store, settings, device, point))


def all_seen(store: RunStore, settings: PropagationSettings, device: str, points: NDArray[np.float64]) -> bool:
    """Whether all points (n, 3) were looked at."""
    z, y, x = np.asarray(points, float).T
    return all(seen(store, settings, device, point) is not None for point in zip(z, y, x, strict=True))


def _key(store: RunStore, settings: PropagationSettings, device: str, point: Point) -> _Key:
    # a run that was made anew under the same address is of other voxels
    content, where = str(store.info["statistics"]), absolute(store.url)
    z, y, x = (float(v) for v in point)
    return where, content, settings.segmenter, settings.precision, device, (z, y, x)
