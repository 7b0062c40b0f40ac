"""`FeatureVolume`: what people compute with. The reference builds F whole, with PyTorch's upsampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cryosam_dask import FeatureVolume, geometry
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Float32, Shape3

SHAPES: list[tuple[Shape3, tuple[int, int, int]]] = [
    ((17, 23, 30), (3, 4, 5)),
    ((16, 32, 48), (4, 8, 12)),
    ((5, 40, 9), (2, 11, 3)),
    ((1, 19, 33), (1, 2, 9)),
]


def whole(url: str) -> Float32:
    """F (z, y, x, 3C), from the native latents by PyTorch."""
    import torch

    store = RunStore.open(url)
    parts = []
    for axis in AXES:
        images = torch.tensor(np.asarray(store.read(layout.latents(1, axis)), np.float32)).permute(0, 3, 1, 2)
        size = geometry.plane_shape(store.shape, axis)
        up = torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False)
        parts.append(np.moveaxis(up.permute(0, 2, 3, 1).numpy(), 0, geometry.axis_index(axis)))
    return np.concatenate(parts, axis=-1)


def cosine(features: Float32, query: Float32) -> Float32:
    norms = np.linalg.norm(features, axis=-1) * np.linalg.norm(query)
    return np.asarray(features @ query / norms, np.float32)


@pytest.fixture(params=SHAPES, ids=str)
def url(request: pytest.FixtureRequest, random_features: Any) -> str:
    shape, tokens = request.param
    return str(random_features(shape, tokens=tokens))


def test_dense_at_ratio_one_is_f(url: str) -> None:
    assert FeatureVolume.open(url).dense(1).to_numpy() == pytest.approx(whole(url), abs=1e-5)


def test_dense_at_a_ratio_averages_slices_and_samples_the_cells_centres(url: str) -> None:
    """Every cell by the definition: the mean over its slices of `up` at its centre, view by view."""
    volume, store = FeatureVolume.open(url), RunStore.open(url)
    for ratio in (4, 8, 16):
        dense = volume.dense(ratio).to_numpy()
        assert dense.shape == (*geometry.cell_grid(volume.shape, ratio), volume.channels)
        centers = [geometry.cell_centers(n, ratio) for n in volume.shape]
        for cell in ((0, 0, 0), tuple(n - 1 for n in dense.shape[:3])):
            expected = []
            for axis in AXES:
                a, (rows, columns) = geometry.axis_index(axis), geometry.plane_axes(axis)
                tokens = np.asarray(store.read(layout.latents(1, axis)), np.float32)
                part = tokens[cell[a] * ratio : (cell[a] + 1) * ratio].mean(0)
                for i, length in zip((rows, columns), geometry.plane_shape(volume.shape, axis), strict=True):
                    at = geometry.interpolation(centers[i][[cell[i]]], length, part.shape[0])
                    part = np.tensordot(at.weights[0], part[at.start : at.stop], axes=1)
                expected.append(part)
            assert dense[cell] == pytest.approx(np.concatenate(expected), abs=1e-4)


@pytest.mark.parametrize("ratio", [1, 4, 8, 16])
@pytest.mark.parametrize("center", [False, True])
def test_similarity_is_the_cosine_of_dense(url: str, ratio: int, center: bool) -> None:
    volume = FeatureVolume.open(url)
    query = np.random.default_rng(7).normal(size=volume.channels).astype(np.float32)
    mean = volume.mean if center else np.zeros_like(query)
    expected = cosine(volume.dense(ratio).to_numpy() - mean, query - mean)
    assert volume.similarity(query, ratio, center=center).to_numpy() == pytest.approx(expected, abs=1e-4)


def test_similarity_of_a_box_is_that_part_of_the_whole(url: str) -> None:
    volume = FeatureVolume.open(url)
    query = np.random.default_rng(8).normal(size=volume.channels).astype(np.float32)
    expected = volume.similarity(query, 1).to_numpy()
    z, y, x = ((n // 3, n // 3 + max(1, n // 2)) for n in volume.shape)
    found = volume.similarity_block(query, 1, (z, y, x))
    assert found == pytest.approx(expected[geometry.box_slices((z, y, x))], abs=1e-5)


def test_pool_is_the_masked_mean_of_dense(url: str) -> None:
    volume = FeatureVolume.open(url)
    mask = np.random.default_rng(9).random(volume.shape) < 0.3
    mask.flat[0] = True
    assert volume.pool(mask) == pytest.approx(whole(url)[mask].mean(0), abs=1e-4)
    assert volume.pool(np.ones(volume.shape, bool)) == pytest.approx(volume.mean, abs=1e-4)


def test_half_precision_latents_stay_within_their_rounding(random_features: Any) -> None:
    url = random_features((17, 23, 30), dtype="float16", channels=16)
    volume = FeatureVolume.open(url)
    query = np.random.default_rng(7).normal(size=volume.channels).astype(np.float32)
    for ratio in volume.ratios:
        expected = cosine(volume.dense(ratio).to_numpy(), query)
        assert volume.similarity(query, ratio).to_numpy() == pytest.approx(expected, abs=1e-4)


def test_arrays_are_lazy_with_angstrom_coordinates(url: str) -> None:
    import dask.array as da

    volume = FeatureVolume.open(url)
    dense = volume.dense(4)
    assert isinstance(dense.data, da.Array)
    assert dense.dims == ("z", "y", "x", "channel")
    assert float(dense.z[0]) == pytest.approx(10.0 * (min(4, volume.shape[0]) - 1) / 2)
    similarity = volume.similarity(np.ones(volume.channels), 1)
    assert isinstance(similarity.data, da.Array)
    assert similarity.dims == ("z", "y", "x")


def test_errors_name_what_is_wrong(url: str, tmp_path: Any) -> None:
    volume = FeatureVolume.open(url)
    with pytest.raises(InputError, match="no features of ratio 3"):
        volume.dense(3)
    with pytest.raises(InputError, match=r"shape \(15,\)"):
        volume.similarity(np.ones(4), 4)
    with pytest.raises(InputError, match="finite and not zero"):
        volume.similarity(np.zeros(15), 4)
    with pytest.raises(InputError, match="does not fit"):
        volume.pool(np.ones((1, 2, 3), bool))
    with pytest.raises(InputError, match="mask is empty"):
        volume.pool(np.zeros(volume.shape, bool))
    with pytest.raises(StoreError, match="no run found"):
        FeatureVolume.open(tmp_path / "none.zarr")
