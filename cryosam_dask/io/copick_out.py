"""Writing into a copick project: picks, segmentations, meshes and tomograms, in its own layout.

copick's package needs Zarr before version 3 and so can't be loaded beside this one; the tests have it read what this
module writes. Positions are ångström from the first voxel's centre, x y z: voxel · spacing, as copick's documentation
has it (https://copick.github.io/copick/geometry/); the origin in a tomogram's header has no place in a project.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.geometry import one_side
from cryosam_dask.io import copick_project
from cryosam_dask.io.atomic import alone, write_text
from cryosam_dask.io.frame import Block, shown
from cryosam_dask.io.mesh import Surface, write_glb
from cryosam_dask.io.omezarr_out import Level, check_replaceable, write_omezarr
from cryosam_dask.io.points import copick as picks_json
from cryosam_dask.io.points.base import Frame
from cryosam_dask.storage.address import is_local
from cryosam_dask.store import ome

if TYPE_CHECKING:
    import pandas as pd

    from cryosam_dask.types import Array, Point, Shape3

CONFIG_NAME = "config.json"
_LARGEST_LABEL = 2**31 - 1


@dataclass(frozen=True)
class Target:
    """Where in a project results go.

    Attributes
    ----------
    config : the configuration's path; root : the overlay, a local folder
    run, object, user, session : checked names; spacing : Å, exact; names of files have three decimals of it
    label : the object's number in segmentations of several objects
    """

    config: Path
    root: Path
    run: str
    object: str
    user: str
    session: str
    spacing: float
    label: int

    @property
    def folder(self) -> Path:
        return self.root / "ExperimentRuns" / self.run

    @property
    def picks(self) -> Path:
        return self.folder / "Picks" / f"{self.user}_{self.session}_{self.object}.json"

    @property
    def mesh(self) -> Path:
        return self.folder / "Meshes" / f"{self.user}_{self.session}_{self.object}.glb"

    def segmentation(self, multilabel: bool = False) -> Path:
        """Values 0 and 1, or 0 and the object's label."""
        kind = "-multilabel" if multilabel else ""
        name = f"{self.spacing:.3f}_{self.user}_{self.session}_{self.object}{kind}.zarr"
        return self.folder / "Segmentations" / name

    def tomogram(self, kind: str) -> Path:
        return self.folder / f"VoxelSpacing{self.spacing:.3f}" / f"{kind}.zarr"


def is_config(path: Path) -> bool:
    """Whether a path is that of a project's configuration."""
    try:
        copick_project.read_config(str(path))
    except InputError:
        return False
    return True


def open_target(
    path: Path,
    *,
    run: str,
    object_name: str,
    user: str,
    session: str,
    voxel_size: Point,
    shape: Shape3 | None = None,
    radius: float | None = None,
    new_tomogram: str | None = None,
) -> Target:
    """The place of an object's results in a project, which is made, or to which the object is added.

    Parameters
    ----------
    path : the project's configuration, or its folder, in which it is `config.json` or the only configuration
    voxel_size, shape : the tomogram's, Å and voxels
    radius : Å, of the sphere that stands for a pick, for an object that the project does not have yet
    new_tomogram : the type of a tomogram that must not exist yet

    Raises InputError for names that copick can't have, voxels that are no cubes, and a project that is not on a disk;
    nothing is written then.
    """
    copick_project.check_run(run)
    for what, name in (("object", object_name), ("user", user), ("session", session)):
        copick_project.check_name(what, name)
    spacing = _spacing(voxel_size, shape)
    config = config_of(path)
    root, data = _project(config)
    label = _labels(config, data).get(object_name, 0)
    target = Target(config, root, run, object_name, user, session, spacing, label)
    if new_tomogram is not None:
        check_replaceable(target.tomogram(copick_project.check_name("tomogram type", new_tomogram)), overwrite=False)
    _folder(root)
    if label:
        return target
    with alone(config):  # another export may have added its object by now
        _, data = _project(config)
        label = _add_object(config, data, object_name, radius)
        write_text(config, json.dumps(data, indent=4) + "\n")
    return dataclasses.replace(target, label=label)


def _project(config: Path) -> tuple[Path, dict[str, Any]]:
    """The overlay's folder and the content of a project's configuration; of a new one where there is none."""
    if config.exists():
        project = copick_project.open_project(str(config))
        if not is_local(project.overlay):
            raise InputError(f"{config}: its overlay is {project.overlay}; expected a folder on a disk to write to")
        return Path(project.overlay), project.data
    root = config.parent.absolute()
    return root, {
        "config_type": "filesystem",
        "name": root.name,
        "description": "",
        "version": "0.5.0",
        "pickable_objects": [],
        "overlay_root": f"local://{root}",
        "overlay_fs_args": {"auto_mkdir": True},
    }


def config_of(path: Path) -> Path:
    """The configuration of the project at `path`, which may not be there yet."""
    if path.suffix.lower() == copick_project.CONFIG_SUFFIX:
        return path
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: a file, expected the folder of a copick project or its configuration (.json)")
    # listed before it is looked for: another export that is making the project writes the configuration first
    others = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")] if path.exists() else []
    if (path / CONFIG_NAME).exists() or not others:
        return path / CONFIG_NAME
    configs = sorted(entry for entry in path.glob(f"*{copick_project.CONFIG_SUFFIX}") if is_config(entry))
    if len(configs) > 1:
        raise InputError(f"{path}: several configurations; give one of them: {', '.join(e.name for e in configs)}")
    if not configs:
        raise InputError(f"{path}: no copick project (no configuration), and not empty; give another folder")
    return configs[0]


def write_picks(target: Target, table: pd.DataFrame, voxel_size: Point) -> Path:
    """Write picks, columns z, y, x (voxels), score and instance; replaces those of this user, session and object."""
    frame = Frame(
        voxel_size=voxel_size, tomogram=target.run, kind=target.object, user=target.user, session=target.session
    )
    text = picks_json.encode([(table, frame)], False).decode()
    _folder(target.picks.parent)
    write_text(target.picks, text + "\n")
    return target.picks


def write_segmentation(
    target: Target, levels: Sequence[Level], values: Sequence[int], *, multilabel: bool = False
) -> Path:
    """Write a segmentation; replaces that of this user, session and object.

    levels : of numbers from 0; values : what stands for each number, e.g. an object's label
    """
    path = target.segmentation(multilabel)
    table = np.asarray(values, np.min_scalar_type(max(values)))
    mapped = [_mapped(level, table) for level in levels]
    _write_volume(path, mapped, table.dtype, target, sampled=True, overwrite=True)
    return path


def write_tomogram(target: Target, kind: str, levels: Sequence[Level], dtype: DTypeLike, *, overwrite: bool) -> Path:
    """Write the tomogram; an existing one is replaced only with `overwrite`."""
    path = target.tomogram(copick_project.check_name("tomogram type", kind))
    _write_volume(path, levels, dtype, target, sampled=False, overwrite=overwrite)
    return path


def write_meshes(target: Target, surfaces: Iterable[Surface]) -> Path:
    """Write the instances' surfaces as one scene; vertices must be ångström from the first voxel's centre."""
    _folder(target.mesh.parent)
    write_glb(target.mesh, surfaces)
    return target.mesh


def _mapped(level: Level, table: Array) -> Level:
    def read(block: Block) -> Array:
        values: Array = table[level.read(block)]
        return values

    return Level(level.shape, read)


def _write_volume(
    path: Path, levels: Sequence[Level], dtype: DTypeLike, target: Target, *, sampled: bool, overwrite: bool
) -> None:
    _folder(path.parent)
    size = (target.spacing,) * 3
    write_omezarr(
        path, levels, dtype=dtype, voxel_size=size, name="", version="0.4", sampled=sampled, overwrite=overwrite
    )


def _spacing(voxel_size: Point, shape: Shape3 | None) -> float:
    if (side := one_side(voxel_size, shape)) is None:
        raise InputError(
            f"voxels of {' x '.join(f'{v:g}' for v in voxel_size)} Å: copick's voxels are cubes; "
            "resample the tomogram, or export in another format"
        )
    return side


def _labels(config: Path, data: dict[str, Any]) -> dict[str, int]:
    """The labels, 1 and up, of a configuration's objects."""
    return {entry["name"]: _label(config, entry) for entry in data["pickable_objects"]}


def _add_object(config: Path, data: dict[str, Any], name: str, radius: float | None) -> int:
    """The label of an object, which is added to `data`, the configuration's, where it is not there."""
    labels = _labels(config, data)
    if name in labels:
        return labels[name]
    label = max(labels.values(), default=0) + 1
    entry = {"name": name, "is_particle": True, "label": label, "color": list(ome.color_of(label))}
    if radius is not None:
        entry["radius"] = round(radius, 3)
    data["pickable_objects"] = [*data["pickable_objects"], entry]
    return label


def _label(config: Path, entry: dict[str, Any]) -> int:
    """An object's label, which is 1 for copick where there is none."""
    label = entry.get("label")
    if label is not None and (not isinstance(label, int) or not 0 < label <= _LARGEST_LABEL):
        raise InputError(f"{config}: the object {shown(entry['name'])} has the label {shown(label)}, expected 1, 2, …")
    return 1 if label is None else int(label)


def _folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise StoreError(f"{path}: can't be made: {err.strerror or err}") from err
