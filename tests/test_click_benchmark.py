"""The benchmark of clicks: what it clicks, what it runs again, what it reports, and that its two splits stay apart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))  # programs there import each other by name

import click_truth
import clicks
import template_matching
from click_conditions import CONDITIONS, FIRST_SEED, without
from click_report import append_row, calibration_error, read_rows, reliability, report
from click_truth import Case, Click, clicks_of, draw_clicks, prompt_figures

from cryosam_dask.errors import SettingsError
from cryosam_dask.simulate import SimulationSettings, Species, require_split
from cryosam_dask.simulate.splits import HELD_OUT_FAMILIES

Row = dict[str, Any]
SMALL = (48, 96, 96)


def scattered() -> Any:
    """(40, 40, 40) labels: a cube, a hollow shell and a bar, in no order."""
    labels = np.zeros((40, 40, 40), np.int32)
    labels[2:8, 2:8, 2:8] = 7
    z, y, x = np.ogrid[:40, :40, :40]
    distance = np.sqrt((z - 28) ** 2 + (y - 28) ** 2 + (x - 28) ** 2)
    labels[(distance > 6) & (distance < 9)] = 2
    labels[5:7, 30:32, 2:20] = 4
    return labels


# --- clicks


@pytest.mark.parametrize("extended", [False, True])
def test_clicks_are_on_the_instances_they_name(extended: bool) -> None:
    labels = scattered()
    drawn = draw_clicks(labels, 5, seed=3, extended=extended)
    assert [labels[c.point] for c in drawn] == [c.instance for c in drawn]
    assert {c.instance for c in drawn[:3]} == {2, 4, 7}, "each on another one while there are some"


def test_clicks_are_the_same_each_time_however_many_there_are() -> None:
    labels = scattered()
    assert draw_clicks(labels, 5, seed=3) == draw_clicks(labels, 5, seed=3)
    assert draw_clicks(labels, 2, seed=3) == draw_clicks(labels, 5, seed=3)[:2]
    assert draw_clicks(labels, 5, seed=4) != draw_clicks(labels, 5, seed=3)


def test_the_first_click_is_in_the_middle_and_others_are_not() -> None:
    labels = np.zeros((30, 30, 30), np.int32)
    labels[5:14, 5:14, 5:14] = 1
    drawn = draw_clicks(labels, 40, seed=0)
    assert drawn[0] == Click((9, 9, 9), 1)
    offsets = np.abs(np.array([c.point for c in drawn[1:]]) - 9)
    assert offsets.max() == 4, "up to the mask's edge"


def test_a_click_on_a_wall_is_deep_in_it() -> None:
    labels = np.zeros((30, 30, 30), np.int32)
    labels[:, :, 10:17] = 1  # a wall that goes on beyond the volume
    (click,) = draw_clicks(labels, 1, seed=0, extended=True)
    assert click.point[2] == 13


# --- masks of the clicks


def by_hand(folder: Path) -> Case:
    """Two kinds of particles, two and one, and a piece of membrane, in 20³ voxels."""
    labels, structures = np.zeros((20, 20, 20), np.int32), np.zeros((20, 20, 20), np.int32)
    labels[2:6, 2:6, 2:6], labels[12:16, 2:6, 2:6], labels[2:6, 6:10, 2:6] = 1, 2, 3
    structures[:, 17:, :] = 1
    np.savez_compressed(folder / "truth.npz", labels=labels, structures=structures)
    kinds = (Species("cube", "globule", 4.0, 2), Species("brick", "globule", 4.0, 1))
    places = (3.5, 3.5, 3.5, 1, "cube"), (13.5, 3.5, 3.5, 2, "cube"), (3.5, 7.5, 3.5, 3, "brick")
    return Case(folder, SimulationSettings(shape=(20, 20, 20), species=kinds, membranes=0), places, ("vesicle",))


@pytest.mark.parametrize(
    ("y", "iou", "own", "leaks"),
    [((2, 6), 1.0, 1.0, []), ((2, 7), 0.8, 0.8, []), ((2, 10), 0.5, 0.5, ["brick"]), ((0, 6), 2 / 3, 2 / 3, [])],
    ids=["exact", "one voxel of five", "half of it on a neighbour", "solvent is no leak"],
)
def test_a_mask_on_a_neighbour_leaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, y: tuple[int, int], iou: float, own: float, leaks: list[str]
) -> None:
    box = ((2, 6), y, (2, 6))
    masks = {0: (box, np.ones([b - a for a, b in box], bool))}
    monkeypatch.setattr(click_truth, "_prompted", lambda store, name: masks)
    row = prompt_figures(None, "cube", [Click((3, 3, 3), 1)], by_hand(tmp_path), "cube")  # type: ignore[arg-type]
    assert (row["prompt_iou"], row["own"]) == (pytest.approx(iou), pytest.approx(own))
    assert (row["leaks"], row["true_size"]) == (leaks, 64)


def test_a_click_without_a_mask_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = ((2, 6), (2, 6), (2, 6))
    monkeypatch.setattr(click_truth, "_prompted", lambda store, name: {1: (box, np.ones((4, 4, 4), bool))})
    two = [Click((13, 3, 3), 2), Click((3, 3, 3), 1)]
    row = prompt_figures(None, "cube", two, by_hand(tmp_path), "cube")  # type: ignore[arg-type]
    assert row["prompt_iou"] == 0.5


def test_truth_tells_structures_from_particles(tmp_path: Path) -> None:
    truth = by_hand(tmp_path)
    assert np.unique(truth.labels_of("cube")).tolist() == [0, 1, 2]
    assert np.unique(truth.labels_of("membrane")).tolist() == [0, 4]
    assert clicks_of(truth, "membrane", 1)[0].instance == 4
    assert (truth.radius("cube"), truth.centres("brick").tolist()) == (2.0, [[3.5, 7.5, 3.5]])


# --- trials


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["clicks.py", *map(str, arguments)])
    clicks.main()


def test_a_trial_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:  # type: ignore[type-arg]
    command = ["--work", tmp_path, "--shape", "32,64,64", "--conditions", "dark", "--clicks", 1]
    kind = CONDITIONS["dark"].settings("tune", 0, (32, 64, 64)).species[-1].name
    run(monkeypatch, *command, "--kinds", kind)
    (row,) = read_rows(tmp_path / "clicks.jsonl")
    assert (row["condition"], row["kind"], row["click"], row["seed"]) == ("dark", kind, 0, FIRST_SEED["tune"] + 400)
    assert row["truth"] == 4
    assert 0 <= row["prompt_iou"] <= 1
    assert len(row["scored"]) == row["picks"]
    monkeypatch.setattr(clicks, "case", lambda *_: pytest.fail("a tomogram is not needed for trials that are there"))
    run(monkeypatch, *command, "--kinds", kind)
    assert len(list(read_rows(tmp_path / "clicks.jsonl"))) == 1
    capsys.readouterr()
    run(monkeypatch, "--report", tmp_path / "clicks.jsonl")
    assert f"| dark | {kind} | 1 | F1 |" in capsys.readouterr().out


def test_other_changes_other_clicks_and_other_splits_are_other_trials() -> None:
    row = {"condition": "dark", "split": "tune", "seed": 1, "shape": [1, 2, 3], "clicks": 5, "models": "builtin"}
    row |= {"set": [], "kind": "rod", "click": 0, "receiver": None}
    same = clicks.key_of(row)
    changed = [
        {"click": 1},
        {"split": "held-out"},
        {"set": ["match.count=3"]},
        {"models": "paper"},
        {"receiver": "other"},
    ]
    assert all(clicks.key_of(row | change) != same for change in changed)
    assert clicks.key_of(row | {"clicks": 3}) == same, "the first clicks are the same ones"
    together = row | {"click": "all"}
    assert clicks.key_of(together | {"clicks": 3}) != clicks.key_of(together)


def test_a_line_that_was_cut_off_is_left_out_and_the_next_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "clicks.jsonl"
    append_row(path, {"a": 1})
    path.write_text(path.read_text() + '{"a": 2, "b"')
    append_row(path, {"a": 3})
    assert [row["a"] for row in read_rows(path)] == [1, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--conditions", "nowhere"], "condition 'nowhere': expected some of phantoms-0.3"),
        (["--shape", "96,256"], "shape '96,256': expected three whole numbers"),
        (["--set", "match.nothing=1"], "match.nothing"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    with pytest.raises(SystemExit) as leave:
        run(monkeypatch, "--work", tmp_path / "new", *arguments)
    assert (leave.value.code, words in capsys.readouterr().err, (tmp_path / "new").exists()) == (2, True, False)


# --- the report


def line(click: int | str, f1: float, iou: float, scored: list[list[float]], **changes: Any) -> Row:
    row = {"condition": "crowded", "kind": "rod", "seed": 1, "split": "tune", "shape": [8, 9, 10], "models": "builtin"}
    row |= {"set": [], "click": click, "receiver": None, "f1": f1, "mean_iou": iou, "average_precision": f1}
    row |= {"best_f1": f1, "prompt_iou": iou, "leaks": [], "picks": len(scored), "truth": 4, "seconds": 2.0}
    return row | {"scored": scored} | changes


def cells(text: str, first: str) -> dict[str, str]:
    """Of the first table row that begins so, by the names of the columns."""
    rows = [r.strip("| ").split(" | ") for r in text.splitlines() if r.startswith("|")]
    at = next(i for i, r in enumerate(rows) if " | ".join(r).startswith(first))
    header = next(r for r in reversed(rows[:at]) if r[0] in ("condition", "score"))
    return dict(zip(header, rows[at], strict=True))


def test_the_report_has_means_and_worst_cases() -> None:
    rows = [
        line(0, 0.9, 0.8, [[0.95, 1], [0.85, 1]]),
        line(1, 0.1, 0.2, [[0.95, 0], [0.85, 1]], leaks=["disc"]),
        line(0, 0.8, 0.5, [], seed=2),
        line("all", 1.0, 0.7, [[0.1, 1]]),
        line(0, 0.0, 0.0, [], condition="apart"),
        line("template", 0.5, 0.5, [], models="template matching", average_precision=0.4),
    ]
    row = cells(report([*rows, line(0, 0.6, 0.8, [[0.95, 1], [0.85, 1]])]), "crowded | rod")
    assert row["mean (worst)"] == "0.50 (0.10)", "0.6, 0.1 and 0.8: what is there twice counts as it was last"
    assert row["IoU"] == "0.50 (0.20)"
    assert (row["all clicks"], row["IoU of all"]) == ("1.00 (1.00)", "0.70")
    assert (row["tomograms"], row["leaks"], row["picks / truth"]) == ("2", "1 of 3", "1 / 4")
    assert row["template matching, best cut (AP)"] == "0.50 (0.50), 0.40"


def test_the_report_by_condition_has_all_kinds_in_one_row() -> None:
    rows = [line(0, 0.9, 0.8, []), line(0, 0.3, 0.4, [], kind="disc")]
    assert cells(report(rows, by_kind=False), "crowded |")["mean (worst)"] == "0.60 (0.30)"


def test_structures_are_reported_with_dice_and_absent_kinds_with_false_picks() -> None:
    wall = {k: v for k, v in line(0, 0, 0, [], kind="membrane", dice=0.7).items() if k not in ("f1", "mean_iou")}
    gone = [
        line(k, 0, 0, [[0.5, 0]] * n, receiver="other", condition="absent") for k, n in ((0, 2), (1, 7), ("all", 1))
    ]
    text = report([wall, *gone])
    assert (cells(text, "crowded")["measure"], cells(text, "crowded")["mean (worst)"]) == ("Dice", "0.70 (0.70)")
    row = cells(text, "absent")
    assert (row["trials"], row["false picks, mean"], row["most"], row["with all clicks, mean"]) == (
        "2",
        "4.5",
        "7",
        "1.0",
    )
    assert cells(text, "0.5–0.6") == {
        "score": "0.5–0.6",
        "picks": "9",
        "mean score": "0.50",
        "share that is right": "0.00",
    }


def test_scores_that_are_right_as_often_as_they_say_have_no_calibration_error() -> None:
    right = [(0.75, k < 3) for k in range(4)] + [(1.0, True)] * 3
    table = reliability(right)
    assert [(b.low, b.picks, b.right) for b in table] == [(0.7, 4, 0.75), (0.9, 3, 1.0)]
    assert calibration_error(table) == pytest.approx(0.0)
    assert calibration_error(reliability([(0.9, False), (0.1, False)])) == pytest.approx(0.5)
    assert calibration_error(reliability([])) is None


# --- the splits


@pytest.mark.parametrize("shape", [SMALL, (96, 256, 256)])
def test_splits_share_no_seed_and_no_family_that_is_held_out(shape: tuple[int, int, int]) -> None:
    seen: dict[str, set[tuple[str, int]]] = {"tune": set(), "held-out": set()}
    families: set[str] = set()
    for condition in CONDITIONS.values():
        for index in range(4):
            for split in ("tune", "held-out"):
                settings = condition.settings(split, index, shape)
                every = [settings]
                if condition.absent:
                    every += [without(settings, split, kind) for kind in (None, *condition.kinds(settings))]
                for one in every:
                    require_split(one, split)
                    seen[split] |= {("layout", one.seed), *(("shape", s.seed) for s in one.species)}
                    families |= {s.shape for s in one.species} if split == "tune" else set()
    assert not seen["tune"] & seen["held-out"]
    assert not families & set(HELD_OUT_FAMILIES)


def test_conditions_share_tomograms_only_where_they_share_a_number() -> None:
    first: dict[int, SimulationSettings] = {}
    for condition in CONDITIONS.values():
        settings = condition.settings("tune", 0, SMALL)
        before = first.setdefault(condition.number, settings)
        assert (settings.seed, settings.species) == (before.seed, before.species)
    assert len({s.seed for s in first.values()}) == len(first)


def test_a_condition_of_the_other_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FIRST_SEED, "held-out", 5)
    with pytest.raises(SettingsError, match="not of the held-out split"):
        CONDITIONS["dark"].settings("held-out", 0, SMALL)


def test_what_is_absent_is_absent() -> None:
    settings = CONDITIONS["absent"].settings("held-out", 0, SMALL)
    kind = settings.species[0].name
    removed, other = without(settings, "held-out", kind), without(settings, "held-out", None)
    assert {s.name for s in removed.species} == {s.name for s in settings.species} - {kind}
    assert not {s.shape for s in other.species} & {s.shape for s in settings.species}
    assert other.species


# --- template matching, as far as it goes without pytme


def test_maxima_are_apart_and_best_first() -> None:
    scores = np.zeros((20, 20, 20), np.float32)
    scores[5, 5, 5], scores[5, 5, 8], scores[15, 15, 15], scores[5, 15, 5] = 0.9, 0.8, 0.7, 0.95
    places, values = template_matching.maxima(scores, 5.0, 3)
    assert places.tolist() == [[5, 15, 5], [5, 5, 5], [15, 15, 15]]
    assert values == pytest.approx([0.95, 0.9, 0.7])


def test_the_microscope_passes_nothing_in_the_missing_wedge() -> None:
    settings = SimulationSettings(tilt_range=(-60.0, 60.0), tilt_axis=0.0)
    passed = template_matching.microscope(33, settings) > 0
    assert passed[0, 5, 0], "along the tilt axis everything is measured"
    assert passed[5, 0, 10]
    assert not passed[10, 0, 2]
    turned = template_matching.microscope(33, SimulationSettings(tilt_range=(-60.0, 60.0), tilt_axis=90.0)) > 0
    assert (turned == np.swapaxes(passed, 1, 2)).mean() > 0.99


def test_without_pytme_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tme", None)
    monkeypatch.setattr(sys, "argv", ["template_matching.py"])
    with pytest.raises(SystemExit) as leave:
        template_matching.main()
    assert (leave.value.code, "pip install pytme" in capsys.readouterr().err) == (2, True)


def test_lines_of_template_matching_alone_are_a_table_of_their_own() -> None:
    row = {"condition": "crowded", "kind": "rod", "seed": 1, "split": "tune", "shape": [8, 9, 10], "set": []}
    row |= {"models": "template matching", "click": "template", "receiver": None, "average_precision": 0.4}
    rows = [row | {"angle": 20.0, "f1": 0.5}, row | {"angle": 60.0, "f1": 0.1}]
    assert cells(report(rows), "crowded")["best cut, F1"] == "0.50 (0.50)", "the finest angle counts"
