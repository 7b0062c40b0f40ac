"""The facts of a report about the run as a whole: tomogram, versions, progress, time and memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cryosam_dask.errors import StoreError
from cryosam_dask.report.reading import attempt
from cryosam_dask.stages import chain
from cryosam_dask.storage.address import public
from cryosam_dask.store import journal
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json

MOST_COMMANDS = 30
"""How many of the latest commands are listed."""

_HOSTS = re.compile(r"\b(tcp|tls|ucx|wss?|inproc)://[^\s,;]*[^\s,;:]")


@dataclass(frozen=True)
class StageTime:
    """Time and memory of a kind of stage, over all commands.

    Attributes
    ----------
    seconds : wall time; unit_seconds : of all units together; share : of the longest stage's wall time
    devices : that models ran on; workers : processes, at most; peak : resident bytes of the largest
    retried, failed : units' failures after which they were tried again, and units that were given up
    """

    words: str
    units: int
    seconds: float
    unit_seconds: float
    share: float
    devices: str
    workers: int
    peak: int
    retried: int
    failed: int


@dataclass(frozen=True)
class Command:
    """A command of the journal."""

    words: str
    began: str
    ended: str
    executor: str
    outcome: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """The progress of a stage."""

    name: str
    done: int
    units: int


@dataclass(frozen=True)
class Facts:
    """The run as a whole; fields that its metadata lack are None or empty."""

    run: str
    name: str
    path: str
    format: str
    dtype: str
    digest: str
    shape: tuple[int, int, int]
    voxel_size: tuple[float, float, float]
    size_nm: tuple[float, float, float]
    version: str
    packages: dict[str, str]
    statistics: dict[str, float]
    encoder: str
    weights: str
    channels: str
    notes: tuple[str, ...]
    stages: tuple[StageTime, ...]
    commands: tuple[Command, ...]
    progress: tuple[Progress, ...]
    problems: tuple[str, ...]

    @property
    def unfinished(self) -> tuple[Progress, ...]:
        """Stages that have begun and are not done, without those that never run all of their units."""
        sparse = {stage.name for stage in chain.STAGES if stage.sparse}
        return tuple(p for p in self.progress if p.done < p.units and p.name not in sparse)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def isotropic(self) -> float | None:
        """The voxel size where it is the same along all axes."""
        return self.voxel_size[0] if len({round(v, 4) for v in self.voxel_size}) == 1 else None


def facts(store: RunStore) -> Facts:
    """Read the facts of a run. `StoreError` if shape or voxel size are damaged: there can be no report then."""
    info, problems = store.info, list[str]()
    source, features = _dict(info.get("input")), _dict(info.get("features"))
    shape, voxel = store.shape, store.voxel_size
    if not (min(shape) > 0 and all(math.isfinite(v) and v > 0 for v in voxel)):
        raise StoreError(f"{store.url}: zarr.json is damaged: shape {shape}, voxel size {voxel}, expected more than 0")
    z, y, x = (n * v / 10 for n, v in zip(shape, voxel, strict=True))
    path = public(str(source.get("path", "")))
    entries = attempt(problems, "journal", lambda: journal.commands(store)) or []
    progress = attempt(problems, "progress", lambda: chain.progress(store)) or {}
    stages = attempt(problems, "timings", lambda: stage_times(entries)) or ()
    return Facts(
        run=store.url,
        name=str(source.get("name") or path.rstrip("/").rpartition("/")[2] or "tomogram"),
        path=path,
        format=str(source.get("format", "")),
        dtype=str(source.get("dtype", "")),
        digest=str(source.get("sha256") or source.get("sha256_sampled") or ""),
        shape=shape,
        voxel_size=voxel,
        size_nm=(z, y, x),
        version=str(info.get("version", "?")),
        packages={str(k): str(v) for k, v in _dict(info.get("packages")).items()},
        statistics={str(k): float(v) for k, v in _dict(info.get("statistics")).items() if isinstance(v, int | float)},
        encoder=str(features.get("encoder", "")),
        weights=str(features.get("weights", "")),
        channels=str(features.get("channels", "?")),
        notes=_strings(info.get("notes")),
        stages=stages,
        commands=attempt(problems, "commands", lambda: _commands(entries)) or (),
        progress=tuple(Progress(name, done, count) for name, (done, count) in progress.items()),
        problems=tuple(problems),
    )


def stage_times(entries: Iterable[Json]) -> tuple[StageTime, ...]:
    """Time and memory of each kind of stage, in the order of a run; unknown stages come last."""
    sums: dict[str, list[Json]] = {}
    for entry in entries:
        for name, stage in _dict(entry.get("stages")).items():
            sums.setdefault(kind_of(name), []).append(_dict(stage))
    longest = max((_sum(parts, "seconds") for parts in sums.values()), default=0.0)
    return tuple(_stage_time(kind, sums[kind], longest) for kind in chain.in_order(set(sums)))


def kind_of(name: str) -> str:
    """ "match" for "match/ribosome/r16", "segment/queries" for "segment/queries/ribosome"."""
    declared = chain.declaration_of(name)
    return name.partition("/")[0] if declared is None else declared.name


def _words(kind: str) -> str:
    return next((stage.words for stage in chain.STAGES if stage.name == kind and stage.words), kind)


def _stage_time(kind: str, parts: list[Json], longest: float) -> StageTime:
    seconds = _sum(parts, "seconds")
    return StageTime(
        words=_words(kind),
        units=int(_sum(parts, "units")),
        seconds=seconds,
        unit_seconds=_sum(parts, "unit_seconds"),
        share=seconds / longest if longest else 0.0,
        devices=", ".join(sorted({str(part.get("device", "?")) for part in parts})),
        workers=max((sum(int(n) for n in _dict(part.get("workers")).values()) for part in parts), default=0),
        peak=max(int(part.get("peak", 0)) for part in parts),
        retried=int(_sum(parts, "retried")),
        failed=int(_sum(parts, "failed")),
    )


def _sum(parts: Iterable[Json], key: str) -> float:
    values = [float(part.get(key, 0)) for part in parts]
    return sum(value for value in values if math.isfinite(value))


def _commands(entries: list[Json]) -> tuple[Command, ...]:
    return tuple(
        Command(
            words=str(entry.get("command", "?")),
            began=str(entry.get("began") or ""),
            ended=str(entry.get("ended") or ""),
            executor=_without_hosts(str(entry.get("executor", ""))),
            outcome=_without_hosts(str(entry.get("outcome", ""))),
            notes=tuple(map(_without_hosts, _strings(entry.get("notes")))),
        )
        for entry in entries[-MOST_COMMANDS:]
    )


def _without_hosts(text: str) -> str:
    """Remove the addresses of schedulers and workers from a text: pages are passed on more widely than stores."""
    return _HOSTS.sub("…", text)


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _strings(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list | tuple) else ()


def settings_rows(settings: Json, prefix: str = "") -> list[tuple[str, str]]:
    """Settings as (dotted name, value) for a table."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, dict):
            rows += settings_rows(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            rows.append((f"{prefix}{key}", "none" if value is None else text))
    return rows
