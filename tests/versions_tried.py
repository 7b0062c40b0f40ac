"""Fail when pip went through many versions of a project: `python tests/versions_tried.py PIP_OUTPUT…`.

Without a bound that says which version fits, pip downloads one after the other until one does, which may take minutes
and gigabytes. What it tried stands in what it prints; this counts it, and asks for a bound.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, parse_sdist_filename, parse_wheel_filename
from packaging.version import Version

MOST = 5

# "  Downloading s3fs-2026.9.0-py3-none-any.whl.metadata (1.2 kB)", "Processing /wheels/idna-3.20-py3-none-any.whl"
_FILE = re.compile(
    r"\s*(?:Downloading|Using cached|Processing) (?:\S*/)?([^\s/]+?(\.whl|\.tar\.gz|\.zip))(?:\.metadata)?(?:\s|$)"
)
_STEP = re.compile(r"\s*(?:Collecting|Processing|Requirement already satisfied)\b")


def versions_tried(lines: Iterable[str]) -> dict[str, set[Version]]:
    """The versions of each project that pip looked at, from what it printed (without --quiet).

    Raises ValueError where nothing in `lines` is pip's.
    """
    tried: defaultdict[str, set[Version]] = defaultdict(set)
    is_of_pip = False
    for line in lines:
        is_of_pip = is_of_pip or _STEP.match(line) is not None
        if match := _FILE.match(line):
            parse = parse_wheel_filename if match[2] == ".whl" else parse_sdist_filename
            try:
                name, version = parse(unquote(match[1]))[:2]
            except (InvalidSdistFilename, InvalidWheelFilename):  # a folder's or an archive's own name
                continue
            tried[name].add(version)
    if not is_of_pip:
        raise ValueError("this is not what pip prints as it installs")
    return dict(tried)


def complaints(tried: dict[str, set[Version]], most: int = MOST) -> list[str]:
    """One line for each project of which more than `most` versions were tried."""
    return [
        f"pip looked at {len(versions)} versions of {name}, from {max(versions)} down to {min(versions)} "
        f"(at most {most} are usual): a bound has to say which one fits"
        for name, versions in sorted(tried.items())
        if len(versions) > most
    ]


def main(paths: list[str]) -> int:
    lines = [line for path in paths for line in Path(path).read_text(errors="replace").splitlines()]
    try:
        errors = complaints(versions_tried(lines))
    except ValueError as error:
        errors = [f"{', '.join(paths)}: {error}"]
    for error in errors:
        print(error, file=sys.stderr)  # noqa: T201
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
