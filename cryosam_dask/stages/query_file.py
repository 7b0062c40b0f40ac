"""A query as a small JSON file: everything that another tomogram's run needs of it.

    {"format": "cryosam_dask query", "version": 1, "name": …, "settings": …, "weights": …, "voxel_size": [z, y, x],
     "origin": …, "params": {"feature": […], "sizes": […], "profiles": [[…]], …}, "sha256": …}

`params` are described in `stages.borrow.Loan`. The digest is that of the rest, as it is written here. It guards against
damage, not against malice, so everything that is read from a file is checked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from pydantic import ValidationError

from cryosam_dask.errors import InputError
from cryosam_dask.io.atomic import write_text
from cryosam_dask.io.frame import printable
from cryosam_dask.kernels import radial_profiles
from cryosam_dask.settings import Settings
from cryosam_dask.stages.borrow import Loan
from cryosam_dask.stages.boxes import LEVELS
from cryosam_dask.stages.structure import LIKENESS, OWN
from cryosam_dask.storage.address import is_local, local_path, public, scrub
from cryosam_dask.storage.filesystem import filesystem
from cryosam_dask.store.run_store import check_name
from cryosam_dask.types import Json
from cryosam_dask.version import __version__

FORMAT, VERSION = "cryosam_dask query", 1
SUFFIX = ".json"

MOST_BYTES = 64 << 20
"""Of a file: a thousand negatives of the largest encoder."""

MOST = 1 << 20
"""Prompted instances, and values of a feature."""

_DIMENSIONS = {
    "feature": 1,
    "sizes": 1,
    "template": 1,
    "profiles": 2,
    "unmoved": 2,
    "negative_features": 2,
    "negative_profiles": 2,
    "descriptors": 2,
    "negative_descriptors": 2,
    "direction": 1,
    "decided": 1,
    "decided_descriptors": 2,
}
_NUMBERS = ("radius", LIKENESS, OWN)
_SEEN = "seen"  # how descriptors were seen
_ABOUT = ("name", "settings", "weights", "voxel_size", "origin", "params")


def is_file(where: str | Path) -> bool:
    """Whether an address is that of a query's file, by its suffix, and not that of a run."""
    return public(where).lower().endswith(SUFFIX)


def write(loan: Loan, path: str | Path) -> None:
    """Write a query to a file, whole or not at all."""
    about: Json = {
        "format": FORMAT,
        "version": VERSION,
        "made_by": f"cryosam_dask {__version__}",
        "name": loan.name,
        "settings": loan.settings.model_dump(mode="json"),
        "weights": loan.weights,
        "voxel_size": list(loan.voxel_size),
        "origin": loan.origin,
        "params": loan.params,
    }
    about["sha256"] = _digest(about)
    write_text(Path(path), json.dumps(about, allow_nan=False) + "\n")


def read(where: str | Path) -> Loan:
    """Read a query from a file or a URL; `InputError` for anything that `write` would not have written."""
    url = str(where)
    about = _parsed(url, _text(url))
    if about.get("format") != FORMAT:
        _refuse(url, f"not a query of cryosam_dask (format {str(about.get('format'))[:40]!r})")
    if about.get("version") != VERSION:
        _refuse(url, f"version {str(about.get('version'))[:40]}, this program reads {VERSION}")
    if about.get("sha256") != _digest({key: value for key, value in about.items() if key != "sha256"}):
        _refuse(url, "damaged: its content is not what its digest says; export it again")
    if missing := [key for key in _ABOUT if key not in about]:
        _refuse(url, f"without {', '.join(missing)}")
    return _loan(url, about)


def renamed(loan: Loan, name: str) -> Loan:
    """The same query under another name."""
    return replace(loan, name=name)


def _text(url: str) -> str:
    try:
        if is_local(url):
            path = Path(local_path(url)).expanduser()
            size = path.stat().st_size
            raw = path.read_bytes() if size <= MOST_BYTES else b""
        else:
            files, there = filesystem(url)
            size = int(files.info(there)["size"])
            raw = files.cat_file(there) if size <= MOST_BYTES else b""
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or scrub(str(error))
        raise InputError(f"{public(url)}: can't be read ({why})") from None
    if size > MOST_BYTES:
        _refuse(url, f"{size} bytes, a query has at most {MOST_BYTES}")
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError:
        _refuse(url, "not text")


def _parsed(url: str, text: str) -> Json:
    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    try:
        about = json.loads(text, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        _refuse(url, f"not JSON ({str(error)[:80]})")
    if not isinstance(about, dict):
        _refuse(url, "not a query of cryosam_dask")
    return about


def _loan(url: str, about: Json) -> Loan:
    try:
        settings = Settings.model_validate(about["settings"])
    except ValidationError as error:
        _refuse(url, f"settings that can't be: {error.errors()[0]['msg'][:80]}")
    name = about["name"]
    if not isinstance(name, str):
        _refuse(url, "its name is no text")
    check_name(name)
    weights, origin = about["weights"], about["origin"]
    if not isinstance(weights, dict) or not all(isinstance(value, str) for value in weights.values()):
        _refuse(url, "the identities of the models' weights are no texts")
    if not set(weights) <= {"features", "propagation"}:
        _refuse(url, "weights of models that there are not")
    if not isinstance(origin, dict) or not all(isinstance(origin.get(key), str) for key in ("tomogram", "digest")):
        _refuse(url, "it does not say where it is from")
    known = {key: printable(origin[key]) for key in ("tomogram", "query", "digest") if isinstance(origin.get(key), str)}
    for key in ("points", "negatives"):
        if origin.get(key):
            known[key] = _array(url, key, origin[key], 2).tolist()
            if any(len(point) != 3 for point in known[key]):
                _refuse(url, f"{key} are not positions z, y, x")
    size = _array(url, "voxel_size", about["voxel_size"], 1)
    if size.shape != (3,) or not (size > 0).all():
        _refuse(url, "its voxel size is not three numbers above 0")
    z, y, x = (float(v) for v in size)
    named = {part: printable(value) for part, value in weights.items()}
    return Loan(public(url), name, settings, named, (z, y, x), {"points": [], **known}, _params(url, about["params"]))


def _params(url: str, params: Any) -> Json:
    """The numbers of a query, of shapes that belong together."""
    if not isinstance(params, dict) or not {"feature", "sizes"} <= set(params) <= {*_DIMENSIONS, *_NUMBERS, _SEEN}:
        _refuse(url, "its numbers are not those of a query")
    arrays = {key: _array(url, key, params[key], n) for key, n in _DIMENSIONS.items() if key in params}
    if not all(_is_cosine(params[key]) for key in (LIKENESS, OWN) if key in params):
        _refuse(url, "the likeness of its places is no cosine")
    sizes, channels = arrays["sizes"], arrays["feature"].shape[0]
    if not 0 < len(sizes) <= MOST or not ((sizes > 0) & (sizes == np.floor(sizes)) & (sizes < 2**53)).all():
        _refuse(url, "its sizes are not whole numbers of voxels")
    if not 0 < channels <= MOST or not arrays["feature"].any():
        _refuse(url, "its feature is empty")
    shells = arrays["template"].shape[0] if "template" in arrays else 0
    if ("profiles" in arrays) != ("template" in arrays and "unmoved" in arrays and _is_radius(params.get("radius"))):
        _refuse(url, "its profiles are not complete")
    if shells and shells != 2 * len(radial_profiles.profile(params["radius"]).starts):
        _refuse(url, "its profiles are not of particles of its radius")
    if "negative_profiles" in arrays and not shells:
        _refuse(url, "its profiles are not complete")
    for key, wide in (("profiles", shells), ("unmoved", shells), ("negative_profiles", shells)):
        if key in arrays and arrays[key].shape[1] != wide:
            _refuse(url, f"{key} have {arrays[key].shape[1]} numbers, expected {wide}")
    if "negative_features" in arrays and arrays["negative_features"].shape[1] != channels:
        _refuse(url, f"negative_features have other channels than the feature's {channels}")
    _check_seen(url, arrays, params.get(_SEEN))
    _check_decided(url, arrays, channels)
    return dict(params)


def _check_decided(url: str, arrays: dict[str, Any], channels: int) -> None:
    """Refuse what decisions taught of other shapes than the query's."""
    if "direction" in arrays:
        direction, factors = arrays["direction"][:-2], arrays["direction"][-2:]
        if len(direction) != channels or not direction.any() or not ((factors > 0) & (factors <= 1)).all():
            _refuse(url, f"the direction of its search is not of {channels} numbers and two factors")
    seen, how = (arrays.get(key) for key in ("decided_descriptors", "decided"))
    if (seen is None) != (how is None) or (seen is not None and "descriptors" not in arrays):
        _refuse(url, "its decisions are not complete")
    if seen is not None and how is not None:
        same = seen.shape == (len(how), arrays["descriptors"].shape[1])
        if not same or not np.isin(how, (0, 1)).all():
            _refuse(url, "its decisions are not complete")


def _check_seen(url: str, arrays: dict[str, Any], seen: Any) -> None:
    """Refuse descriptors without what tells how they were seen, or of different lengths."""
    if "descriptors" not in arrays:
        if seen is not None or "negative_descriptors" in arrays:
            _refuse(url, "its descriptors are not complete")
        return
    if not isinstance(seen, dict) or set(seen) != {"level", "bright", "classes", "quality"}:
        _refuse(url, "it does not say how its descriptors were seen")
    if seen["level"] not in range(LEVELS) or not isinstance(seen["bright"], bool) or isinstance(seen["level"], bool):
        _refuse(url, "its descriptors were seen on a level, or in a contrast, that there is not")
    wide = arrays["descriptors"].shape[1]
    if len(_array(url, "quality", seen["quality"], 1)) != len(arrays["descriptors"]):
        _refuse(url, "its descriptors are not complete")
    _array(url, "classes", seen["classes"], 1)
    if "negative_descriptors" in arrays and arrays["negative_descriptors"].shape[1] != wide:
        _refuse(url, f"negative_descriptors have {arrays['negative_descriptors'].shape[1]} numbers, expected {wide}")


def _is_radius(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e5


def _is_cosine(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value <= 1


def _array(url: str, key: str, values: Any, dimensions: int) -> Any:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        _refuse(url, f"{key} is not made of numbers")
    if array.ndim != dimensions or not array.size or not np.isfinite(array).all():
        _refuse(url, f"{key} is not made of finite numbers in {dimensions} dimensions")
    return array


def _digest(about: Json) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _refuse(url: str, what: str) -> NoReturn:
    raise InputError(f"{public(url)}: {printable(what)}")
