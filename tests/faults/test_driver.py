"""The driver is killed, its disk is full, its output can't be written, another one comes: nothing done is lost.

Each test goes through many faults in one run: a command is broken, the same command goes on to the next fault, and in
the end all chunks are compared with those of a run that nothing has disturbed, bit for bit.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from writes import Outcome, Step, digests, run

import cryosam_dask as cs
from cryosam_dask.errors import StoreError
from cryosam_dask.executors import serial
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.store import layout, lease, marks
from cryosam_dask.store.lease import Lease
from cryosam_dask.store.run_store import RunStore

SETTINGS = {"match.count": "3", "match.ratios": "[8,4]", "propagation.group": "2"}
OTHERS = {**SETTINGS, "features.thickness": "3"}

KILLS = [
    # (path of a file operation, which one of its kind): a file is opened under a name of its own, then renamed
    (".lock*", 1),
    ("", 1),
    ("zarr.*.partial", 2),
    ("marks/ingest/c/0*", 2),
    ("zarr.*.partial", 2),
    ("features/r1/y/c/*", 2),
    ("marks/features/c/4*", 2),
    ("journal/zarr*", 1),
    ("features/dense/r16/features/c/*", 1),
    ("embeddings/y/c/*", 3),
    ("queries/ball/state00000/c/0*", 2),
    ("removed:zarr.json", 1),
    ("queries/ball/group00000/bits/c/0*", 1),
    ("queries/ball/feature/c/0*", 1),
    ("marks/project/ball/r8/c/2*", 1),
    ("proposals/ball/profiles00001/centres/c/*", 1),
    ("proposals/ball/scores/c/0*", 1),
    ("instances/ball/state0000[01]/zarr*", 1),
    ("instances/ball/group00001/offset/c/0*", 1),
    ("picks/ball/y/*", 3),
    ("labels/ball/scale0/labels/c/*", 2),
    ("marks/label/ball/c/0*", 2),
    (".lock*", 2),
]


@pytest.fixture(scope="session")
def tomogram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MRC of 24 × 32 × 40 voxels with two balls."""
    return make_tomogram(tmp_path_factory.mktemp("tiny") / "tiny.mrc", 0)


def make_tomogram(path: Path, seed: int) -> Path:
    z, y, x = np.indices((24, 32, 40))
    values = np.random.default_rng(seed).normal(size=z.shape)
    for a, b, c in ((12, 10, 10), (12, 22, 30)):
        values += 3.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 25)
    with mrcfile.new(path, values.astype(np.float32)) as file:
        file.voxel_size = 10
    return path


def arguments(tomogram: Path, out: Path, settings: dict[str, str] = SETTINGS, *more: str) -> list[str]:
    chosen = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    point = ["--point", "12,10,10", "--name", "ball", "--models", "texture+random-walker", "--workers", "0"]
    return ["run", str(tomogram), *point, *chosen, "--out", str(out), *more]


@pytest.fixture(scope="session")
def undisturbed(tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tomogram, tmp_path_factory.mktemp("tiny-run") / "run.zarr", SETTINGS)


def make_run(tomogram: Path, out: Path, settings: dict[str, str]) -> Path:
    overrides = {key: json.loads(value) for key, value in settings.items()}
    cs.run(
        tomogram, [[12, 10, 10]], out, name="ball", settings=settings_for("texture+random-walker", overrides), workers=0
    )
    return out


def is_one_line(outcome: Outcome) -> None:
    lines = [line for line in outcome.error.splitlines() if "error" in line.lower() or "Traceback" in line]
    assert outcome.code == 2, outcome.error
    assert len(lines) == 1, outcome.error
    assert lines[0].startswith("cryosam: error: "), outcome.error


@pytest.fixture(scope="module")
def killed(tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """A run that was killed at each of `KILLS` and went on each time, to its end, and once more."""
    out = tmp_path_factory.mktemp("killed") / "run.zarr"
    words = arguments(tomogram, out)
    steps = [Step(words, str(out), "kill", at, path) for path, at in KILLS]
    return out, run([*steps, Step(words, str(out)), Step(words, str(out))])


def test_killed_at_any_write_it_goes_on_to_the_same_bytes(
    killed: tuple[Path, list[Outcome]], undisturbed: Path
) -> None:
    *outcomes, last, second = killed[1]
    for (path, at), outcome in zip(KILLS, outcomes, strict=True):
        assert outcome.code == -9, f"{path} {at}: {outcome.code} {outcome.error}"
    assert last.code == 0, last.error
    assert set(last.unfinished.values()) == {0}
    assert last.digest == digests(str(undisturbed))
    assert second.code == 0
    assert second.ran == {}
    assert second.digest == last.digest
    assert not Path(f"{killed[0]}.lock").exists()


def test_no_finished_unit_runs_again_and_no_more_than_what_was_cut_off_runs_twice(
    killed: tuple[Path, list[Outcome]], undisturbed: Path
) -> None:
    outcomes = killed[1]
    assert [outcome.again for outcome in outcomes] == [[]] * len(outcomes)
    store = RunStore.open(undisturbed)
    cut = {stage: 0 for outcome in outcomes for stage in outcome.ran}
    counted: dict[str, list[int]] = {stage: [] for stage in cut}
    for outcome in outcomes:
        for stage, units in outcome.ran.items():
            counted[stage] += [mark for unit in units for mark in unit]
        if outcome.ran:
            cut[list(outcome.ran)[-1]] += 1
    for stage, ran in counted.items():
        assert sorted(set(ran)) == np.flatnonzero(marks.done(store, stage)).tolist(), stage
        if not stage.startswith("segment/"):  # its units come back until their planes are embedded
            assert len(ran) - len(set(ran)) <= cut[stage] * (8 if stage == "embeddings" else 1), stage


def test_a_full_disk_is_one_line_wherever_it_is_met_and_nothing_is_lost(
    tomogram: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    words = arguments(tomogram, out)
    chosen = [*KILLS[:3], *KILLS[5::5]]
    *full, last = run([*(Step(words, str(out), "full", at, path) for path, at in chosen), Step(words, str(out))])
    for (path, at), outcome in zip(chosen, full, strict=True):
        assert os.strerror(errno.ENOSPC) in outcome.error, f"{path} {at}: {outcome.error}"
        is_one_line(outcome)
        assert outcome.again == []
    assert last.code == 0, last.error
    assert last.again == []
    assert last.digest == digests(str(undisturbed))


def test_an_interrupted_overwrite_goes_on(tomogram: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Other features, so that the query and all that follows is forgotten; then another tomogram, so that all is."""
    out = tmp_path / "run.zarr"
    shutil.copytree(undisturbed, out)
    other = make_tomogram(tmp_path / "other.mrc", 1)
    features = arguments(tomogram, out, OTHERS, "--overwrite")
    image = arguments(other, out, SETTINGS, "--overwrite")
    first = [Step(features, str(out), "kill", at, "removed:*") for at in (3, 20, 50, 100, 30, 10, 5)]
    places = [("zarr.*.partial", 2), ("removed:*", 5), ("removed:*", 100), ("zarr.json", 1), ("", 1), ("scale0/y/*", 2)]
    second = [Step(image, str(out), "kill", at, path) for path, at in places]
    outcomes = run([*first, Step(features, str(out)), *second, Step(image, str(out))])
    assert [outcome.code for outcome in outcomes] == [-9] * len(first) + [0] + [-9] * len(second) + [0]
    assert outcomes[len(first)].digest == digests(str(make_run(tomogram, tmp_path / "features.zarr", OTHERS)))
    assert outcomes[-1].digest == digests(str(make_run(other, tmp_path / "image.zarr", SETTINGS)))


def test_an_output_that_can_not_be_written_is_one_line(tomogram: Path, undisturbed: Path) -> None:
    """Neither the store nor its folder; for root as well, whom permissions do not stop as it is."""
    folder = Path(tempfile.mkdtemp())
    out, copy = folder / "run.zarr", folder / "tiny.mrc"
    try:
        shutil.copytree(undisturbed, out)
        shutil.copy(tomogram, copy)
        copy.chmod(0o644)
        for path in (*out.rglob("*"), out):
            path.chmod(0o555 if path.is_dir() else 0o444)
        words = arguments(copy, out)
        second = [word if word != "ball" else "second" for word in words]
        fresh = arguments(copy, folder / "fresh.zarr")
        folder.chmod(0o555)
        closed = run([Step(words, str(out), plain=True), Step(fresh, str(folder / "fresh.zarr"), plain=True)])
        folder.chmod(0o777)
        opened = run([Step(words, str(out), plain=True), Step(second, str(out), plain=True)])
        for outcome in (*closed, *opened):
            assert os.strerror(errno.EACCES) in outcome.error
            is_one_line(outcome)
        assert sorted(path.name for path in folder.iterdir()) == ["run.zarr", "tiny.mrc"]
        assert digests(str(out)) == digests(str(undisturbed))
    finally:
        for path in (folder, out, *out.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["readonly", "quota"])
def test_a_read_only_disk_and_a_quota_are_one_line(
    name: str, tomogram: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    words = arguments(tomogram, out)
    places = [("marks/ingest/c/0*", 1), ("features/r4/x/*", 1)]
    for (path, _), outcome in zip(
        places, run([Step(words, str(out), name, at, path) for path, at in places]), strict=True
    ):
        assert outcome.code == 2, f"{path}: {outcome.error}"
        is_one_line(outcome)


def test_of_two_drivers_that_start_at_once_one_is_refused_or_both_end_well(
    tomogram: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    line = [sys.executable, "-c", "from cryosam_dask.cli import main; main()", *arguments(tomogram, out)]
    both = [subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 2], [0, 0]), errors
    if codes == [0, 2]:
        refused = errors[0] if both[0].returncode else errors[1]
        assert f"{out}: is being written by" in refused
    assert digests(str(out)) == digests(str(undisturbed))
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]


def test_a_driver_is_refused_while_another_one_runs(tomogram: Path, undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    shutil.copytree(undisturbed, out)
    with Lease(out):
        (outcome,) = run([Step(arguments(tomogram, out), str(out))])
        with pytest.raises(StoreError, match="this very process"):
            make_run(tomogram, out, SETTINGS)
    is_one_line(outcome)
    assert f"process {os.getpid()}" in outcome.error
    assert outcome.ran == {}


def test_a_driver_whose_lease_is_taken_stops(tomogram: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run.zarr"
    driver = Driver(out, SerialExecutor())
    driver._lease = Lease(out, beat=0.01)
    driver.ingest(tomogram)
    ran: list[str] = []
    run_unit = serial.run_unit

    def taken(*args: Any) -> Any:
        """While the first unit runs another driver takes it over."""
        finished = run_unit(*args)
        file = lease._file(str(out))
        theirs = {**json.loads(file.read() or b""), "token": "theirs", "host": "node8"}
        keeper = driver._lease._thread
        assert keeper is not None
        while keeper.is_alive():  # again where its beat came in between
            file.write(json.dumps(theirs).encode())
            keeper.join(0.2)
        ran.append(args[4].name)
        return finished

    monkeypatch.setattr(serial, "run_unit", taken)
    with pytest.raises(StoreError, match=r"taken over by .* on node8.*; this run stops, finished units are kept"):
        driver.features(settings_for("texture+random-walker"))
    assert ran == ["view z"]
    assert marks.done(RunStore.open(out), "features-standardization").tolist() == [True, False, False]


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_run_of_another_format_is_left_as_it_is(
    more: tuple[str, ...], tomogram: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    shutil.copytree(undisturbed, out)
    RunStore.open(out, "r+").update_info(format=layout.FORMAT + 1)
    before = digests(str(out))
    with pytest.raises(StoreError, match=r"store format 2, this version reads 1; .*the version that made it"):
        cs.run(
            tomogram, [[12, 10, 10]], out, name="ball", models="texture+random-walker", workers=0, overwrite=bool(more)
        )
    assert digests(str(out)) == before


def test_what_an_interrupted_creation_left_is_not_mixed_with_another_tomogram(
    tomogram: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Killed after the root was written with the first one's shape and before any stage began."""
    out = tmp_path / "run.zarr"
    other = make_tomogram(tmp_path / "other.mrc", 1)
    first, last = run(
        [
            Step(arguments(other, out), str(out), "kill", 1, "marks/ingest/zarr*"),
            Step(arguments(tomogram, out), str(out)),
        ]
    )
    assert (first.code, last.code) == (-9, 0)
    assert last.digest == digests(str(undisturbed))
    assert RunStore.open(out).info["input"]["path"] == str(tomogram)


def test_proposals_that_were_not_written_to_the_end_are_none(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    shutil.copytree(undisturbed, out)
    RunStore.open(out, "r+").group(layout.proposals("ball")).attrs["upstream"] = None
    with pytest.raises(StoreError, match="no proposals for 'ball' yet; run `cryosam match` first"):
        Driver(out, SerialExecutor()).segment("ball")
