"""Similarity and pooling from latent views against the dense computation with PyTorch's upsampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cryosam_dask.geometry import interpolation
from cryosam_dask.kernels import tokens as kernel

Dense = NDArray[np.float32]


def upsampled(tokens: Dense, size: tuple[int, int]) -> Dense:
    """up(tokens), by PyTorch."""
    import torch

    images = torch.tensor(tokens).permute(0, 3, 1, 2)
    out = torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False)
    return np.asarray(out.permute(0, 2, 3, 1).numpy())


def block(tokens: Dense, size: tuple[int, int], vectors: Dense) -> kernel.ViewBlock:
    rows, columns = (
        interpolation(np.arange(n, dtype=float), n, t) for n, t in zip(size, tokens.shape[1:3], strict=True)
    )
    part = np.s_[:, rows.start : rows.stop, columns.start : columns.stop]
    return kernel.ViewBlock(kernel.token_dots(tokens[part], vectors), kernel.gram_maps(tokens)[part], rows, columns)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))


@given(shape=shapes, size=st.tuples(st.integers(1, 30), st.integers(1, 30)), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_norm_projection_and_pooling_equal_the_dense_ones(
    shape: tuple[int, int, int, int], size: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=shape).astype(np.float32)
    vectors = rng.normal(size=(shape[3], 2)).astype(np.float32)
    mask = rng.random((shape[0], *size)) < 0.5
    dense, view = upsampled(tokens, size), block(tokens, size, vectors)
    rows, columns = view.rows, view.columns
    touched = tokens[:, rows.start : rows.stop, columns.start : columns.stop]
    assert kernel.upsample(touched, rows, columns) == pytest.approx(dense, abs=1e-4)
    assert kernel.squared_norm(view) == pytest.approx((dense**2).sum(-1), abs=2e-4)
    dots = rows.weights @ view.dots @ columns.weights.T
    assert dots == pytest.approx(np.moveaxis(dense @ vectors, -1, 0), abs=1e-4)
    pooled = kernel.pool_view(touched, mask, rows, columns)
    assert pooled == pytest.approx(dense[mask].sum(0, dtype=float), rel=1e-5, abs=2e-3)


def test_centred_terms_are_those_of_the_centred_features() -> None:
    rng = np.random.default_rng(3)
    tokens = rng.normal(1, 1, size=(2, 3, 4, 5)).astype(np.float32)
    query, mean = rng.normal(size=(2, 5)).astype(np.float32)
    dense = upsampled(tokens, (9, 14)) - mean
    target = kernel.Target(query, mean)
    view = block(tokens, (9, 14), target.vectors)
    numerator, squared = kernel.view_terms(view, target)
    assert numerator == pytest.approx(dense @ (query - mean), abs=1e-4)
    assert squared == pytest.approx((dense**2).sum(-1), abs=1e-4)
    part = np.s_[1:2], np.s_[3:8], np.s_[10:14]
    assert kernel.view_terms(view.part(*part), target)[0] == pytest.approx(numerator[part], abs=1e-5)


def test_dots_do_not_depend_on_the_blocks_they_are_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    tokens, vectors = rng.normal(size=(3, 5, 7, 6)).astype(np.float16), rng.normal(size=(6, 2)).astype(np.float32)
    expected = np.moveaxis(tokens.astype(np.float32) @ vectors, -1, 0)
    for values in (1, 24, 1 << 17):
        monkeypatch.setattr(kernel, "BLOCK_VALUES", values)
        assert kernel.token_dots(tokens, vectors) == pytest.approx(expected, abs=1e-5)


def test_token_weights_sum_to_the_voxels_and_weigh_the_mean() -> None:
    weights = kernel.token_weights(13, 4)
    assert weights.sum() == pytest.approx(13, abs=1e-4)
    values = np.random.default_rng(0).normal(size=(1, 4, 1, 1)).astype(np.float32)
    assert weights @ values[0, :, 0, 0] == pytest.approx(upsampled(values, (13, 1)).sum(), abs=1e-4)


def test_average_slices_has_a_shorter_last_run() -> None:
    tokens = np.arange(7, dtype=np.float32).reshape(7, 1, 1, 1)
    assert kernel.average_slices(tokens, 4).ravel().tolist() == [1.5, 5.0]


@given(st.integers(1, 16), st.sampled_from([(2, 4), (2, 16), (4, 8), (4, 16), (4, 4)]))
def test_coarser_averages_follow_from_the_sums_of_finer_ones(count: int, ratios: tuple[int, int]) -> None:
    fine, coarse = ratios
    tokens = np.random.default_rng(count).normal(size=(count, 2, 3, 4)).astype(np.float32)
    starts = np.arange(0, count, fine)
    sums = np.add.reduceat(tokens, starts, axis=0)
    counts = np.minimum(fine, count - starts)
    found = kernel.average_slices(sums, coarse // fine, counts)
    assert found == pytest.approx(kernel.average_slices(tokens, coarse), abs=1e-6)


def test_gram_maps_of_half_tokens_are_those_of_the_same_in_single_precision() -> None:
    half = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float16)
    maps = kernel.gram_maps(half)
    assert maps.dtype == np.float32
    assert (maps == kernel.gram_maps(half.astype(np.float32))).all()
    t = half.astype(float)
    assert maps[1, 2, 3] == pytest.approx(
        [
            t[1, 2, 3] @ t[1, 2, 3],
            t[1, 2, 3] @ t[1, 3, 3],
            t[1, 2, 3] @ t[1, 2, 4],
            t[1, 2, 3] @ t[1, 3, 4] + t[1, 2, 4] @ t[1, 3, 3],
        ],
        rel=1e-5,
    )


def test_similarity_of_nothing_is_zero_not_nan() -> None:
    assert kernel.cosine(np.zeros(2, np.float32), np.array([0, -1e-9], np.float32), 3.0).tolist() == [0, 0]
    assert kernel.cosine(np.ones(1, np.float32), np.ones(1, np.float32), 0.0).tolist() == [0]
