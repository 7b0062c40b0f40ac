"""The installation fails where pip goes through many versions of a project, and says of which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("versions_tried.py")
INSTALL = """\
Processing ./.
  Installing build dependencies: started
Collecting s3fs>=2025.2 (from cryosam-dask==0.1.0)
  Downloading s3fs-2026.9.0-py3-none-any.whl.metadata (1.2 kB)
Processing /folder/of/wheels/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl (from cryosam-dask==0.1.0)
Collecting antlr4-python3-runtime (from moto[server]>=5.1->cryosam-dask==0.1.0)
  Using cached antlr4-python3-runtime-4.13.2.tar.gz (117 kB)
Requirement already satisfied: six>=1.5 in ./lib (from python-dateutil)
Downloading s3fs-2026.9.0-py3-none-any.whl (33 kB)
"""


def check(folder: Path, *outputs: str) -> subprocess.CompletedProcess[str]:
    paths = [folder / f"{number}.txt" for number in range(len(outputs))]
    for path, output in zip(paths, outputs, strict=True):
        path.write_text(output)
    return subprocess.run([sys.executable, SCRIPT, *paths], capture_output=True, text=True, check=False)


def backtracking(count: int) -> str:
    files = [f"  Downloading Boto_Core-1.44.{patch}-py3-none-any.whl (16.9 MB)" for patch in reversed(range(count))]
    return "\n".join(["Collecting boto-core>=1.20 (from moto)", *files, ""])


def test_an_installation_that_finds_its_versions_at_once_passes(tmp_path: Path) -> None:
    done = check(tmp_path, INSTALL, backtracking(5))

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_many_versions_of_a_project_are_an_error_that_names_it(tmp_path: Path) -> None:
    done = check(tmp_path, INSTALL, backtracking(6))

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("pip looked at 6 versions of boto-core, from 1.44.5 down to 1.44.0")


def test_versions_add_up_over_the_steps_of_an_installation(tmp_path: Path) -> None:
    older = backtracking(4).replace("1.44.", "1.43.")

    assert "8 versions of boto-core" in check(tmp_path, backtracking(4), older).stderr


def test_what_is_not_pips_output_is_no_proof(tmp_path: Path) -> None:
    done = check(tmp_path, "")

    assert done.returncode == 1
    assert "not what pip prints" in done.stderr
