"""The commands that do without the page what was done on it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence

from cryosam_dask.pipeline import settings_for
from cryosam_dask.settings import Settings
from cryosam_dask.store.clicks import Kind
from cryosam_dask.view.state import KindState

FEW = 12
"""Places that a command names one by one, at most."""


def command(*words: object) -> str:
    """A line for a shell."""
    return shlex.join(["cryosam", *map(str, words)])


def ingest(tomogram: str, url: str, reading: Sequence[str]) -> str:
    return command("ingest", tomogram, "--out", url, *reading)


def features(url: str, settings: Settings) -> str:
    return command("features", url, *models(settings))


def models(settings: Settings) -> list[str]:
    """The options for models, and for settings that are not those of the models."""
    words = ["--models", settings.preset]
    usual = settings_for(settings.preset).model_dump(mode="json")
    for section, values in settings.model_dump(mode="json").items():
        if isinstance(values, dict):
            for name, value in values.items():
                if value != usual[section][name]:
                    words += ["--set", f"{section}.{name}={json.dumps(value)}"]
    return words


def find(url: str, kind: Kind, state: KindState, settings: Settings) -> list[str]:
    """The query, the matching and the segmentation of a kind."""
    name = ["--name", kind.name]
    points = [word for point in kind.points(True) for word in ("--point", place(point))]
    unlike = [word for point in kind.points(False) for word in ("--not", place(point))]
    lines = []
    if points:
        lines.append(command("query", url, *name, *points, *unlike, *models(settings)))
    if state.made:
        lines.append(command("match", url, *name, *([] if state.count is None else ["--count", state.count])))
        lines.append(command("segment", url, *name))
    return lines


def review(url: str, name: str, verdicts: dict[str, list[int]], added: list[Sequence[float]]) -> list[str]:
    """The decisions about picks, by the numbers that the picks have now; and learning from them.

    verdicts : "accepted" and "rejected" → instances
    """
    words: list[str] = []
    for option, verdict in (("--accept", "accepted"), ("--reject", "rejected")):
        if numbers := verdicts.get(verdict):
            words += [option, ranges(numbers)]
    words += [word for point in added[:FEW] for word in ("--add", place(point))]
    return [command("review", url, "--name", name, *words)] if words else []


def refine(url: str, name: str) -> str:
    return command("refine", url, "--name", name)


def export(url: str, path: str, name: str, format: str, reviewed: bool) -> str:
    return command("export", url, path, "--name", name, "--format", format, *(["--reviewed"] if reviewed else []))


def place(point: Iterable[float]) -> str:
    """A position as the command line has it."""
    return ",".join(f"{v:.10g}" for v in point)


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as 1-4,7."""
    out: list[list[int]] = []
    for number in sorted(set(numbers)):
        if out and out[-1][-1] == number - 1:
            out[-1][1:] = [number]
        else:
            out.append([number])
    return ",".join("-".join(map(str, each)) for each in out)
