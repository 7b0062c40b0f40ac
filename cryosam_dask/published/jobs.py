"""What a benchmark runs: configurations of tomograms, with their prompts, and what each one is known by."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cryosam_dask.errors import CryosamError, InputError
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.published.data import Entry
from cryosam_dask.published.paper import Config
from cryosam_dask.published.records import Record, Records
from cryosam_dask.published.sampling import prompt_count, prompt_order
from cryosam_dask.published.truth import Positions, read_positions
from cryosam_dask.settings import Settings
from cryosam_dask.stages import ingest
from cryosam_dask.stages.base import fingerprint


@dataclass(frozen=True)
class Asked:
    """What is to be run.

    Attributes
    ----------
    out : folder of the results; `runs/` of the stores, `results/` of the records
    entries : the tomograms with their kinds of particles
    kinds : of particles; an entry that can't be used is written down for each
    configs : of the tomogram with this index, for each of its kinds
    settings : by the encoders that configurations name
    seed : of the sample of prompts
    reading : how to open tomograms (`voxel_size`, `unsigned`)
    pixel_size : Å of the pixels of positions, see `truth.read_positions`
    discard : remove a tomogram's stores once all its configurations are complete
    """

    out: Path
    entries: Sequence[Entry]
    kinds: Sequence[str]
    configs: Callable[[int], Sequence[Config]]
    settings: Mapping[str, Settings]
    seed: int = 0
    reading: Mapping[str, Any] = field(default_factory=dict)
    pixel_size: float | None = None
    discard: bool = False

    @property
    def records(self) -> Records:
        return Records(self.out / "results")

    def record(self, tomogram: str, kind: str, config: Config) -> Record | None:
        """The record of a configuration, if it was made with these settings and this seed, and of what is asked now.

        Of a tomogram that can't be read now, only the former is known.
        """
        stored = self.records.read(tomogram, kind, config.key)
        if stored is None or stored.recipe != self.recipe(config):
            return None
        return stored if self._requests.get((tomogram, kind, config.key), stored.request) == stored.request else None

    @cached_property
    def _requests(self) -> dict[tuple[str, str, str], str]:
        """The requests of all jobs of the tomograms that can be read, by tomogram, kind and configuration."""
        requests: dict[tuple[str, str, str], str] = {}
        for index, entry in enumerate(self.entries):
            with contextlib.suppress(CryosamError, OSError):
                for job in jobs_of(self, entry, self.configs(index)):
                    requests[entry.name, job.kind, job.config.key] = job.request
        return requests

    def recipe(self, config: Config) -> str:
        """Fingerprint of all that a configuration is made with besides the tomogram and its positions."""
        return fingerprint(
            {
                "settings": matched(self.settings[config.encoder], config).model_dump(mode="json"),
                "counts": list(config.counts),
                "seed": self.seed,
                "reading": {key: value for key, value in self.reading.items() if value is not None},
                "pixel_size": self.pixel_size,
            }
        )


@dataclass(frozen=True)
class Job:
    """One configuration of one kind of particle in one tomogram.

    Attributes
    ----------
    settings : of the encoder; prompted : which of the true positions are prompts; truth : (n, 3) voxels (z, y, x)
    notes : on how the positions were read; url : of the store that it runs in
    request : fingerprint of all that its picks depend on
    """

    entry: Entry
    kind: str
    config: Config
    settings: Settings
    prompted: list[int]
    truth: list[list[float]]
    voxel_size: list[float]
    notes: tuple[str, ...]
    url: str
    request: str

    @property
    def prompts(self) -> list[list[float]]:
        """(m, 3) voxels (z, y, x)."""
        return [self.truth[i] for i in self.prompted]

    @property
    def asked(self) -> str:
        """Name of the prompted query, which all ways of matching share."""
        return f"q{fingerprint({'kind': self.kind, 'prompts': self.prompts})[:16]}"

    @property
    def called(self) -> str:
        """Name of the query that it is matched by."""
        return f"{self.config.key[:40]}-{self.request[:16]}"

    @property
    def matched(self) -> Settings:
        """The settings with those of this way of matching."""
        return matched(self.settings, self.config)


def matched(settings: Settings, config: Config) -> Settings:
    """The settings of a configuration."""
    changes: dict[str, Any] = {}
    if config.matching == "naive":
        changes["match.ratios"] = [1]
    if config.counts:
        changes["match.count"] = max(config.counts)
    return settings.replace(changes)


def jobs_of(asked: Asked, entry: Entry, configs: Sequence[Config]) -> list[Job]:
    """What is to be run of a tomogram, encoder by encoder, and in each kind by kind.

    Raises InputError for a tomogram or positions that can't be used.
    """
    if not configs:
        return []
    if entry.error:
        raise InputError(entry.error)
    source = open_tomogram(entry.tomogram, **asked.reading)
    content = ingest.plan(source, entry.tomogram, {}).fingerprint
    size = [float(v) for v in source.voxel_size]
    positions = {kind: read_positions(truth, source, asked.pixel_size) for kind, truth in entry.truths.items()}
    jobs = [
        _job(asked, entry, content, size, kind, positions[kind], config) for kind in positions for config in configs
    ]
    order = list(dict.fromkeys(config.encoder for config in configs))
    return sorted(jobs, key=lambda job: (order.index(job.config.encoder), job.kind))


def _job(
    asked: Asked, entry: Entry, content: str, size: list[float], kind: str, positions: Positions, config: Config
) -> Job:
    settings, points = asked.settings[config.encoder], positions.points.tolist()
    order = prompt_order(len(points), asked.seed, entry.name, kind)
    prompted = sorted(order[: prompt_count(len(points), config.share)].tolist())
    made_with = {part: settings.model_dump(mode="json")[part] for part in ("features", "propagation")}
    store = f"{re.sub(r'[^A-Za-z0-9.-]', '_', config.encoder)}-{fingerprint({'input': content, **made_with})[:8]}.zarr"
    request = fingerprint(
        {"input": content, "kind": kind, "truth": points, "prompted": prompted, "recipe": asked.recipe(config)}
    )
    url = str(asked.out / "runs" / entry.name / store)
    return Job(entry, kind, config, settings, prompted, points, size, positions.notes, url, request)
