"""The options that give prompts: points on particles, their kinds, and negative points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryosam_dask.cli.options import position, say
from cryosam_dask.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from cryosam_dask.io.frame import TomogramSource
    from cryosam_dask.store.run_store import RunStore


@dataclass(frozen=True)
class Prompts:
    """Options that give the points that the user clicked."""

    point: Annotated[
        list[str] | None,
        typer.Option(metavar="Z,Y,X", help="A voxel on a particle, from 0. May be given again: one kind only."),
    ] = None
    points: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="More points: .csv, .star, .mod, .json, .txt …; another suffix lists all."),
    ] = None
    points_format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Of the file, where its suffix does not tell it, as relion5, warp, xyz; a wrong name lists them all.",
        ),
    ] = None
    points_unit: Annotated[
        str | None, typer.Option(metavar="voxel|angstrom", help="Of positions as plain text (xyz); else voxels.")
    ] = None
    points_tomogram: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose points, of several tomograms in the file; else this one's."),
    ] = None
    points_kind: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which points, of several kinds, objects or classes in that file."),
    ] = None
    points_tomograms: Annotated[
        Path | None,
        typer.Option(metavar="STAR", help="RELION 5's tomograms.star, where the binning does not divide its sizes."),
    ] = None

    kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=Z,Y,X", help="Instead of points: several kinds, told apart. Give each as often as you click."
        ),
    ] = None
    kinds: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same from a file that names the kind of each point.")
    ] = None
    unlike: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="Z,Y,X", help="A voxel on what is not wanted. May be given again."),
    ] = None

    def negatives(self) -> list[list[float]] | None:
        """Negative points, (z, y, x) voxels; None if none are given."""
        return [position(text, "--not") for text in self.unlike] if self.unlike else None

    def by_kind(self, tomogram: Callable[[], dict[str, Any]] | None = None) -> dict[str, list[list[float]]]:
        """Points by kind, (z, y, x) voxels, in the order of the options; may be empty. `tomogram` is as in `read`."""
        points: dict[str, list[list[float]]] = {}
        for text in self.kind or []:
            name, equals, place = text.partition("=")
            if not equals or not name:
                raise InputError(f"--kind {text}: expected NAME=Z,Y,X, as ribosome=92,410,388")
            points.setdefault(name, []).append(position(place, f"--kind {name}="))
        if self.kinds is not None:
            from cryosam_dask.io.points.files import ALL

            table = self._table(self.kinds, tomogram, ALL)
            if "kind" not in table:
                raise InputError(f"{self.kinds}: no column kind; expected z,y,x,kind")
            for name, place in zip(table["kind"], table[["z", "y", "x"]].to_numpy().tolist(), strict=True):
                if name == "":
                    raise InputError(f"{self.kinds}: the point {','.join(f'{v:g}' for v in place)} has no kind")
                points.setdefault(str(name), []).append(place)
        if points and (self.point or self.points is not None):
            raise InputError("--kind and --kinds name what is clicked; give these or --point and --points, not both")
        return points

    def read(self, tomogram: Callable[[], dict[str, Any]] | None = None) -> list[list[float]]:
        """Points of one kind, (z, y, x) voxels; may be empty.

        tomogram : called where a file of points is given; returns the keywords `voxel_size`, `shape` and
            `tomogram_name` of `read_points`
        """
        points = [position(text, "--point") for text in self.point or []]
        if self.points is not None:
            points += self._table(self.points, tomogram, self.points_kind)[["z", "y", "x"]].to_numpy().tolist()
        return points

    def _table(self, path: Path, tomogram: Callable[[], dict[str, Any]] | None, kind: str | None) -> pd.DataFrame:
        """The points of a file; what had to be assumed is said. `InputError` where all are at the tomogram's corner."""
        from cryosam_dask.io.points.files import read_points
        from cryosam_dask.io.points.plausible import check_corner

        known: dict[str, Any] = {} if tomogram is None else tomogram()
        if self.points_tomogram is not None:
            known["tomogram_name"] = self.points_tomogram
        notes: list[str] = []
        known |= {"format": self.points_format, "tomograms": self.points_tomograms, "notes": notes}
        known["unit"] = self.points_unit
        table = read_points(path, **known, kind=kind)
        say(notes)
        check_corner(str(path), table[["z", "y", "x"]].to_numpy(), alone=True)
        return table

    def required(self, tomogram: Callable[[], dict[str, Any]] | None = None) -> list[list[float]]:
        """Points as in `read`; `InputError` if there are none."""
        if points := self.read(tomogram):
            return points
        raise InputError("no point: give --point Z,Y,X on a particle (zero-based voxels), or --points FILE")


def described(tomogram: TomogramSource | RunStore, path: str) -> dict[str, Any]:
    """What `read_points` needs to know of a tomogram, as keywords."""
    from cryosam_dask.io.listing import run_names

    return {"voxel_size": tomogram.voxel_size, "shape": tomogram.shape, "tomogram_name": run_names([path])[0]}
