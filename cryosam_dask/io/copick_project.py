"""copick projects: their content, and addresses of tomograms in them.

A project is a JSON file, its configuration, which names the objects and two folders: `overlay_root`, written to, and
maybe `static_root`, read only. In both, `ExperimentRuns/RUN/VoxelSpacing10.000/TYPE.zarr` is a tomogram, an OME-Zarr.
Layout and conventions: https://copick.github.io/copick/datamodel/ and …/geometry/.

An address is the configuration's, then # and copick's own notation of a tomogram with its run before it:

    project/config.json#TS_001/wbp@10.0

Each part may be left out where there is one only, or be a pattern of `*` and `?`: `config.json#wbp@10`,
`config.json#TS_*`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cryosam_dask.errors import CryosamError, InputError
from cryosam_dask.geometry import same_voxels
from cryosam_dask.io.frame import as_path, in_angstrom, one_line_errors, regular_file, shown
from cryosam_dask.storage.address import check_address, is_local, public
from cryosam_dask.storage.filesystem import filesystem
from cryosam_dask.types import Point, Shape3

CONFIG_SUFFIX = ".json"
_MOST_BYTES = 1 << 24  # of a configuration; some kilobytes are usual
_MOST_SHOWN = 6
_SPACING = re.compile(r"VoxelSpacing(\d+(?:\.\d+)?)")
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\s_]')
SAME_SPACING = 5e-4
"""Å; folders name voxel sizes with three decimals."""


@dataclass(frozen=True)
class Project:
    """A project's configuration.

    config : its path or URL; data : its content; overlay, static : the roots as paths or URLs, without a / at the end;
    static is the overlay where the configuration names none
    """

    config: str
    data: dict[str, Any] = field(repr=False)
    overlay: str
    static: str

    @property
    def roots(self) -> tuple[str, ...]:
        """The folders in which runs are looked for, the overlay first."""
        return (self.overlay,) if self.static == self.overlay else (self.overlay, self.static)

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The pickable objects: name, label, is_particle and so on."""
        return [dict(entry) for entry in self.data["pickable_objects"]]


@dataclass(frozen=True)
class Tomogram:
    """A tomogram of a project: its run, its type, its voxel spacing in Å, and where it is."""

    run: str
    type: str
    spacing: float
    url: str

    @property
    def uri(self) -> str:
        """The tomogram's part of an address."""
        return f"{self.run}/{self.type}@{self.spacing:g}"


@dataclass(frozen=True)
class Address:
    """The parts of an address; patterns, `*` for what was left out, and None for any spacing."""

    config: str
    run: str = "*"
    type: str = "*"
    spacing: float | None = None


def is_address(text: str) -> bool:
    """Whether this is an address of tomograms in a copick project: no other tomogram's path ends in .json."""
    return _split(text)[0].lower().endswith(CONFIG_SUFFIX)


@one_line_errors()
def picks_of(text: str) -> list[str]:
    """Files of picks that `CONFIG.json#RUN/OBJECT:USER/SESSION` stands for, paths or URLs; parts may be patterns.

    Raises InputError where there are none.
    """
    config, uri = _split(text)
    before, colon, by = uri.partition(":")
    run, slash, name = before.rpartition("/")
    user, _, session = by.partition("/")
    if not (slash and run and name) or (colon and not user):
        raise InputError(
            f"{text}: expected CONFIG.json#RUN/OBJECT:USER/SESSION, e.g. config.json#TS_001/ribosome:ann/1"
        )
    project = open_project(config)
    asked = (user or "*", session or "*", name)
    files: dict[str, str] = {}
    for root in project.roots:
        for known in list_runs(project) if set(run) & set("*?[") else [run]:
            if fnmatchcase(known, run):
                here = f"{root}/ExperimentRuns/{known}/Picks"
                for file in _names(here, folders=False):
                    parts = file.removesuffix(".json").split("_")
                    if file.endswith(".json") and len(parts) == 3 and all(map(fnmatchcase, parts, asked)):
                        files.setdefault(f"{known}/{file}", f"{here}/{file}")
    if not files:
        raise InputError(f"{text}: no such picks in the project")
    return [files[key] for key in sorted(files)]


def picks_path(text: str) -> Path:
    """The one local file of picks that `picks_of` finds; InputError where there are several, or it is elsewhere."""
    files = picks_of(text)
    if len(files) > 1:
        names = ", ".join(shown(path.rpartition("/")[2]) for path in files[:_MOST_SHOWN])
        raise InputError(f"{text}: {len(files)} files of picks; say which with OBJECT:USER/SESSION: {names}")
    if not is_local(files[0]):
        raise InputError(f"{text}: these picks are at {public(files[0])}: copy them to a disk")
    return Path(files[0])


def parse(text: str) -> Address:
    """The parts of `CONFIG.json#RUN/TYPE@SPACING`; InputError for anything else."""
    config, uri = _split(text)
    if not uri:
        return Address(config)
    run, slash, tomogram = uri.rpartition("/")
    if not slash and "@" not in tomogram:
        run, tomogram = tomogram, ""
    kind, at, size = tomogram.partition("@")
    spacing = None
    if at and size != "*":
        try:
            spacing = float(size)
        except ValueError:
            spacing = math.nan
        if not (math.isfinite(spacing) and spacing > 0):
            raise InputError(f"{text}: '{shown(size)}' after the @, expected a voxel spacing in Å, e.g. wbp@10.0")
    if "/" in run:
        raise InputError(f"{text}: expected CONFIG.json#RUN/TYPE@SPACING, e.g. config.json#TS_001/wbp@10.0")
    return Address(config, run or "*", kind or "*", spacing)


def run_name(text: str) -> str | None:
    """The run that an address names; None if it names no run or is not an address."""
    if not is_address(text):
        return None
    run = parse(text).run
    return None if set(run) & set("*?[") else run


def folder_name(text: str) -> str:
    """The name of the folder that holds an address's configuration."""
    config = _split(text)[0]
    parent = as_path(config).absolute().parent if is_local(config) else Path(public(config)).parent
    return parent.name or "root"


def tomogram(text: str) -> Tomogram:
    """The one tomogram that an address stands for.

    Raises InputError if it stands for none or for several; the error lists those that exist.
    """
    matches = matching(text)
    if len(matches) > 1:
        raise InputError(f"{text}: {len(matches)} tomograms; say which one: {_some(matches)}")
    return matches[0]


def spacing_notes(known: Tomogram, voxel_size: Point, shape: Shape3) -> tuple[str, ...]:
    """A note if a tomogram's voxel size (Å; z, y, x as its shape) differs from the one in its folder's name."""
    if same_voxels(voxel_size, known.spacing, shape):
        return ()
    own, folder = in_angstrom(voxel_size), f"{known.spacing:g} Å"
    return (f"voxels of {own} in the project's folder for {folder}, by which other tools place picks",)


def addresses(text: str) -> list[str]:
    """The addresses of all tomograms that an address stands for, one a run.

    Raises InputError where there are none, or several of one run, of which one type and spacing must be chosen.
    """
    matches = matching(text)
    runs = [tomogram.run for tomogram in matches]
    if len(set(runs)) < len(runs):
        kinds = sorted({f"{tomogram.type}@{tomogram.spacing:g}" for tomogram in matches})
        raise InputError(
            f"{text}: several tomograms of a run; say which with #TYPE@SPACING: {', '.join(map(shown, kinds))}"
        )
    config = _split(text)[0]
    return [f"{config}#{tomogram.uri}" for tomogram in matches]


@one_line_errors()
def matching(text: str) -> list[Tomogram]:
    """The tomograms that an address stands for, by run; InputError where there are none."""
    asked = parse(text)
    project = open_project(asked.config)
    runs = list_runs(project)
    known = [tomogram for run in runs if fnmatchcase(run, asked.run) for tomogram in list_tomograms(project, run)]
    matches = [
        tomogram
        for tomogram in known
        if fnmatchcase(tomogram.type, asked.type)
        and (asked.spacing is None or abs(tomogram.spacing - asked.spacing) < SAME_SPACING)
    ]
    if not matches:
        if not known and asked.run != "*":
            there = ", ".join(map(shown, runs[:_MOST_SHOWN])) or "none"
            raise InputError(f"{text}: no tomograms of such a run in the project; runs: {there}")
        raise InputError(f"{text}: no such tomogram in the project; there are: {_some(known)}")
    return matches


def open_project(config: str) -> Project:
    """Read and check a project's configuration; InputError if it is not one, or its roots are not on a filesystem."""
    data = read_config(config)
    kind = data.get("config_type", "filesystem")
    if kind != "filesystem" or not isinstance(data.get("overlay_root"), str):
        raise InputError(
            f"{public(config)}: a copick project of type {shown(kind)}, expected 'filesystem' with an overlay_root; "
            "tomograms of the CryoET Data Portal are opened by their own addresses (s3://… or https://…)"
        )
    overlay = _root(config, data["overlay_root"])
    static = data.get("static_root")
    return Project(config, data, overlay, _root(config, static) if isinstance(static, str) else overlay)


def read_config(config: str) -> dict[str, Any]:
    """The content of a configuration, which is checked."""
    shown_config = public(config)
    try:
        if is_local(config):
            path = as_path(config)
            size = regular_file(path).st_size
            text = path.read_bytes() if size <= _MOST_BYTES else b""
        else:
            check_address(config, InputError)
            files, place = filesystem(config)
            size = int(files.info(place).get("size") or 0)
            text = files.cat_file(place) if size <= _MOST_BYTES else b""
        if size > _MOST_BYTES:
            raise InputError(f"{shown_config}: {size} bytes, no configuration of a copick project is that large")
        data = json.loads(text)
    except CryosamError:
        raise
    except (ValueError, RecursionError) as err:
        raise InputError(f"{shown_config}: not JSON, expected the configuration of a copick project") from err
    except FileNotFoundError as err:
        raise InputError(f"{shown_config}: no such file") from err
    except OSError as err:
        raise InputError(f"{shown_config}: can't be read: {err.strerror or err}") from err
    objects = data.get("pickable_objects") if isinstance(data, dict) else None
    if not isinstance(objects, list) or not all(_is_object(entry) for entry in objects):
        raise InputError(
            f"{shown_config}: not the configuration of a copick project: no list 'pickable_objects' of named objects"
        )
    return dict(data)


def list_runs(project: Project) -> list[str]:
    """Names of the runs, sorted."""
    return sorted({name for root in project.roots for name in _folders(f"{root}/ExperimentRuns")})


def list_tomograms(project: Project, run: str) -> list[Tomogram]:
    """The tomograms of a run, those of the overlay before those of the static root that it covers."""
    tomograms: dict[tuple[str, str], Tomogram] = {}
    for root in project.roots:
        here = f"{root}/ExperimentRuns/{run}"
        for folder in _folders(here):
            if not (size := _SPACING.fullmatch(folder)):
                continue
            for name in _folders(f"{here}/{folder}"):
                if name.endswith(".zarr") and not name.endswith("_features.zarr"):
                    kind = name.removesuffix(".zarr")
                    url = f"{here}/{folder}/{name}"
                    tomograms.setdefault((folder, kind), Tomogram(run, kind, float(size[1]), url))
    return [tomograms[key] for key in sorted(tomograms)]


def check_name(what: str, name: str) -> str:
    """A name that stands between underscores in copick's file names; InputError for one that can't."""
    if not name or _FORBIDDEN.search(name) or name.strip("-") != name or name.startswith("."):
        raise InputError(
            f"{what} '{shown(name)}' can't be used in a copick project: expected no spaces, no underscores and none of "
            '< > : " / \\ | ? *'
        )
    return name


def check_run(name: str) -> str:
    """A run's name, which is a folder's: as `check_name`, but underscores may be in it."""
    check_name("run", name.replace("_", "") or "_")
    return name


def as_run(name: str) -> str:
    """A valid name for a run: characters that a run's name can't hold become -."""
    return re.sub(_FORBIDDEN, lambda match: match[0] if match[0] == "_" else "-", name).strip("-.") or "tomogram"


def _is_object(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("name"), str)


def _split(text: str) -> tuple[str, str]:
    config, _, uri = text.partition("#")
    return config, uri


def _some(tomograms: list[Tomogram]) -> str:
    names = [shown(tomogram.uri) for tomogram in tomograms[:_MOST_SHOWN]]
    return ", ".join(names + ["…"] * (len(tomograms) > _MOST_SHOWN)) if names else "none"


def _root(config: str, root: str) -> str:
    """A root as a path or a URL. A relative one is seen from the working folder, as copick does, else from the file."""
    root = root.removeprefix("local://").rstrip("/") or "/"
    if not is_local(root):
        check_address(root, InputError)
        return root
    path = as_path(root)
    if not path.is_absolute() and not path.exists() and is_local(config):
        path = as_path(config).parent / path
    return str(path.absolute())


def _folders(place: str) -> Iterator[str]:
    return _names(place, folders=True)


def _names(place: str, *, folders: bool) -> Iterator[str]:
    """Names of the folders, or of the files, in a folder, hidden ones aside; none where it is not there."""
    try:
        files, path = filesystem(place)
        entries = files.ls(path, detail=True)
    except FileNotFoundError:
        return
    except OSError as err:
        raise InputError(f"{public(place)}: can't be listed: {err.strerror or err}") from err
    for entry in entries:
        name = str(entry["name"]).rstrip("/").rpartition("/")[2]
        # a link's type is not told: what it leads to is found out where it is followed
        kind = (entry["type"] == "directory") == folders or entry.get("islink")
        if kind and name and not name.startswith("."):
            yield name
