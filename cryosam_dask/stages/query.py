"""Query: the instances of the point prompts → one mean feature (eq. 4 of the paper), by masked average pooling."""

from __future__ import annotations

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.stages.base import Context, Json, Region, Stage, Unit, UnitResult
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout
from cryosam_dask.store.features import FeatureVolume
from cryosam_dask.store.run_store import RunStore


def stage_name(name: str) -> str:
    return f"query/{name}"


def plan(store: RunStore, name: str, center: bool, groups: int, points: list[list[float]], upstream: str) -> Stage:
    """One unit: it reads the features under the prompted instances only.

    center : whether similarities are to be taken of F − μ, μ the tomogram's mean feature
    groups : number of groups that the prompts were segmented in
    """
    channels = FeatureVolume(store).channels
    unit = Unit(
        name="pool",
        marks=(0,),
        params={"groups": groups},
        writes=(Region(f"{layout.query(name)}/feature", (0,), (channels,)),),
        # instances are small against the blocks of latents under them
        memory=256 << 20,
    )
    return Stage(stage_name(name), work, {"name": name, "center": center, "points": points}, upstream, (unit,), 1)


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Pool the features over all prompted instances."""
    store = RunStore.open(context.url, "r+")
    where = layout.query(settings["name"])
    volume = FeatureVolume(store)
    total, sizes = np.zeros(volume.channels), []
    segmented: list[int] = []
    for group in range(unit.params["groups"]):
        found = stored.read(store, layout.group(where, group))
        for i in range(len(found.prompt)):
            total += volume.pool_block(found.mask(i), stored.as_box(found.box[i]))
            sizes.append(int(found.size[i]))
            segmented.append(int(found.prompt[i]))
    missing = [point for i, point in enumerate(settings["points"]) if i not in segmented]
    if not sizes:
        raise InputError(
            f"nothing could be segmented at {_say(missing)}; click nearer to the middle of a clearly visible particle"
        )
    feature = (total / sum(sizes)).astype(np.float32)
    mean = volume.mean if settings["center"] else np.zeros_like(feature)
    store.put(f"{where}/points", np.asarray(settings["points"], np.float64), ("prompt", "axis"))
    store.put(f"{where}/feature", feature, ("channel",))
    store.put(f"{where}/mean", mean, ("channel",))
    store.put(f"{where}/sizes", np.asarray(sizes, np.int64), ("instance",), {"units": "voxel"})
    return UnitResult({"segmented": len(sizes), "missing": missing})


def _say(points: list[list[float]]) -> str:
    return "; ".join(",".join(f"{v:g}" for v in point) for point in points[:3])
