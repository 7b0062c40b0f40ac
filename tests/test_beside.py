"""The benchmark beside template matching, as far as it goes without pytme: its cuts, its steps, and what it says."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))  # programs there import each other by name

import beside
from beside import Duel, compare, expected_cut, judge, kept, projected
from click_truth import Case
from template_scores import seconds_each

from cryosam_dask.simulate import SimulationSettings, Species

Row = dict[str, Any]
CENTRES = ((6.0, 6.0, 6.0), (6.0, 24.0, 24.0), (24.0, 6.0, 24.0))


def duel(folder: Path, parts: int = 2) -> Duel:
    """Three particles in 32³ voxels, and no files."""
    settings = SimulationSettings(shape=(32, 32, 32), species=(Species("ball", "lobed", 10.0, 3),), membranes=0)
    particles = tuple((*centre, i + 1, "ball") for i, centre in enumerate(CENTRES))
    tomogram = Case(folder, settings, particles, ())
    return Duel(tomogram, "ball", folder, "python-with-pytme", 15.0, parts, 1)


def peaks(*heights: float) -> Any:
    """(32, 32, 32) scores with a peak at each of the particles, and at a place that has none; noise elsewhere."""
    scores = np.random.default_rng(0).random((32, 32, 32), np.float32) / 1000
    for place, height in zip((*CENTRES, (24.0, 24.0, 6.0)), heights, strict=True):
        scores[tuple(int(v) for v in place)] = height
    return scores


def test_noise_has_as_many_correlations_above_the_cut_as_are_accepted() -> None:
    noise = 3 * np.random.default_rng(0).standard_normal(10**6)
    assert 30 <= (noise > expected_cut(float((noise**2).mean()), noise.size, 50)).sum() <= 70
    assert expected_cut(9.0, 10**9, 50) > expected_cut(9.0, 10**6, 50), "more orientations, more that noise may pass"


def test_scores_are_judged_at_the_cut_of_pytme_at_the_true_number_and_at_the_best() -> None:
    row = judge(peaks(0.9, 0.8, 0.6, 0.7), 0.5, np.array(CENTRES), 5.0)
    # three of the first three are not all particles; four picks are all of them and one more
    assert row["true number"] == {"f1": 0.667, "precision": 0.667, "recall": 0.667, "picks": 3}
    assert row["cut of pytme"] == {"f1": 0.857, "precision": 0.75, "recall": 1.0, "picks": 4}
    assert row["best_f1"] == 0.857


def test_the_time_of_all_orientations_follows_from_that_of_a_few() -> None:
    # two processes, which begin with what takes 10 s and then take 3 s for each orientation
    each = seconds_each([13.0, 16.0, 19.0, 13.1, 16.1, 19.1], 2)
    assert each == pytest.approx(1.5, abs=0.03)
    assert projected({"seconds": 19.1, "orientations": 6, "all": 106, "each": 1.5}) == 169.1


def test_a_step_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def step() -> Row:
        calls.append(1)
        return {"seconds": 3.0}

    path = tmp_path / "step.json"
    assert kept(path, step) == kept(path, step) == {"seconds": 3.0}
    assert (len(calls), [p.name for p in tmp_path.iterdir()]) == (1, ["step.json"])


def test_parts_go_on_where_they_stopped_and_come_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this, done = duel(tmp_path), []

    def part(_: Duel, number: int) -> Row:
        done.append(number)
        np.save(this.scores(number), peaks(*((0.9, 0.0, 0.7, 0.0) if number else (0.0, 0.8, 0.0, 0.1))))
        return {"wall": 12.0, "seconds": 10.0, "processor": 20.0, "orientations": 996, "mean_square": 0.01, "peak": 5}

    def click(_: Duel) -> Row:
        done.append("ours")
        return {"wall": 4.0}

    monkeypatch.setattr(beside, "ours", click)
    monkeypatch.setattr(beside, "match_part", part)
    assert compare(this, None, -1.0) is None, "no time for anything"
    row = compare(this, None, float("inf"))
    assert row is not None
    assert compare(this, None, -1.0) == row, "all is done, so no time is needed"
    assert done == ["ours", 0, 1]
    assert row["pytme"]["true number"]["f1"] == 1.0, "each part has some of the particles"
    assert (row["pytme"]["orientations"], row["pytme"]["wall"]) == (1992, 22.0), "one start is counted"
    assert row["ratio"] == 5.5


def test_other_parts_are_other_steps(tmp_path: Path) -> None:
    two, three = duel(tmp_path, 2), duel(tmp_path, 3)
    names = [{two.scores(0), two.scores(1)}, {three.scores(0), three.scores(1), three.scores(2)}]
    assert not names[0] & names[1]
    assert two.scores(0) != replace(two, angle=10.0).scores(0)


@pytest.mark.parametrize("python", ["nowhere/python", "without"])
def test_without_pytme_it_says_in_one_line_what_to_give(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without = tmp_path / "without"
    without.write_text("#!/bin/sh\necho ModuleNotFoundError >&2\nexit 1\n")
    without.chmod(0o755)
    path = str(without if python == "without" else tmp_path / python)
    monkeypatch.setattr(sys, "argv", ["beside.py", "--work", str(tmp_path / "work"), "--tme-python", path])
    with pytest.raises(SystemExit) as leave:
        beside.main()
    message = capsys.readouterr().err
    assert (leave.value.code, message.count("\n")) == (2, 1)
    assert path in message
    assert "--tme-python" in message
    assert not (tmp_path / "work").exists(), "nothing is begun"
