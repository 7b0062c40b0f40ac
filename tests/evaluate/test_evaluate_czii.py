"""The CZII challenge's score against a plain statement of its rules, written for these tests."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosam_dask.errors import InputError
from cryosam_dask.evaluate import CZII_OBJECTS, competition_counts, czii_score

Points = dict[str, dict[str, list[tuple[float, ...]]]]

RADII = {
    "apo-ferritin": 60,
    "beta-amylase": 65,
    "beta-galactosidase": 90,
    "ribosome": 150,
    "thyroglobulin": 130,
    "virus-like-particle": 135,
}
WEIGHTS = {
    "apo-ferritin": 1,
    "beta-amylase": 0,
    "beta-galactosidase": 2,
    "ribosome": 1,
    "thyroglobulin": 2,
    "virus-like-particle": 1,
}


def test_the_table_is_the_challenges() -> None:
    assert {o.name: o.radius for o in CZII_OBJECTS} == RADII
    assert {o.name: o.weight for o in CZII_OBJECTS} == WEIGHTS


def plain_score(found: Points, truth: Points) -> float:
    """The rules word by word: no trees, no arrays."""
    total = 0.0
    for kind, weight in WEIGHTS.items():
        hits = picks = particles = 0
        for tomogram, kinds in truth.items():
            if not any(kinds.values()):
                continue  # in the challenge's table of particles such a tomogram has no row
            there = list(dict.fromkeys(kinds.get(kind, [])))  # the challenge's code leaves out repeated rows
            here = found.get(tomogram, {}).get(kind, [])
            particles += len(there)
            picks += len(here)
            for particle in there:
                within = [
                    sum((a - b) ** 2 for a, b in zip(particle, pick, strict=True)) <= (RADII[kind] / 2) ** 2
                    for pick in here
                ]
                hits += any(within)
        precision = hits / picks if picks else 0.0
        recall = hits / particles if particles else 0.0
        if precision or recall:
            total += weight * 17 * precision * recall / (16 * precision + recall)
    return total / 7


def random_points(rng: np.random.Generator, tomograms: list[str]) -> Points:
    return {
        tomogram: {
            kind: [tuple(p) for p in rng.uniform(0, 260, (int(rng.integers(0, 7)), 3))]
            for kind in rng.permutation(list(RADII))[: int(rng.integers(0, 7))].tolist()
        }
        for tomogram in tomograms
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_the_score_is_as_stated(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = random_points(rng, ["a", "b", "c"][: int(rng.integers(1, 4))])
    for points in truth["a"].values():
        points += points[: seed % 3]
    found = random_points(rng, ["a", "c", "of no truth"])
    assert czii_score(found, truth).score == pytest.approx(plain_score(found, truth), abs=1e-12)


def test_how_the_two_ways_of_counting_differ() -> None:
    truth = [[0.0, 0, 0], [0, 0, 50]]
    # one pick between two particles finds both, and is less than no false positive
    assert competition_counts([[0, 0, 25]], truth, 30) == (2, -1, 0)
    one = {"t": {"ribosome": [[0.0, 0, 25]]}}, {"t": {"ribosome": truth}}
    assert czii_score(*one).classes[3].precision == 2
    strict = next(c for c in czii_score(*one, matching="one-to-one").classes if c.name == "ribosome")
    assert (strict.true_positives, strict.false_positives, strict.false_negatives) == (1, 0, 1)
    # further picks at one particle are false positives in both
    assert competition_counts([[0, 0, 0], [0, 0, 1], [0, 0, 2]], truth, 10) == (1, 2, 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_both_agree_where_particles_are_two_radii_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(3) * 151.0] * 3), -1).reshape(-1, 3)
    truth = {"t": {"ribosome": grid}}
    found = {"t": {"ribosome": grid[rng.integers(0, 27, 30)] + rng.normal(0, 50, (30, 3))}}
    scores = [czii_score(found, truth, matching=m) for m in ("competition", "one-to-one")]
    assert scores[0].classes == scores[1].classes


def test_edges() -> None:
    ribosomes = {"t": {"ribosome": [[0.0, 0, 0]]}}
    assert czii_score({}, ribosomes).score == 0
    assert czii_score({"t": {}}, {"t": {}}).score == 0
    assert czii_score(ribosomes, ribosomes).score == pytest.approx(1 / 7)
    everything = {"t": {kind: [[0.0, 0, 0]] for kind in RADII}}
    assert czii_score(everything, everything).score == pytest.approx(1)
    # picks of a class without any truth, and in a tomogram without any, count for nothing
    more = {"t": ribosomes["t"] | {"thyroglobulin": [[1.0, 1, 1]]}, "u": {"ribosome": [[5.0, 5, 5]]}}
    assert czii_score(more, ribosomes | {"u": {"ribosome": []}}).score == pytest.approx(1 / 7)
    # a pick at the radius counts, one beyond does not
    at, beyond = {"t": {"ribosome": [[0, 0, 75.0]]}}, {"t": {"ribosome": [[0, 0, 75.0001]]}}
    assert czii_score(at, ribosomes).score > 0
    assert czii_score(beyond, ribosomes).score == 0
    for found, truth in (({"t": {"proteasome": []}}, ribosomes), (ribosomes, {"t": {"proteasome": []}})):
        with pytest.raises(InputError, match="proteasome: no class of the challenge"):
            czii_score(found, truth)
    json.dumps(czii_score(ribosomes, ribosomes).to_dict(), allow_nan=False)
