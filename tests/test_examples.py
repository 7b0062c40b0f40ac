"""The programs and the notebook in examples/, and the examples of docs/analysis.md, run and show what they are for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from cryosam_dask.cli import main

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples"
EXPECTED = {
    "one_click.py": [
        r"position_z +position_y +position_x +score +size",
        r"\n0 +\d+\.\d+ +\d+\.\d+ +\d+\.\d+ +[01]\.\d+ +\d+",
        r"\n([3-9]|\d\d) ribosomes fill \d+\.\d % of the volume",
        r"\nplaces most like instance 1 lie at z = \d+ Å",
    ],
    "denoise.py": [
        r"^([3-9]|\d\d) ribosomes, \d+ of them below z = 320 Å",
        r"\n75\.0 +-?0\.\d\d? +[01]\.\d+",
        r"\nthe mean particle is [0-9.]+ in its middle, -[0-9.]+ at the least",
        r"\nz 0-32 nm +\d+",
    ],
}
NOTEBOOKS = {"analysis.ipynb"}
SHOWN = [
    r"\{'units': 'nm\^3', 'long_name': 'volume of the mask'\}",
    r"\d+ whole ribosomes of 2[4-9]\d\d ± \d+ nm³",
    r"z 20-40 nm",
    r"matched +[3-9]\n",
    r"mean_iou +(1|0\.[6-9])",
]

EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
where = {"metadata": {"path": sys.argv[2]}}
nbclient.NotebookClient(notebook, kernel_name="here", timeout=600, resources=where).execute()
nbformat.write(notebook, sys.argv[3])
"""


def test_every_example_is_run_here() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == set(EXPECTED)
    assert {path.name for path in FOLDER.glob("*.ipynb")} == NOTEBOOKS


@pytest.mark.parametrize("program", EXPECTED)
def test_it_runs_and_prints_what_it_shows(program: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "default", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, FOLDER / program, tmp_path], capture_output=True, text=True, cwd=tmp_path, env=environment,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for pattern in EXPECTED[program]:
        assert re.search(pattern, done.stdout), done.stdout
    assert (tmp_path / "run.zarr").is_dir()
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="session")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The analysis notebook, executed, and the folder with what it made."""
    folder = tmp_path_factory.mktemp("notebook")
    # a kernel of this very interpreter, whatever others the user has
    kernel = folder / "jupyter" / "kernels" / "here"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    environment = {
        **os.environ,
        "JUPYTER_DATA_DIR": str(folder / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter" / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONWARNINGS": "default",
    }
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, FOLDER / "analysis.ipynb", folder, folder / "executed.ipynb"],
        capture_output=True, text=True, cwd=folder, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "executed.ipynb").read_text(encoding="utf-8")), folder / "analysis-example"


def test_the_notebook_shows_tables_and_plots(notebook: tuple[dict[str, Any], Path]) -> None:
    outputs = [out for cell in notebook[0]["cells"] for out in cell.get("outputs", [])]
    assert [out for out in outputs if out["output_type"] == "error" or out.get("name") == "stderr"] == []
    texts = ["".join(out.get("text", "") or out["data"].get("text/plain", "")) for out in outputs]
    for pattern in SHOWN:
        assert re.search(pattern, "\n".join(texts)), texts
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 2
    assert sum("text/html" in out.get("data", {}) for out in outputs) >= 4


def test_the_notebook_is_kept_without_outputs() -> None:
    kept = json.loads((FOLDER / "analysis.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def beside_runs(notebook: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page on analysis speaks of."""
    folder = notebook[1]
    with mrcfile.open(folder / "tomogram.mrc") as file:
        shape = file.data.shape
    mask = np.zeros(shape, np.int8)
    mask[:, 10:12] = 1
    with mrcfile.new(folder / "membrane.mrc", mask, overwrite=True) as file:
        file.voxel_size = 10
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.usefixtures("beside_runs")
def test_the_examples_of_the_page_on_analysis_run() -> None:
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "analysis.md", "python"):
        exec(compile(block, "docs/analysis.md", "exec"), names)
    assert names["plane"].dims == ("y", "x")
    assert 0 < names["share"] < 0.5
    assert min(names["around"].shape) > 20
    assert float(names["inside"]) > 0.3
    assert len(names["frame"]) == len(names["picks"])
    assert {"distance_to_membrane", "distance_to_wall"} <= set(
        names["analysis"].instance_table("run.zarr", distance_to={"membrane": "membrane.mrc", "wall": names["wall"]})
    )
    assert float(names["g"][0]) == 0
    assert 0 < names["upper"].sizes["pick"] < names["rows"].sizes["pick"]
    assert names["nearest"].sizes["pick"] == 1
    assert float(names["at_picks"].max()) > 0.3
    assert float(names["mean_particle"].sel(z=0, y=0, x=0)) > 0
    assert names["between"].sizes["z"] == 2
    assert names["everywhere"].notnull().all()
    assert float(names["along_z"].mean()) > 0
    assert float(names["median"].max()) < 1
    assert names["both"].attrs["matched"] > 3


def test_the_commands_of_the_page_on_analysis_run(
    beside_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for block in blocks(ROOT / "docs" / "analysis.md", "bash") for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        monkeypatch.setattr(sys, "argv", line.split())
        main()
    assert "mean iou" in capsys.readouterr().out
    assert {"table.csv", "table.parquet", "table.nc", "both.csv"} <= {path.name for path in beside_runs.iterdir()}
