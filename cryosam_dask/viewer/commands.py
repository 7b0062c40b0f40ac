"""The commands that do without the page what was done on it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence

from cryosam_dask.pipeline import settings_for
from cryosam_dask.settings import Settings
from cryosam_dask.store.clicks import Kind
from cryosam_dask.store.reviews import Decision
from cryosam_dask.types import Point
from cryosam_dask.viewer import tables
from cryosam_dask.viewer.state import KindState, listed


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


def decisions(url: str, name: str, state: KindState, decided: Sequence[Decision]) -> list[str]:
    """The decisions about a kind, with learning from them where that was done.

    Picks have other numbers once decisions were learned from, so what was learned from is told by its places.

    decided : current decisions, oldest first
    """
    if not state.refined:
        return review(url, name, decided, state.numbers)
    before, after = list[Decision](), list[Decision]()
    for each in decided:
        known = state.learned.get(each.position) == (each.verdict != "rejected")
        (before if known else after).append(each)
    changed = sorted(state.learned.keys() - {each.position for each in before})
    before += [Decision(0, where, "accepted" if state.learned[where] else "rejected") for where in changed]
    taken_back = [where for where in changed if not _is_near(where, after, tables.radius_of(state))]
    after += [Decision(0, where, "undecided") for where in taken_back]
    learning = command("refine", url, "--name", name)
    return [*review(url, name, before, {}), learning, *review(url, name, after, state.numbers)]


def _is_near(where: Point, decided: Iterable[Decision], radius: float) -> bool:
    return any(math.dist(where, each.position) <= radius for each in decided)


def review(url: str, name: str, decided: Sequence[Decision], numbers: Mapping[Point, int]) -> list[str]:
    """Decisions, those of each person in a line: about picks by their numbers, about other places by these.

    numbers : of picks, by their positions as they are listed
    """
    lines = []
    for by in dict.fromkeys(each.by for each in decided):
        words = _verdicts([each for each in decided if each.by == by], numbers)
        lines.append(command("review", url, "--name", name, *words, *(["--by", by] if by else [])))
    return lines


def _verdicts(decided: Iterable[Decision], numbers: Mapping[Point, int]) -> list[str]:
    """Options of `cryosam review`."""
    numbered: dict[str, list[int]] = {"accepted": [], "rejected": []}
    places: list[str] = []
    for each in decided:
        number = numbers.get(listed(each.position))
        if number is not None and each.verdict in numbered:
            numbered[each.verdict].append(number)
        else:
            places += ["--decide", f"{each.verdict}={place(each.position)}"]
    options = (("--accept", numbered["accepted"]), ("--reject", numbered["rejected"]))
    return [*(word for option, own in options if own for word in (option, ranges(own))), *places]


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
