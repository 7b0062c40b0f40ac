"""Writes results of a run into a copick project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.errors import InputError
from cryosam_dask.io import copick_out, copick_project
from cryosam_dask.outputs.labels import chosen_levels, image_levels, surfaces, tomogram_levels
from cryosam_dask.outputs.names import file_name, name_one
from cryosam_dask.outputs.results import check_own, check_painted, single_name
from cryosam_dask.outputs.reviewed import Only, chosen_picks
from cryosam_dask.storage.address import is_local
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Array

if TYPE_CHECKING:
    import pandas as pd

COPICK = "copick"
Content = Literal["picks", "segmentation", "multilabel", "meshes", "tomogram"]
CONTENTS: tuple[Content, ...] = get_args(Content)


@dataclass(frozen=True)
class CopickChoice:
    """What is written into a copick project, and under which names.

    Attributes
    ----------
    run : the run in the project; None: as the tomogram is called
    object : None: as the query, with - for _; user, session : whose results these are
    contents : some of `CONTENTS`; tomogram : the type that the tomogram gets
    """

    run: str | None = None
    object: str | None = None
    user: str = "cryosam"
    session: str = "0"
    contents: tuple[str, ...] = ("picks", "segmentation")
    tomogram: str = "tomogram"


def export_copick(
    run: str | Path,
    project: str | Path,
    *,
    name: str | None = None,
    choice: CopickChoice | None = None,
    smooth: float = 0.0,
    only: Only | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write results into a copick project, which is made where there is none; the paths of what was written.

    Parameters
    ----------
    project : its folder or its configuration; name : the query; None: all of the run
    only : without what was rejected, see `reviewed`; not for a multilabel segmentation
    smooth : of meshes; overwrite : replace a tomogram. What the same user and session wrote before is replaced anyway

    Raises InputError for names that copick can't have and for voxels that are no cubes, before anything is written.
    """
    store = RunStore.open(run)
    choice = choice or CopickChoice()
    names = [single_name(store, name)] if name is not None or choice.object else picks.names(store)
    contents = list(dict.fromkeys(choice.contents))
    _check_copick(store, names, choice)
    if only is not None and "multilabel" in contents:
        raise InputError("--contents multilabel: it shows all picks; of reviewed ones give picks, segmentation, meshes")
    tables = {query: chosen_picks(store, query, only, added=True) for query in names}
    in_project, targets = choice.run or _run_in(Path(project), store), {}
    for query in names:
        targets[query] = copick_out.open_target(
            Path(project),
            run=in_project,
            object_name=choice.object or object_name(query),
            user=choice.user,
            session=choice.session,
            voxel_size=store.voxel_size,
            shape=store.shape,
            radius=_radius(store, picks.read(store, query)["size"].to_numpy()),
            new_tomogram=choice.tomogram if "tomogram" in contents and not overwrite else None,
        )
    if "tomogram" in contents:
        check_own(store, targets[names[0]].tomogram(choice.tomogram))
    written = [
        path
        for query, target in targets.items()
        for content in contents
        if content in ("picks", "segmentation", "meshes")
        for path in _write_copick(store, query, target, content, smooth, only, tables[query])
    ]
    if "multilabel" in contents:
        written += _write_multilabel(store, targets)
    if "tomogram" in contents:
        dtype, levels = store.array(layout.tomogram()).dtype, tomogram_levels(store)
        first = targets[names[0]]
        written.append(copick_out.write_tomogram(first, choice.tomogram, levels, dtype, overwrite=overwrite))
    return written


def _check_copick(store: RunStore, names: Sequence[str], choice: CopickChoice) -> None:
    """Find all that can be found wrong before the first file is written."""
    if not names:
        raise InputError(f"{store.url}: no results to export yet")
    if not choice.contents or not set(choice.contents) <= set(CONTENTS):
        raise InputError(f"--contents {','.join(choice.contents)}: expected some of {', '.join(CONTENTS)}")
    objects: dict[str, str] = {}
    for name in names:
        copick_object = copick_project.check_name("object", choice.object or object_name(name))
        if (other := objects.setdefault(copick_object, name)) != name:
            raise InputError(
                f"{store.url}: {other} and {name} would both be copick's object {copick_object}: "
                "give --name and --object of each"
            )
        if set(choice.contents) & {"segmentation", "multilabel", "meshes"}:
            check_painted(store, name)


def object_name(name: str) -> str:
    """The name of a query in copick, where names have no underscores."""
    return name.replace("_", "-").strip("-.")


def _write_copick(
    store: RunStore,
    name: str,
    target: copick_out.Target,
    content: str,
    smooth: float,
    only: Only | None,
    table: pd.DataFrame,
) -> list[Path]:
    """One kind of content of one query, with the picks of a table; no meshes where there are no instances."""
    if content == "picks":
        return [copick_out.write_picks(target, table, store.voxel_size)]
    if content == "segmentation":
        image = layout.semantic_name(name)
        levels = image_levels(store, image) if only is None else chosen_levels(store, name, table, True)
        return [copick_out.write_segmentation(target, levels, [0, 1])]
    if not (table["instance"] > 0).any():
        return []
    meshes = surfaces(store, name, origin=(0.0, 0.0, 0.0), smooth=smooth, only=only)
    return [copick_out.write_meshes(target, meshes)]


def _write_multilabel(store: RunStore, targets: dict[str, copick_out.Target]) -> list[Path]:
    """Write one segmentation of all kinds that competed, and one of each other query, with its object's label."""
    kinds = next((competing for name in targets if (competing := picks.kinds(store, name))), [])
    written = []
    if kinds and set(kinds) <= set(targets):
        check_painted(store, layout.KINDS)
        values = [0, *(targets[kind].label for kind in kinds)]
        target = replace(targets[kinds[0]], object=layout.KINDS)
        levels = image_levels(store, layout.KINDS)
        written.append(copick_out.write_segmentation(target, levels, values, multilabel=True))
        targets = {name: target for name, target in targets.items() if name not in kinds}
    for name, target in targets.items():
        levels = image_levels(store, layout.semantic_name(name))
        written.append(copick_out.write_segmentation(target, levels, [0, target.label], multilabel=True))
    return written


def _run_in(project: Path, store: RunStore) -> str:
    """The run in a project that a tomogram is of: the one that is called as its file, else as its tilt series."""
    config, own = copick_out.config_of(project), copick_project.as_run(file_name(store))
    roots = copick_project.open_project(str(config)).roots if config.exists() else ()
    if any(is_local(root) and (Path(root) / "ExperimentRuns" / own).is_dir() for root in roots):
        return own
    return copick_project.as_run(name_one(store, None, None)[0])


def _radius(store: RunStore, sizes: Array) -> float | None:
    """Radius in Å of the sphere as large as the median instance."""
    if not len(sizes) or not np.median(sizes) > 0:
        return None
    volume = float(np.median(sizes)) * float(np.prod(store.voxel_size))
    return geometry.equivalent_radius(volume)
