"""The programs in examples/ run and print what they are there to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXPECTED = {
    "one_click.py": [
        r"position_z +position_y +position_x +score +size",
        r"\n0 +\d+\.\d+ +\d+\.\d+ +\d+\.\d+ +[01]\.\d+ +\d+",
        r"\n([3-9]|\d\d) ribosomes fill \d+\.\d % of the volume",
        r"\nplaces most like instance 1 lie at z = \d+ Å",
    ],
}


def test_every_example_is_run_here() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("program", EXPECTED)
def test_it_runs_and_prints_what_it_shows(program: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "default", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, FOLDER / program, tmp_path], capture_output=True, text=True, cwd=tmp_path, env=environment,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for pattern in EXPECTED[program]:
        assert re.search(pattern, done.stdout), done.stdout
    assert (tmp_path / "run.zarr").is_dir()
    assert "Traceback" not in done.stderr
