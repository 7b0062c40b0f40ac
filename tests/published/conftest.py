"""Small data sets laid out as the real ones are, and what running them needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryosam_dask.executors.base import Report
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.stages.base import Context, Stage, Unit

SHAPE = (20, 36, 38)
VOXEL = 10.0
BALLS = {
    "TS_026": ((9, 9, 10), (10, 27, 9), (10, 9, 29)),
    "TS_027": ((10, 10, 9), (9, 27, 28)),
    "TS_101": ((10, 18, 20),),
}
"""Centres (z, y, x) of the particles of each tomogram, in voxels."""


def volume(centres: Sequence[tuple[int, int, int]], seed: int) -> np.ndarray:
    z, y, x = np.indices(SHAPE)
    values = np.random.default_rng(seed).normal(size=SHAPE)
    for a, b, c in centres:
        values += 4.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 20)
    return values.astype(np.float32)


def write_star(path: Path, rows: Sequence[tuple[str, tuple[float, float, float]]], binning: float = 4.0) -> None:
    """Positions as Warp and RELION 3 write them: unbinned pixels, x y z, and the tilt series' name."""
    head = "\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n_rlnCoordinateZ #3\n_rlnMicrographName #4\n"
    lines = [f"{x * binning:.3f} {y * binning:.3f} {z * binning:.3f} {name}" for name, (z, y, x) in rows]
    path.write_text(head + "\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def warp_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tomograms of Warp, binned by 4, and one STAR file, without rows for the third."""
    folder = tmp_path_factory.mktemp("empiar-10499")
    (folder / "reconstruction").mkdir()
    for seed, (name, centres) in enumerate(BALLS.items()):
        with mrcfile.new(folder / "reconstruction" / f"{name}.mrc_10.00Apx.mrc", volume(centres, seed)) as file:
            file.voxel_size = VOXEL
    rows = [(f"{name}.tomostar", centre) for name, centres in list(BALLS.items())[:2] for centre in centres]
    write_star(folder / "run_ct17_it034_data.star", rows)
    return folder


class Counting(SerialExecutor):
    """Counts the units that ran to their end, and is interrupted before the one after `limit` of them."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.ran: Counter[tuple[str, str, str]] = Counter()

    def run(self, stage: Stage, context: Context, units: Sequence[Unit], report: Report) -> None:
        for unit in units:
            if self.limit is not None and self.ran.total() >= self.limit:
                raise KeyboardInterrupt
            super().run(stage, context, [unit], report)
            self.ran[context.url, stage.name, unit.name] += 1


@pytest.fixture
def counting() -> type[Counting]:
    return Counting
