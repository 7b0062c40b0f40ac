"""The linear map of tokens: what it makes of a sample, and what it refuses."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from cryosam_dask.kernels.standardization import Moments, fit_standardization

Mode = Literal["whiten", "scale", "none"]


@pytest.fixture
def tokens() -> NDArray[np.float32]:
    """(4000, 6): correlated channels of unlike means and spreads."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6))
    return (mixed * [0.01, 1, 5, 100, 1, 2] + [3, 0, -50, 1000, 7, 0]).astype(np.float32)


def apply(tokens: NDArray[np.float32], mode: Mode, **options: float) -> NDArray[np.float64]:
    mean, matrix = fit_standardization(tokens, mode, **options)
    assert mean.dtype == matrix.dtype == np.float32
    return (tokens.astype(np.float64) - mean) @ matrix.astype(np.float64)


def test_scale_gives_every_channel_zero_mean_and_unit_variance_and_keeps_correlation(
    tokens: NDArray[np.float32],
) -> None:
    out = apply(tokens, "scale")
    assert out.mean(0) == pytest.approx(np.zeros(6), abs=1e-3)
    assert out.std(0) == pytest.approx(np.ones(6), rel=1e-4)
    assert np.corrcoef(out.T) == pytest.approx(np.corrcoef(tokens.T.astype(float)), abs=1e-4)


def test_whitening_without_shrinkage_gives_the_unit_covariance(tokens: NDArray[np.float32]) -> None:
    out = apply(tokens, "whiten", shrinkage=0.0)
    assert out.mean(0) == pytest.approx(np.zeros(6), abs=1e-2)
    assert np.cov(out.T, bias=True) == pytest.approx(np.eye(6), abs=2e-3)


def test_shrinkage_goes_from_whitened_to_scaled_and_blows_nothing_up(tokens: NDArray[np.float32]) -> None:
    assert apply(tokens, "whiten", shrinkage=1.0) == pytest.approx(apply(tokens, "scale"), rel=1e-5, abs=1e-4)
    off = ~np.eye(6, dtype=bool)
    correlation = [np.abs(np.cov(apply(tokens, "whiten", shrinkage=s).T)[off]).max() for s in (0.0, 0.1, 1.0)]
    assert correlation == sorted(correlation)
    twins = np.repeat(tokens[:, :1], 3, 1) + np.float32(1e-5) * np.random.default_rng(1).normal(size=(4000, 3))
    assert np.abs(fit_standardization(twins, "whiten")[1] * twins.std(0)[:, None]).max() < 1 / np.sqrt(0.1) + 0.01


def test_whitening_keeps_every_channel_nearest_to_itself() -> None:
    """The symmetric root, not any of its rotations: an already white sample stays as it is."""
    white = np.random.default_rng(2).normal(size=(100_000, 4))
    _, matrix = fit_standardization(white, "whiten")
    assert matrix == pytest.approx(np.eye(4), abs=0.02)


@pytest.mark.parametrize("mode", ["scale", "whiten"])
@pytest.mark.parametrize("value", [0.0, 7.0, -1e4])
def test_a_constant_channel_becomes_zero_and_leaves_the_others_alone(
    tokens: NDArray[np.float32], mode: Mode, value: float
) -> None:
    with_constant = np.insert(tokens, 2, np.float32(value), axis=1)
    out = apply(with_constant, mode)
    assert np.abs(out[:, 2]).max() < 1e-12
    assert np.delete(out, 2, axis=1) == pytest.approx(apply(tokens, mode), abs=1e-3)


def test_none_changes_nothing(tokens: NDArray[np.float32]) -> None:
    assert (apply(tokens, "none") == tokens).all()


@pytest.mark.parametrize(
    "bad", [np.zeros((1, 4)), np.zeros((0, 4)), np.zeros(4), np.full((5, 2), np.nan), np.full((5, 2), np.inf)]
)
def test_samples_that_say_nothing_are_refused(bad: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="all finite"):
        fit_standardization(bad)


def test_an_unknown_mode_is_refused(tokens: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="expected whiten, scale or none"):
        fit_standardization(tokens, "zca")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["scale", "whiten"])
@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3000], [1999, 2000]])
def test_moments_of_portions_are_those_of_the_sample(tokens: NDArray[np.float32], mode: Mode, cuts: list[int]) -> None:
    moments = Moments(6, mixed=mode == "whiten")
    for part in np.split(tokens, cuts):
        moments.add(part)
    off = tokens.astype(np.float64) - tokens.mean(0, dtype=np.float64)
    products = off.T @ off if mode == "whiten" else (off * off).sum(0)
    assert moments.count == len(tokens)
    assert moments.mean == pytest.approx(tokens.mean(0, dtype=np.float64), rel=1e-12)
    assert moments.products == pytest.approx(products, rel=1e-9, abs=1e-6)
    for one, other in zip(fit_standardization(moments, mode), fit_standardization(tokens, mode), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_moments_that_say_too_little_are_refused(tokens: NDArray[np.float32]) -> None:
    few = Moments(6)
    few.add(tokens[:1])
    with pytest.raises(ValueError, match="expected at least 2"):
        fit_standardization(few)
    with pytest.raises(ValueError, match="not all finite"):
        few.add(np.full((2, 6), np.nan))
    unmixed = Moments(6, mixed=False)
    unmixed.add(tokens)
    with pytest.raises(ValueError, match="products of unlike channels"):
        fit_standardization(unmixed, "whiten")
