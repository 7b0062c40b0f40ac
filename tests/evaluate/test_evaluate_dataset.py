"""Figures over many tomograms: pooled, mean and spread, radii by kind."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest

from cryosam_dask.errors import InputError
from cryosam_dask.evaluate import (
    Radius,
    TomogramPicks,
    bootstrap,
    evaluate_dataset,
    evaluate_masks,
    evaluate_picks,
    parse_radii,
    parse_radius,
    summarise,
)
from cryosam_dask.evaluate.radius import radii_of


def random_tomograms(seed: int = 0, count: int = 5) -> list[TomogramPicks]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        truth = rng.uniform(0, 60, (int(rng.integers(1, 12)), 3))
        hits = truth[: len(truth) // 2 + 1] + rng.normal(0, 1, (len(truth) // 2 + 1, 3))
        found = np.vstack([hits, rng.uniform(0, 60, (int(rng.integers(0, 6)), 3))])
        made.append(TomogramPicks(f"t{index}", found, rng.integers(0, 8, len(found)) / 8, truth, voxel_size=10))
    return made


def test_pooled_figures_are_those_of_tomograms_laid_side_by_side() -> None:
    tomograms = random_tomograms()
    apart = [np.array([1000.0 * i, 0, 0]) for i in range(len(tomograms))]
    whole = evaluate_picks(
        np.vstack([t.found + a for t, a in zip(tomograms, apart, strict=True)]),
        np.concatenate([t.scores for t in tomograms]),
        np.vstack([t.truth + a for t, a in zip(tomograms, apart, strict=True)]),
        4.0,
    )
    result = evaluate_dataset(iter(tomograms), 4.0)
    assert result.kinds[0].pooled == whole
    assert [row.picks for row in result.rows] == [evaluate_picks(t.found, t.scores, t.truth, 4.0) for t in tomograms]
    inside = result.kinds[0].intervals["f1"]
    assert inside[0] <= whole.f1 <= inside[1]


def test_mean_and_spread_are_over_tomograms_with_truth() -> None:
    tomograms = random_tomograms()
    none = TomogramPicks("empty", [[1, 2, 3]], [0.5], [])
    result = evaluate_dataset([*tomograms, none], "4")
    recalls = [evaluate_picks(t.found, t.scores, t.truth, 4).recall for t in tomograms]
    kind = result.kinds[0]
    assert (kind.tomograms, kind.truth_in) == (6, 5)
    assert kind.spread["recall"].mean == pytest.approx(statistics.mean(recalls))
    assert kind.spread["recall"].std == pytest.approx(statistics.stdev(recalls))
    # its pick is a false positive all the same
    with_none, without = kind.pooled, evaluate_dataset(tomograms, 4).kinds[0].pooled
    assert with_none.false_positives == without.false_positives + 1
    assert result.rows[-1].picks.precision == 0


def test_kinds_have_their_radii() -> None:
    two = [
        TomogramPicks("t", [[0, 0, 5.0]], [1], [[0, 0, 0]], kind=kind, voxel_size=10) for kind in ("ribosome", "fas")
    ]
    result = evaluate_dataset(two, parse_radii("ribosome=5nm, fas=4"))
    assert [kind.pooled.recall for kind in result.kinds] == [1, 0]
    assert [kind.radius for kind in result.kinds] == [Radius(50.0, "angstrom"), Radius(4.0)]
    assert result.over_kinds("recall") == 0.5
    with pytest.raises(InputError, match="fas: no radius given; there are radii for ribosome"):
        evaluate_dataset(two, {"ribosome": "50A"})
    with pytest.raises(InputError, match="t: ribosome comes twice"):
        evaluate_dataset([two[0], two[0]], 4)
    with pytest.raises(InputError, match="t: a radius of 50 Å needs the tomogram's voxel size"):
        evaluate_dataset([TomogramPicks("t", [[0, 0, 5.0]], [1], [[0, 0, 0]])], "50A")
    with pytest.raises(InputError, match="t: picks: expected finite scores"):
        evaluate_dataset([TomogramPicks("t", [[0, 0, 5.0]], [np.nan], [[0, 0, 0]])], 4)


def test_pooled_panoptic_quality_counts_instances() -> None:
    truth = np.zeros((2, 4, 8), int)
    truth[..., :4], truth[..., 4:] = 1, 2
    partly = truth.copy()
    partly[partly == 2] = 0
    masks = [evaluate_masks(truth, truth), evaluate_masks(partly, truth)]
    tomograms = [TomogramPicks(f"t{i}", [], [], [[0, 0, 0]], masks=m) for i, m in enumerate(masks)]
    kind = evaluate_dataset(tomograms, 1).kinds[0]
    assert kind.masks == {"pq": 3 / 3.5, "sq": 1.0, "rq": 6 / 7, "pairs": 3, "found": 3, "truth": 4}
    assert kind.spread["pq"].mean == pytest.approx((1 + 1 / 1.5) / 2)


def test_nothing_at_all_is_json() -> None:
    result = evaluate_dataset([], 1, notes=["nothing"])
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["notes"] == ["nothing"]
    one = evaluate_dataset([TomogramPicks("t", [], [], [])], 1)
    text = json.dumps(one.to_dict(), allow_nan=False)
    assert json.loads(text)["kinds"]["particle"]["spread"]["f1"]["mean"] is None
    assert one.kinds[0].pooled.f1 == 1
    two = evaluate_dataset([TomogramPicks(name, [], [], []) for name in "ab"], 1).kinds[0]
    assert two.pooled.f1 == 1
    assert two.intervals == dict.fromkeys(("precision", "recall", "f1"), (1, 1))


def test_summaries_by_hand() -> None:
    found = summarise([1.0, 2.0, 4.0, 9.0])
    assert (found.count, found.mean, found.min, found.max, found.median) == (4, 4, 1, 9, 3)
    assert found.std == pytest.approx(statistics.stdev([1, 2, 4, 9]))
    assert (found.q1, found.q3) == tuple(np.percentile([1, 2, 4, 9], (25, 75)))
    assert found.low is not None
    assert found.high is not None
    assert 1 <= found.low < 4 < found.high <= 9
    assert found == summarise(iter([1.0, 2.0, 4.0, 9.0]))
    assert found.in_words(1) == "4.0 ± 3.6"
    single, none = summarise([0.5]), summarise([])
    assert (single.mean, single.std, single.low, single.in_words(2)) == (0.5, None, None, "0.50")
    assert (none.count, none.mean, none.in_words()) == (0, None, "–")
    same = summarise([0.7] * 9)
    assert (same.low, same.high) == (pytest.approx(0.7), pytest.approx(0.7))
    for wrong in ([np.nan, 1], [np.inf]):
        with pytest.raises(InputError, match="finite"):
            summarise(wrong)


def test_the_interval_is_about_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = summarise(values)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std(ddof=1) / 20, rel=0.1)
    half = bootstrap(values[:, None], lambda s, n: s[:, 0] / n, confidence=0.5)
    assert half[1] - half[0] == pytest.approx(2 * 0.674 * values.std(ddof=1) / 20, rel=0.1)
    with pytest.raises(InputError, match="confidence"):
        bootstrap([[1.0]], lambda s, n: s[:, 0], confidence=1.0)
    with pytest.raises(InputError, match="one row or more"):
        bootstrap(np.zeros((0, 2)), lambda s, n: s[:, 0])


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("10", 10, "voxel"), (" 10.5 ", 10.5, "voxel"), ("12 voxels", 12, "voxel"), ("1e2", 100, "voxel"),
        ("120A", 120, "angstrom"), ("120 Å", 120, "angstrom"), ("120\u212b", 120, "angstrom"),
        ("12nm", 120, "angstrom"),
        (".5nm", 5, "angstrom"),
    ],
)  # fmt: skip
def test_radii_are_read(text: str, value: float, unit: str) -> None:
    assert parse_radius(text) == (pytest.approx(value), unit)


@pytest.mark.parametrize("text", ["", "A", "-3", "0", "nan", "inf", "12um", "1,5", "12 13", "0nm", "1e999"])
def test_what_is_no_radius_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="radius"):
        parse_radius(text)


@pytest.mark.parametrize("text", ["a=1,b", "=1", "a=", "a=1,a=2", "a=x"])
def test_what_are_no_radii_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="radius"):
        parse_radii(text)


def test_radii_come_from_documents() -> None:
    copick = {"pickable_objects": [{"name": "ribosome", "radius": 150}, {"name": "membrane", "radius": None}]}
    assert radii_of(copick, "c.json") == {"ribosome": Radius(150.0, "angstrom")}
    assert radii_of({"ribosome": "12nm", "fas": 7}, "r.yaml") == {"ribosome": Radius(120, "angstrom"), "fas": Radius(7)}
    for wrong in (
        [],
        None,
        {},
        {"a": True},
        {"a": -1},
        {"a": [1]},
        {"pickable_objects": [1]},
        {"pickable_objects": {}},
    ):
        with pytest.raises(InputError, match=r"w\.yaml|radius"):
            radii_of(wrong, "w.yaml")
