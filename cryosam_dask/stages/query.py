"""Query: the instances of the point prompts → one mean feature (eq. 4 of the paper), by masked average pooling."""

from __future__ import annotations

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.kernels.merging import center_of_mass
from cryosam_dask.settings import MatchSettings
from cryosam_dask.stages import rank
from cryosam_dask.stages.base import Context, Json, Region, Stage, Unit, UnitResult
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout
from cryosam_dask.store.features import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array


def stage_name(name: str) -> str:
    return f"query/{name}"


def plan(
    store: RunStore, name: str, settings: MatchSettings, groups: int, points: list[list[float]], upstream: str
) -> Stage:
    """One unit: it reads the features under the prompted instances only.

    settings : whether similarities are to be taken of F − μ, μ the tomogram's mean feature, and ranked by profiles
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
    described = {"name": name, "center": settings.center, "rank": settings.rank, "points": points}
    return Stage(stage_name(name), work, described, upstream, (unit,), 1)


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Pool the features over all prompted instances."""
    store = RunStore.open(context.url, "r+")
    where = layout.query(settings["name"])
    volume = FeatureVolume(store)
    total = np.zeros(volume.channels)
    sizes: list[int] = []
    centres: list[Array] = []
    segmented: list[int] = []
    for group in range(unit.params["groups"]):
        found = stored.read(store, layout.group(where, group))
        for i in range(len(found.prompt)):
            mask = found.mask(i)
            total += volume.pool_block(mask, stored.as_box(found.box[i]))
            centres.append(center_of_mass(found.box[i], mask))
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
    if settings["rank"] == "profile":
        rank.describe_query(store, settings["name"], np.stack(centres), sizes)
    return UnitResult({"segmented": len(sizes), "missing": missing})


def _say(points: list[list[float]]) -> str:
    return "; ".join(",".join(f"{v:g}" for v in point) for point in points[:3])
