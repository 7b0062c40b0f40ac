"""Which annotations are prompts: a seeded random sample for each tomogram, smaller samples inside larger ones."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def prompt_order(count: int, seed: int, tomogram: str, kind: str) -> NDArray[np.int64]:
    """A random order of `count` annotations that depends on the seed and on these names alone.

    The first m of it are the sample of m prompts, so that one prompt is among the 5 %, and these among the 10 %: rows
    of a table differ by what is added. It does not depend on which other tomograms are run.
    """
    digest = hashlib.sha256(f"{seed}/{tomogram}/{kind}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(count).astype(np.int64)


def prompt_count(count: int, share: float | None) -> int:
    """How many of `count` annotations are prompts: one, or the share rounded half up, and never none."""
    return min(count, 1 if share is None else max(1, int(share * count + 0.5)))
