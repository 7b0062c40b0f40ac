"""Mean and spread of a figure over tomograms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cryosam_dask.errors import InputError

RESAMPLES = 2000
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """Mean and spread of some values; None where there are too few of them.

    std : sample standard deviation (n - 1), from two values on
    q1, median, q3 : quartiles, interpolated
    low, high : bootstrap interval of the mean (percentile method), from two values on
    """

    count: int
    mean: float | None
    std: float | None
    min: float | None
    q1: float | None
    median: float | None
    q3: float | None
    max: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain values for JSON."""
        return asdict(self)

    def in_words(self, digits: int = 3) -> str:
        """`0.812 ± 0.034`, without the second number for a single value, `–` for none."""
        if self.mean is None:
            return "–"
        return f"{self.mean:.{digits}f}" + ("" if self.std is None else f" ± {self.std:.{digits}f}")


def summarise(values: Iterable[float], *, confidence: float = 0.95, seed: int = 0) -> Summary:
    """Mean and spread of finite numbers, one for each tomogram (or run, or click).

    Raises InputError for values that aren't finite: what has no value must be left out by who knows why.
    """
    array = np.asarray(list(values), dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise InputError("summary: expected finite numbers, found NaN, infinite ones or None")
    if array.size == 0:
        return Summary(0, *(9 * [None]))
    low = high = std = None
    if array.size > 1:
        std = float(array.std(ddof=1))
        low, high = bootstrap(array[:, None], lambda sums, n: sums[:, 0] / n, confidence=confidence, seed=seed)
    minimum, q1, median, q3, maximum = (float(v) for v in np.percentile(array, (0, 25, 50, 75, 100)))
    return Summary(array.size, float(array.mean()), std, minimum, q1, median, q3, maximum, low, high)


def bootstrap(
    table: ArrayLike, figure: Callable[[Float64, int], Float64], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval of a figure that follows from column sums, by drawing rows with replacement (percentile method).

    Parameters
    ----------
    table : (n, k), a row for each tomogram; figure : (sums (B, k), n) → (B,)
    confidence : share of the resampled figures inside

    B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    rows = np.asarray(table, dtype=np.float64)
    if rows.ndim != 2 or len(rows) == 0:
        raise InputError(f"bootstrap: expected a table of one row or more, found shape {rows.shape}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence: expected a number between 0 and 1, found {confidence!r}")
    # how often each row is drawn: memory is that of the counts, however many columns there are
    drawn = np.random.default_rng(seed).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), RESAMPLES)
    values = figure(drawn @ rows, len(rows))
    low, high = np.percentile(values, (50 * (1 - confidence), 50 * (1 + confidence)))
    return float(low), float(high)
