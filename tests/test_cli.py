"""The command: what it prints, where errors go, exit codes, how fast it starts."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from cryosam_dask.pipeline import batch
from cryosam_dask.pipeline.summary import Row, Summary

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tomogram(tmp_path: Path) -> Path:
    path = tmp_path / "t.mrc"
    values = np.random.default_rng(0).normal(size=(20, 30, 40)).astype(np.float32)
    with mrcfile.new(path, values) as file:
        file.voxel_size = 10
    return path


RUN = ["run", "{t}", "--out", "{o}", "--models", "texture+random-walker"]


def one_line(err: str) -> str:
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("cryosam: error: ")
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{t}", "--out", "{o}", "--models", "texture+random-walker"], "no point: give --point Z,Y,X"),
        ([*RUN, "--point", "1,2"], "expected three numbers Z,Y,X"),
        ([*RUN, "--point", "a,b,c"], "expected numbers"),
        ([*RUN, "--point", "39,15,10"], "looks like x,y,z"),
        ([*RUN, "--point", "5,99,10"], "outside"),
        (["run", "{t}", "--out", "{o}", "--models", "dinov9+sam-vith", "--point", "5,5,5"], "dinov9"),
        ([*RUN, "--point", "5,5,5", "--name", "../x"], "name '../x'"),
        (
            [*RUN, "--point", "5,5,5", "--set", "match.tau=1"],
            "no setting",
        ),
        (
            [*RUN, "--point", "5,5,5", "--set", "match.tau_sim=7"],
            "tau_sim",
        ),
        (
            [*RUN, "--point", "5,5,5", "--ratios", "4,8"],
            "coarse to fine",
        ),
        ([*RUN, "--points", "p.dat"], "name one (--points-format"),
        ([*RUN, "--point", "5,5,5", "--ratios", "16.5"], "--ratios 16.5: expected whole numbers"),
        ([*RUN, "--point", "5,5,5", "--unit-timeout", "-3"], "unit timeout -3: expected seconds above 0"),
        ([*RUN, "--point", "5,5,5", "--scheduler", "node"], "--scheduler node: expected tcp://HOST:PORT"),
        ([*RUN, "--point", "5,5,5", "--device", "cuda"], "cuda"),
        (["run", "none.mrc", *RUN[2:], "--point", "5,5,5"], "none.mrc"),
        (["info", "{o}"], "no run found"),
        (["export", "{o}", "p.csv"], "no run found"),
        (["features", "{o}", "--models", "texture+random-walker"], "no run found"),
        (["match", "{o}"], "no run found"),
        (["simulate", "{o}.mrc", "--preset", "virus"], "preset"),
        (["simulate", "{o}.mrc", "--snr", "-1"], "snr"),
        (["simulate", "{o}.mrc", "--shape", "48.5,64,64"], "--shape 48.5,64,64: expected whole numbers"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    cryosam: Run, tomogram: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "run.zarr"
    code, _, err = cryosam(*(a.replace("{t}", str(tomogram)).replace("{o}", str(out)) for a in arguments))
    assert code == 2
    assert message in one_line(err)
    assert list(tmp_path.iterdir()) == [tomogram]


def test_verbose_after_the_command_is_told_where_it_goes(cryosam: Run) -> None:
    code, _, err = cryosam("info", "run.zarr", "-v")
    assert code == 2
    assert "before the command: cryosam -v run" in err


def test_a_simulation_has_the_shape_and_voxel_size_that_were_asked_for(cryosam: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.mrc"
    options = ("--preset", "ribosome", "--count", 1, "--membranes", 0, "--shape", "48,64,70", "--voxel-size", 13.5)
    assert cryosam("simulate", path, *options)[0] == 0
    with mrcfile.open(path, header_only=True) as file:
        assert (int(file.header.nz), int(file.header.ny), int(file.header.nx)) == (48, 64, 70)
        assert float(file.voxel_size.x) == pytest.approx(13.5)


def test_a_scheduler_that_does_not_answer_is_one_line(cryosam: Run, tomogram: Path, tmp_path: Path) -> None:
    code, _, err = cryosam(
        "run", tomogram, "--out", tmp_path / "r.zarr", "--models", "texture+random-walker", "--point", "5,5,5",
        "--scheduler", "tcp://127.0.0.1:1",
    )  # fmt: skip
    assert code == 1
    assert "tcp://127.0.0.1:1" in one_line(err)
    assert not (tmp_path / "r.zarr").exists()


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that even root can't write in")
def test_a_folder_without_permission_is_one_line(cryosam: Run, tomogram: Path) -> None:
    code, _, err = cryosam("ingest", tomogram, "--out", "/sys/kernel/run.zarr", "--workers", 0)
    assert code == 2
    assert "/sys/kernel/run.zarr: can't be written" in one_line(err)


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_later(
    cryosam: Run, tomogram: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third mark can't be written any more."""
    from cryosam_dask.store import marks

    mark, out = marks.mark, tmp_path / "run.zarr"
    assert cryosam("ingest", tomogram, "--out", out, "--workers", 0)[0] == 0
    count = 0

    def full(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mark(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(marks, "mark", full)
        code, _, err = cryosam("features", out, "--models", "texture+random-walker", "--workers", 0)
    assert code == 2
    assert "No space left on device" in one_line(err)
    assert cryosam("features", out, "--models", "texture+random-walker", "--workers", 0)[0] == 0


def test_stage_by_stage_equals_the_whole_run(cryosam: Run, tmp_path: Path) -> None:
    tomogram, one, two = tmp_path / "t.mrc", tmp_path / "one.zarr", tmp_path / "two.zarr"
    code, out, _ = cryosam(
        "simulate", tomogram, "--truth", tmp_path / "truth.csv", "--preset", "ribosome", "--shape", "48,96,96",
        "--species", "ribosome", "--membranes", 0, "--count", 3,
    )  # fmt: skip
    assert code == 0
    click = out.split("--point ")[1].strip()
    common = ["--models", "builtin", "--workers", "0"]
    assert cryosam("run", tomogram, "--point", click, "--out", one, *common)[0] == 0
    assert cryosam("ingest", tomogram, "--out", two, "--workers", "0")[0] == 0
    assert cryosam("features", two, *common)[0] == 0
    code, _, err = cryosam("query", two, "--point", click, "--models", "dinov2-vits14+random-walker", "--workers", 0)
    assert code == 2
    assert "its features are of texture" in one_line(err)
    assert cryosam("query", two, "--point", click, "--workers", 0)[0] == 0  # with the models of the features
    assert cryosam("match", two, "--workers", "0")[0] == 0
    code, out, err = cryosam("segment", two, "--workers", "0")
    assert code == 0, err
    assert "instances of 'particle'" in out
    for run in (one, two):
        assert cryosam("export", run, run.with_suffix(".csv"))[0] == 0
    assert one.with_suffix(".csv").read_text() == two.with_suffix(".csv").read_text()

    code, out, _ = cryosam("evaluate", one, "--truth", tmp_path / "truth.csv", "--radius", 12, "--json")
    figures = json.loads(out)
    assert code == 0
    assert 0 <= figures["precision"] <= 1
    assert figures["recall"] > 0
    code, out, _ = cryosam("info", one)
    assert code == 0
    assert "48 × 96 × 96 voxels" in out
    assert "particle-net" in out
    assert json.loads(cryosam("info", one, "--json")[1])["shape"] == [48, 96, 96]

    shutil.rmtree(two / "marks/query/particle/c")  # as if the query had not been finished
    code, _, err = cryosam("match", two, "--workers", "0")
    assert code == 2
    assert "no query called 'particle' (there are: none yet)" in one_line(err)


def test_help_and_import_do_not_load_the_heavy_packages() -> None:
    code = (
        "import sys, cryosam_dask, cryosam_dask.cli;"
        "heavy = {'torch', 'timm', 'zarr', 'dask', 'distributed', 'scipy', 'matplotlib', 'acryo'} & set(sys.modules);"
        "print(sorted(heavy)); import time; print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "[]"
    assert float(done.stdout.splitlines()[1]) < 3  # seconds of a core; far less where it is not shared


def test_a_pipe_gets_results_on_stdout_and_nothing_else(tomogram: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from cryosam_dask.cli import main; main()", "ingest", str(tomogram),
         "--out", str(tmp_path / "r.zarr"), "--workers", "0"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path / 'r.zarr'}: ingested {tomogram}\n"
    assert done.stderr == ""


def test_what_is_damaged_is_named_and_made_again_on_request(cryosam: Run, tomogram: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.zarr"
    ingest = ("ingest", tomogram, "--out", out, "--workers", 0)
    assert cryosam(*ingest)[0] == 0
    code, words, _ = cryosam("verify", out)
    assert code == 0
    assert "all sound" in words
    chunk = out / "scale0/tomogram/c/0/0/0"
    sound = chunk.read_bytes()
    chunk.write_bytes(sound[:50] + bytes([sound[50] ^ 1]) + sound[51:])
    code, words, _ = cryosam("verify", out)
    assert code == 1
    assert "chunk 0/0/0 of scale0/tomogram: checksum (ingest unit 0)" in words
    code, found, _ = cryosam("verify", out, "--repair", "--json")
    assert code == 0
    assert [damage["chunk"] for damage in json.loads(found)["damages"]] == [[0, 0, 0]]
    assert cryosam(*ingest)[0] == 0
    assert chunk.read_bytes() == sound
    assert cryosam("verify", out)[0] == 0


def test_a_tomogram_that_failed_among_many_makes_the_exit_code_one(
    cryosam: Run, tomogram: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def run_many(tomograms: list[str], points: list[list[float]], out: str, **options: Any) -> Summary:
        asked.update(options, tomograms=tomograms, points=points, out=out)
        rows = [Row("a.mrc", "a", "a.zarr", "done", 3, 1.0), Row("b.mrc", "b", "b.zarr", "failed", error="it is cut")]
        for number, row in enumerate(rows, 1):
            options["report"](row, number, len(rows))
        return Summary(out, tuple(rows))

    monkeypatch.setattr(batch, "run_many", run_many)
    folder = tmp_path / "runs"
    code, out, err = cryosam(
        "run",
        tomogram,
        tomogram.parent,
        "--in",
        tomogram,
        "--point",
        "5,6,7",
        "--out",
        folder,
        "--models",
        "texture+random-walker",
    )
    assert code == 1
    assert "1 done, 1 failed" in out
    assert "2 of 2, b: failed: it is cut" in err
    assert asked["tomograms"] == [str(tomogram), str(tomogram.parent)]
    assert asked["reference"] == str(tomogram)
    assert asked["points"] == [[5, 6, 7]]
    assert asked["unit_timeout"] == 3600


def test_job_scripts_are_shown_without_a_cluster(cryosam: Run) -> None:
    code, out, _ = cryosam("cluster", Path(__file__).parents[1] / "deploy/slurm/cluster.yaml", "--dry-run")
    assert code == 0
    gpu, cpu = out.split("# cpu\n")
    assert gpu.startswith("# gpu\n#!")
    assert "#SBATCH --gres=gpu:1" in gpu
    assert "--resources GPU=1" in gpu
    assert "GPU" not in cpu
    assert out.count("--lifetime ") == 2


def test_certificates_come_all_three_or_not_at_all(cryosam: Run, tomogram: Path, tmp_path: Path) -> None:
    code, _, err = cryosam("ingest", tomogram, "--out", tmp_path / "r.zarr", "--tls-ca", tmp_path / "ca.pem")
    assert code == 2
    assert "missing: --tls-cert, --tls-key" in one_line(err)
    assert not (tmp_path / "r.zarr").exists()


def test_a_plan_like_a_run_without_a_journal_is_refused(cryosam: Run, tomogram: Path, tmp_path: Path) -> None:
    assert cryosam("ingest", tomogram, "--out", tmp_path / "r.zarr", "--workers", 0)[0] == 0
    code, _, err = cryosam("plan", tomogram, "--models", "texture+random-walker", "--like", tmp_path / "r.zarr")
    assert code == 2
    assert "give a run that was finished" in one_line(err)


def test_a_second_verbose_command_of_a_process_logs_each_line_once(
    cryosam: Run, tomogram: Path, tmp_path: Path
) -> None:
    for out in ("a.zarr", "b.zarr"):
        code, _, err = cryosam("-v", "ingest", tomogram, "--out", tmp_path / out, "--workers", "0")
        assert code == 0
        assert err.count("INFO ingest: 1 units, on cpu") == 1
        assert "Logging error" not in err


def test_a_wrong_format_or_suffix_lists_all(cryosam, tmp_path) -> None:
    """As the help says, which does not: it would have to load the readers."""
    from cryosam_dask.io.points import FORMATS

    tomogram = tmp_path / "t.npy"
    np.save(tomogram, np.zeros((8, 8, 8), np.float32))
    (tmp_path / "p.pdf").write_text("1 2 3\n")
    run = ("run", tomogram, "--voxel-size", 10, "--out", tmp_path / "r.zarr", "--points", tmp_path / "p.pdf")
    code, _, err = cryosam(*run)
    assert code == 2
    assert all(suffix in err for known in FORMATS.values() for suffix in known.suffixes)
    code, _, err = cryosam(*run, "--points-format", "pdf")
    assert code == 2
    assert all(name in err for name in FORMATS)


def test_a_simulated_crowd_is_written_with_its_truth(cryosam: Run, tmp_path: Path) -> None:
    tomogram, truth, labels = (tmp_path / name for name in ("t.mrc", "truth.csv", "labels.mrc"))
    code, out, err = cryosam(
        "simulate", tomogram, "--preset", "crowded", "--shape", "48,100,100", "--count", 6, "--species", "proteasome",
        "--truth", truth, "--labels", labels, "--cytosol", 0.05, "--contrast", "dark",
    )  # fmt: skip
    assert code == 2  # the other species are as many as ever
    assert "particles of" in one_line(err)
    assert not list(tmp_path.iterdir())
    options = ["--preset", "shapes", "--shape", "64,160,160", "--truth", truth, "--labels", labels, "--touching", 0.5]
    code, out, err = cryosam("simulate", tomogram, *options, "--cytosol", 0.05)
    assert code == 0, err
    z, y, x = (int(v) for v in out.split("--point ")[1].split(","))
    rows = [line.split(",") for line in truth.read_text().splitlines()[1:]]
    with mrcfile.open(labels) as file:
        assert set(np.unique(file.data)) == {0, *(int(row[4]) for row in rows)}
        clicked = int(file.data[z, y, x])
    species = out.split("click e.g. on a ")[1].split(":")[0]
    assert [row[5] for row in rows if int(row[4]) == clicked] == [species]


def test_structures_are_written_with_what_they_are(cryosam: Run, tmp_path: Path) -> None:
    options = ["--preset", "filaments", "--shape", "48,128,128", "--structures", tmp_path / "s.mrc", "--count", 2]
    code, out, err = cryosam("simulate", tmp_path / "t.mrc", *options)
    assert code == 0, err
    assert "structures: 1 microtubule, 2 microtubule, 3 filament" in out
    with mrcfile.open(tmp_path / "s.mrc") as file:
        assert set(np.unique(file.data)) >= {0, 1, 2, 3}


def test_a_density_map_is_simulated(cryosam: Run, tmp_path: Path) -> None:
    z, y, x = np.indices((32, 32, 32)) - 15.5
    with mrcfile.new(tmp_path / "ball.mrc", data=(np.sqrt(z**2 + y**2 + x**2) < 11).astype(np.float32)) as file:
        file.voxel_size = 5.0
    options = ["--map", f"ball={tmp_path / 'ball.mrc'}", "--count", 5, "--shape", "40,80,80", "--membranes", 0]
    code, out, err = cryosam("simulate", tmp_path / "t.mrc", *options, "--truth", tmp_path / "truth.csv")
    assert code == 0, err
    assert "click e.g. on a ball" in out
    assert len((tmp_path / "truth.csv").read_text().splitlines()) == 6
    for given, message in (
        ("ball", "--map ball: expected NAME=FILE"),
        (f"ball={tmp_path / 'none.mrc'}", "none.mrc"),
        (f"gold={tmp_path / 'ball.mrc'}", "species"),
    ):
        code, _, err = cryosam("simulate", tmp_path / "bad.mrc", "--map", given)
        assert code == 2
        assert message in one_line(err)
    code, _, err = cryosam("simulate", tmp_path / "bad.mrc", *options, *options[:2])
    assert code == 2
    assert "given twice" in one_line(err)
    assert not (tmp_path / "bad.mrc").exists()


def test_the_help_lists_every_preset(cryosam: Run) -> None:
    from cryosam_dask.simulate import PRESETS

    code, out, _ = cryosam("simulate", "--help")
    assert code == 0
    words = re.findall(r"\w+", out)
    assert all(words.count(name) >= 2 for name in PRESETS)  # in the option's help, and with what it is
