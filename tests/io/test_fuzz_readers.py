"""Damaged inputs of every kind end as `damage.examine` says: read right, or refused in one line, at once, safely.

A bounded, repeatable part of what `tests/campaigns/fuzz.py` does by the thousand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import damage_points  # noqa: F401
import pytest
from damage import MAKERS, damaged, examine, run_case, traced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", autouse=True)
def _traced() -> Iterator[None]:
    with traced():
        yield


@pytest.mark.parametrize("kind", list(MAKERS))
@FEW
@given(r=st.randoms(use_true_random=False))
def test_a_damaged_file_is_read_right_or_refused(kind: str, r: random.Random, tmp_path: Path) -> None:
    run_case(kind, r, tmp_path)


@pytest.mark.parametrize("kind", ["mrc", "star", "csv"])
@FEW
@given(raw=st.binary(max_size=3000), tail=st.booleans())
def test_random_bytes_are_refused(kind: str, raw: bytes, tail: bool, tmp_path: Path) -> None:
    path = MAKERS[kind](random.Random(7), tmp_path)
    path.write_bytes(raw + (path.read_bytes() if tail else b""))
    examine(kind, path)


@pytest.mark.parametrize("kind", ["gz", "tiff", "hdf5", "npy", "npz"])
@settings(FEW, max_examples=15)
@given(raw=st.binary(max_size=3000), start=st.integers(0, 200))
def test_random_bytes_behind_a_sound_start_are_refused(kind: str, raw: bytes, start: int, tmp_path: Path) -> None:
    path = MAKERS[kind](random.Random(7), tmp_path)
    path.write_bytes(path.read_bytes()[:start] + raw)
    examine(kind, path)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_many_seeds(kind: str, tmp_path: Path) -> None:
    """Far more cases than a shrinking search has time for; most makers both succeed and fail."""
    refused = [run_case(kind, random.Random(seed), tmp_path).refused for seed in range(80)]
    assert 3 < sum(each is None for each in refused) < 77


def test_the_damage_damages() -> None:
    raw = bytes(range(256)) * 8
    changed = [damaged(random.Random(seed), raw) for seed in range(50)]
    assert len(set(changed) - {raw}) > 45
