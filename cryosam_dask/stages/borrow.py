"""Borrow: a query of another run, made comparable with this tomogram, instead of one that is prompted here.

The feature is taken as it is. It is a mean of standardized tokens of standardized slices. Tomograms of one kind differ
in noise, contrast and content, and standardization removes just these differences. Undoing the donor's linear maps and
applying this tomogram's brings features of the same particle no nearer, and less near where the noise differs.

Profiles are grey values, in units of the voxels' deviation about their mean, up to a factor. Most of the deviation is
noise: with less noise the same particle stands out more. The ranking tries the factors `CONTRASTS` and keeps the one
with the nearest likes (`kernels.likeness.best_contrasted`).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import StoreError
from cryosam_dask.io.frame import printable
from cryosam_dask.models.catalog import encoder_info
from cryosam_dask.models.registry import weights_identity
from cryosam_dask.settings import MatchSettings, Settings
from cryosam_dask.stages import features, learned, negative, query, segment, structure
from cryosam_dask.stages.base import BESIDES, Context, Region, Stage, Unit, UnitResult
from cryosam_dask.store import layout, marks
from cryosam_dask.store.feature_volume import FeatureVolume
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names
from cryosam_dask.types import Array, Json, Point

logger = logging.getLogger(__name__)

Float64 = NDArray[np.float64]

FROM = "from"
"""Attribute of a borrowed query: its tomogram, its name there, the points, and a digest."""

VOXEL_TOLERANCE = 0.02
"""Share by which voxel sizes may differ: of other grids, whose textures and radii are compared in voxels. Whether two
are of one grid is told by `geometry.same_voxels`."""

CONTRASTS = tuple(float(factor) for factor in 2.0 ** (np.arange(-8, 9) / 4))
"""Factors of a borrowed profile that the ranking tries."""

_POOLED: tuple[layout.QueryArray, ...] = ("feature", "sizes")
_DESCRIPTION: tuple[layout.QueryArray, ...] = ("template", "profiles", "unmoved")
_SEEN: tuple[layout.QueryArray, ...] = ("descriptors", "negative_descriptors")
_NEGATIVE: tuple[layout.QueryArray, ...] = ("negative_features", "negative_profiles")
_DECIDED: tuple[layout.QueryArray, ...] = ("direction", "decided_descriptors", "decided")
_WORK = {"features": ("ratios", "dense_ratios", "batch", "precision"), "propagation": ("group", "precision")}
"""Settings that may differ: they only say how work is divided, or what else is written."""


@dataclass(frozen=True)
class Loan:
    """A query, independent of the tomogram that it was made in.

    Attributes
    ----------
    url, name : the donor's store and the query's name there
    settings : that the query was made with; weights : identities of the two models' weights
    voxel_size : ångström (z, y, x)
    origin : what `FROM` records
    params : feature (3C,), sizes, and where there are any the profiles in units of the voxels' deviation about their
        mean, and the features (n, 3C) and profiles of negatives; as lists of numbers. Of a refined query what
        `learned.lent` tells. Of an extended structure also
        the similarity that its places must reach, and of particles ranked by similarity that of the prompted masks
    """

    url: str
    name: str
    settings: Settings
    weights: dict[str, str]
    voxel_size: Point
    origin: Json
    params: Json


def take(donor: RunStore, name: str) -> Loan:
    """Read a finished query of another run, which is not changed; `StoreError` if it has none of that name."""
    where = layout.query(name)
    attributes = dict(donor.group(where).attrs) if where in donor else {}
    told = not attributes.get(negative.POINTS) or marks.all_done(donor, negative.stage_name(name))
    if not told or not marks.all_done(donor, query.stage_name(name)):
        there = ", ".join(query_names(donor)) or "none"
        raise StoreError(f"{donor.url}: no finished query called {name!r} (there are: {there}); run `cryosam query`")
    statistics = donor.info["statistics"]
    arrays = {array: donor.read(layout.query_array(name, array)) for array in _POOLED}
    known = [array for array in _DESCRIPTION if layout.query_array(name, array) in donor]
    arrays |= {array: donor.read(layout.query_array(name, array)) for array in known}
    described = [*known]
    params: Json = {"feature": arrays["feature"].tolist(), "sizes": arrays["sizes"].tolist()}
    # what was borrowed is lent as it was borrowed: it is not at this donor's contrast, as its own negatives would be
    own = _origin(attributes) is None
    if not own and attributes.get(negative.POINTS):
        said = "%s: query %r was borrowed itself; the negative points that it was given there are not lent on"
        logger.warning(said, donor.url, name)
    for array, path in zip(_NEGATIVE, _negatives(name, own), strict=True):
        if path in donor and donor.array(path).shape[0]:
            arrays[array] = donor.read(path)
    arrays |= learned.lent(donor, name)
    if own:
        _add_rejected(donor, name, arrays)
    if "negative_features" in arrays:
        params["negative_features"] = arrays["negative_features"].tolist()
    described += [array for array in _NEGATIVE[1:] if array in arrays]
    if described:
        params["radius"] = donor.array(layout.query_array(name, "profiles")).attrs["radius"]
        params |= {a: _scaled(arrays[a], statistics["mean"], statistics["std"]).tolist() for a in described}
    params |= _seen(donor, name, own, arrays)
    params |= {array: arrays[array].tolist() for array in _DECIDED if array in arrays}
    digest = hashlib.sha256(repr((statistics["mean"], statistics["std"], params.get("radius"))).encode())
    for key in sorted(arrays):
        digest.update(key.encode() + repr(arrays[key].shape).encode() + np.ascontiguousarray(arrays[key]).tobytes())
    first = {
        "tomogram": str(donor.info["input"]["name"]),
        "query": name,
        "points": donor.read(layout.query_array(name, "points")).tolist(),
    }
    if own and (points := negative.read_points(donor, name)):
        first["negatives"] = points
    # what was borrowed itself keeps saying where it was prompted
    origin = {**first, **(_origin(attributes) or {}), "digest": digest.hexdigest()}
    settings = Settings.model_validate(attributes["settings"])
    if structure.structure_of(donor, name) == "extended":
        like = structure.likeness(donor, name, settings.match)
        params |= {} if like is None else {structure.LIKENESS: like}
    elif settings.match.rank == "similarity":
        alike = structure.own_similarity(donor, name, settings.match)
        params |= {} if alike is None else {structure.OWN: alike}
    return Loan(donor.url, name, settings, _weights(donor, name), donor.voxel_size, origin, params)


def _seen(donor: RunStore, name: str, own: bool, arrays: dict[layout.QueryArray, Array]) -> Json:
    """What a segmenter of volumes saw of the query, which no tomogram's grey values change; added to `arrays`."""
    if layout.query_array(name, "descriptors") not in donor:
        return {}
    unlike = layout.negative_array(name, "descriptors") if own else layout.query_array(name, "negative_descriptors")
    for array, path in zip(_SEEN, (layout.query_array(name, "descriptors"), unlike), strict=True):
        if path in donor and donor.array(path).shape[0]:
            arrays[array] = donor.read(path)
    attributes = dict(donor.array(layout.query_array(name, "descriptors")).attrs)
    return {"seen": attributes} | {array: arrays[array].tolist() for array in _SEEN if array in arrays}


def _add_rejected(donor: RunStore, name: str, arrays: dict[layout.QueryArray, Array]) -> None:
    """Profiles of rejected places, which are negatives' wherever the query goes."""
    for profiles in learned.rejected_profiles(donor, name):
        if len(profiles):
            before = [arrays["negative_profiles"]] if "negative_profiles" in arrays else []
            arrays["negative_profiles"] = np.concatenate([*before, profiles])


def _negatives(name: str, own: bool) -> tuple[str, str]:
    """Where the features and the profiles of negatives are: of points in this tomogram, or borrowed."""
    if own:
        return layout.negative_array(name, "features"), layout.negative_array(name, "profiles")
    return layout.query_array(name, "negative_features"), layout.query_array(name, "negative_profiles")


def check(loan: Loan, settings: Settings, voxel_size: Point, url: str) -> None:
    """`StoreError` where the query can't be compared with features and profiles of a tomogram made with `settings`.

    url : what the error calls that tomogram
    """
    ratios = np.asarray(voxel_size) / np.asarray(loan.voxel_size)
    if (np.abs(ratios - 1) > VOXEL_TOLERANCE).any():
        theirs, own = (" × ".join(f"{v:.4g}" for v in size) for size in (loan.voxel_size, voxel_size))
        raise StoreError(
            f"{url}: its voxels are of {own} Å, those of {loan.url}, which the query is from, of {theirs} Å (z, y, x); "
            f"expected the same within {VOXEL_TOLERANCE:.0%}; bin one of them, or correct --voxel-size"
        )
    ours = {
        "features": weights_identity(settings.features.encoder),
        "propagation": weights_identity(settings.propagation.segmenter),
    }
    differing = marks.differences(
        _comparable(loan.settings, loan.weights), _comparable(settings, {part: ours[part] for part in loan.weights})
    )
    needed = {"profile": "profiles", "descriptor": "descriptors"}.get(settings.match.rank)
    if needed and needed not in loan.params:
        differing.append(f"match.rank: {loan.settings.match.rank} → {settings.match.rank}")
    if differing:
        raise StoreError(
            f"{loan.url}: query {loan.name!r} was made with other settings ({printable('; '.join(differing))}); "
            "use the same settings, or make the query again with these"
        )
    if (length := len(loan.params["feature"])) != (expected := 3 * encoder_info(settings.features.encoder).channels):
        raise StoreError(
            f"{loan.url}: the feature of query {loan.name!r} has {length} numbers, expected {expected} from "
            f"{settings.features.encoder}; take the query again from the run that it was made in"
        )


def searched_otherwise(loan: Loan, settings: Settings) -> list[str]:
    """The differing settings of the search, which `check` allows to differ."""
    theirs, ours = (chosen.model_dump(mode="json", include={"match", "label"}) for chosen in (loan.settings, settings))
    return marks.differences(theirs, ours)


def plan(store: RunStore, name: str, settings: MatchSettings, loan: Loan, upstream: str) -> Stage:
    """Plan one unit, which replaces the one that pools features. `upstream` : fingerprint of this run's features."""
    channels = FeatureVolume(store).channels
    unit = Unit(
        name="borrow",
        marks=(0,),
        params=loan.params,
        writes=(Region(layout.query_array(name, "feature"), (0,), (channels,)),),
        memory=BESIDES,
    )
    described = {"name": name, "center": settings.center, "rank": settings.rank, FROM: loan.origin["digest"]}
    return Stage(query.stage_name(name), work, described, upstream, (unit,), 1)


def check_origin(store: RunStore, name: str, loan: Loan) -> None:
    """`StoreError` if the query of that name was prompted here, or borrowed from another run or from a changed one."""
    if marks.found_stage(store, query.stage_name(name)) is None:
        return
    known = origin(store, name)
    way_out = "use another --name or --out, or --overwrite"
    if known is None:
        raise StoreError(f"{store.url}: query {name!r} was made from points in this tomogram; {way_out}")
    if known["digest"] == loan.origin["digest"]:
        return
    if known["tomogram"] == loan.origin["tomogram"]:
        raise StoreError(f"{loan.url}: query {loan.name!r} has changed since {store.url} was made with it; {way_out}")
    raise StoreError(
        f"{store.url}: query {name!r} is from {known['tomogram']}, not from {loan.origin['tomogram']}; {way_out}"
    )


def origin(store: RunStore, name: str) -> Json | None:
    """What `FROM` records of a borrowed query; None if the query was prompted in this tomogram, or does not exist."""
    where = layout.query(name)
    return _origin(store.group(where).attrs) if where in store else None


def _origin(attributes: Mapping[str, Any]) -> Json | None:
    source = attributes.get(FROM)
    return dict(source) if isinstance(source, dict) else None


def work(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    """Write the feature, and the profiles in this tomogram's grey values, as a query without points."""
    store = context.store
    name, volume = settings["name"], FeatureVolume(store)
    statistics = store.info["statistics"]
    feature = np.asarray(unit.params["feature"], np.float32)
    store.put(layout.query_array(name, "points"), np.empty((0, 3)), ("prompt", "axis"))
    sizes = np.asarray(unit.params["sizes"], np.int64)
    store.put(layout.query_array(name, "sizes"), sizes, ("instance",), {"units": "voxel"})
    mean = volume.mean if settings["center"] else np.zeros_like(feature)
    store.put(layout.query_array(name, "mean"), mean, ("channel",))
    for array in _DESCRIPTION if settings["rank"] == "profile" else ():
        values = _scaled(np.asarray(unit.params[array]), statistics["mean"], statistics["std"], back=True)
        dims = ("shell",) if values.ndim == 1 else ("instance", "shell")
        described = {"radius": unit.params["radius"], "contrasts": list(CONTRASTS)} if array == "profiles" else None
        store.put(layout.query_array(name, array), values, dims, described)
    if negatives := unit.params.get("negative_features"):
        values = np.asarray(negatives, np.float32)
        store.put(layout.query_array(name, "negative_features"), values, ("negative", "channel"))
    if settings["rank"] == "profile" and (negatives := unit.params.get("negative_profiles")):
        values = _scaled(np.asarray(negatives), statistics["mean"], statistics["std"], back=True)
        store.put(layout.query_array(name, "negative_profiles"), values, ("negative_place", "shell"))
    for array in _SEEN if settings["rank"] == "descriptor" else ():
        if array in unit.params:
            values, about = np.asarray(unit.params[array], np.float32), dict(unit.params["seen"])
            store.put(layout.query_array(name, array), values, ("instance", "component"), about)
    learned.take(store, name, settings["rank"], unit.params)
    store.put(layout.query_array(name, "feature"), feature, ("channel",))
    return None


def _scaled(profiles: Array, mean: float, std: float, back: bool = False) -> Float64:
    """Profiles (…, 2 S), shell means then deviations, from grey values to standard units, or `back`."""
    shift = np.repeat([mean, 0.0], profiles.shape[-1] // 2)
    return np.asarray(profiles * std + shift if back else (profiles - shift) / std, float)


def _weights(donor: RunStore, name: str) -> dict[str, str]:
    """Identities of the models' weights, as far as the donor's marks have them: a borrowed query segmented nothing."""
    out = {}
    if record := marks.found_stage(donor, features.NAME):
        out["features"] = str(record["settings"]["weights"])
    if record := marks.found_stage(donor, segment.PROMPTS.stage_name(name)):
        out["propagation"] = str(record["settings"]["propagation"]["weights"])
    return out


def _comparable(settings: Settings, weights: dict[str, str]) -> Json:
    """The settings that a query depends on, with the weights'."""
    sections = settings.model_dump(mode="json")
    return {
        section: {k: v for k, v in sections[section].items() if k not in left_out}
        | ({"weights": weights[section]} if section in weights else {})
        for section, left_out in _WORK.items()
    }
