"""What became of each configuration of each tomogram: one JSON file each, and its picks beside it as CSV.

Figures are not in it: they follow from the picks, the positions and the radius, when a table is made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cryosam_dask.errors import StoreError
from cryosam_dask.io.atomic import write_text

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Record:
    """One configuration of one tomogram and one kind of particle.

    Attributes
    ----------
    request : fingerprint of all that the picks depend on; recipe : the part that is the same for all tomograms
    prompts : (n, 3) voxels (z, y, x); prompted : the annotations that they are, by their row among the positions
    truth : (m, 3) voxels, the annotations; voxel_size : ångström (z, y, x)
    counts : the values of K that picks are there for; empty: the settings' own
    seconds : wall time by kind of work, see `times`; device, executor : what models ran on, and where units ran
    notes : what a user should know; error : why there are no picks
    """

    tomogram: str
    kind: str
    config: str
    request: str
    recipe: str
    status: Literal["done", "failed"]
    seed: int = 0
    prompts: list[list[float]] = field(default_factory=list)
    prompted: list[int] = field(default_factory=list)
    truth: list[list[float]] = field(default_factory=list)
    voxel_size: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    device: str = ""
    executor: str = ""
    notes: list[str] = field(default_factory=list)
    error: str = ""


class Records:
    """The records under a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, tomograms: Iterable[str]) -> None:
        """Make a folder for each tomogram, before anything is run that could then not be written."""
        for tomogram in tomograms:
            make_folder(self._folder / tomogram)

    def _file(self, tomogram: str, kind: str, config: str, suffix: str) -> Path:
        return self._folder / tomogram / f"{kind}-{config}{suffix}"

    def read(self, tomogram: str, kind: str, config: str) -> Record | None:
        """The record of a configuration; None where there is none that can be read, and it is made again."""
        try:
            values = json.loads(self._file(tomogram, kind, config, ".json").read_text(encoding="utf-8"))
            return Record(**values)
        except (OSError, ValueError, TypeError):
            return None

    def picks(self, record: Record, count: int | None = None) -> pd.DataFrame:
        """z, y, x, score; of a run with several values of K, those of `count`."""
        import pandas as pd

        path = self._file(record.tomogram, record.kind, record.config, ".csv")
        try:
            table = pd.read_csv(path, dtype=str).astype(float)  # of texts, so that numbers are those that were written
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path}: can't be read; remove the file beside it that ends in .json and run again"
            ) from error
        return table if count is None else table[table["k"] == count].reset_index(drop=True)

    def write(self, record: Record, picks: pd.DataFrame | None) -> None:
        """The picks first: a record stands for what is complete."""
        path = self._file(record.tomogram, record.kind, record.config, ".json")
        make_folder(path.parent)
        if picks is not None:
            write_text(path.with_suffix(".csv"), picks.to_csv(index=False, lineterminator="\n"))
        write_text(path, json.dumps(asdict(record)) + "\n")


def make_folder(path: Path) -> None:
    """Make a folder and those above it; StoreError where that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: can't be made ({error.strerror})") from error
