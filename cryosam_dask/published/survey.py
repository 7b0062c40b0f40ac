"""What a data set's folder holds, before anything runs: a look at headers and positions."""

from __future__ import annotations

from collections.abc import Sequence

from cryosam_dask.errors import CryosamError
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.published.jobs import Asked
from cryosam_dask.published.truth import read_positions
from cryosam_dask.published.words import grid

HEAD = ("tomogram", "voxels z × y × x", "Å", "annotations", "configurations")


def survey(asked: Asked) -> str:
    """A table of the tomograms with their annotations and configurations, and what is wrong with some."""
    rows: list[Sequence[str]] = []
    notes: list[str] = []
    for index, entry in enumerate(asked.entries):
        count = str(len(asked.configs(index)) * max(1, len(entry.truths)))
        try:
            if entry.error:
                raise CryosamError(entry.error)
            source = open_tomogram(entry.tomogram, **asked.reading)
            annotated = {kind: read_positions(t, source, asked.pixel_size) for kind, t in entry.truths.items()}
        except (CryosamError, OSError) as error:
            rows.append((entry.name, "-", "-", "can't be used", count))
            notes.append(f"{entry.name}: {error}")
            continue
        shape = " × ".join(str(n) for n in source.shape)
        size = " × ".join(f"{v:g}" for v in dict.fromkeys(source.voxel_size))
        counts = ", ".join(f"{kind} {len(positions.points)}" for kind, positions in annotated.items())
        rows.append((entry.name, shape, size, counts, count))
        notes += [f"{entry.name}: {note}" for positions in annotated.values() for note in positions.notes]
    return "\n".join([grid(HEAD, rows), *notes])
