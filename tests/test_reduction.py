"""Tokens are reduced by one code, as arrays of NumPy and as tensors of torch, and results come over on their own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosam_dask.errors import ModelError
from cryosam_dask.geometry import Interpolation, interpolation
from cryosam_dask.kernels import images
from cryosam_dask.kernels import tokens as kernel
from cryosam_dask.kernels.backend import NUMPY, Backend
from cryosam_dask.kernels.reduction import Reduction
from cryosam_dask.models import resizing, torch_backend
from cryosam_dask.models.devices import to_device
from cryosam_dask.models.torch_backend import TorchBackend, backend_of
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import features, standardize
from cryosam_dask.stages.base import Context
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Float32, TensorEncoder

RNG = np.random.default_rng(0)


class Encoder:
    """Patches of 4 × 4 pixels by random projections."""

    name, identity, patch, channels = "stand-in", "none", 4, 6
    matrix = RNG.normal(size=(16, 6)).astype(np.float32)

    def encode(self, slices: Float32) -> Float32:
        n, a, b = slices.shape
        return slices.reshape(n, a // 4, 4, b // 4, 4).swapaxes(2, 3).reshape(n, a // 4, b // 4, 16) @ self.matrix


class Tensors(Encoder):
    """The same in torch."""

    device = "cpu"

    def encode_tensor(self, slices: Float32) -> Any:
        return torch.from_numpy(self.encode(slices))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    info = mock.Mock(patch=4, channels=6, uses_torch=False, weights_bytes=0)
    info.encode_bytes.return_value = 0
    monkeypatch.setattr(features, "encoder_info", lambda _: info)


def store_at(path: Path) -> RunStore:
    store = RunStore.create(path, {"shape": (21, 37, 90), "voxel_size": [10.0] * 3, "origin": [0.0] * 3})
    values = np.random.default_rng(1).normal(1, 2, store.shape).astype(np.float32)
    store.new_array(layout.tomogram(), shape=store.shape, dtype="f4", chunks=(16, 16, 16), dims=AXES)[...] = values
    store.update_info(statistics={"mean": 1.0, "std": 2.0})
    return store


def encoded(path: Path, encoder: Encoder, chosen: FeatureSettings) -> RunStore:
    store = store_at(path)
    with mock.patch.object(features, "get_encoder", return_value=encoder):
        features.prepare(store, chosen)
        for stage in (standardize.plan(store.shape, chosen, ""), features.plan(store.shape, chosen, "")):
            for unit in stage.units:
                stage.work(Context(store.url), stage.settings, unit)
    return store


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("tile", [96, 12])
def test_tensors_become_what_arrays_become(tmp_path: Path, tile: int) -> None:
    assert isinstance(Tensors(), TensorEncoder)
    assert backend_of(Encoder()) is NUMPY
    chosen = FeatureSettings(encoder="texture", standardize="scale", tile=tile, halo=2, dense_ratios=())
    arrays, tensors = (encoded(tmp_path / f"{kind.__name__}.zarr", kind(), chosen) for kind in (Encoder, Tensors))
    for axis in AXES:
        for ratio in (1, *chosen.ratios):
            latents, gram = layout.latents(ratio, axis), layout.gram(ratio, axis)
            # the linear map is a matrix product, which libraries sum up in orders of their own
            np.testing.assert_allclose(tensors.read(latents), arrays.read(latents), rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose(
                tensors.read(gram), kernel.gram_maps(tensors.read(latents)), rtol=1e-5, atol=1e-5
            )
        sums = layout.feature_sums(axis)
        np.testing.assert_allclose(tensors.read(sums), arrays.read(sums), rtol=1e-4, atol=0.05)


class Resampling(TorchBackend):
    """Slices are resized as they are on a GPU."""

    def resample(self, slices: Float32, rows: Interpolation, columns: Interpolation) -> torch.Tensor:
        return resizing.resample(self.place(slices), rows, columns)


class TakingTensors(Tensors):
    def encode_tensor(self, slices: Any) -> Any:
        assert isinstance(slices, torch.Tensor)  # planes of 21, 37 and 90 pixels are no whole patches
        return super().encode_tensor(slices.numpy())


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("tile", [96, 12])
def test_slices_that_are_resized_on_the_device_become_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tile: int
) -> None:
    chosen = FeatureSettings(encoder="texture", standardize="scale", tile=tile, halo=2, dense_ratios=())
    expected = encoded(tmp_path / "host.zarr", Tensors(), chosen)
    for stage in (features, standardize):
        monkeypatch.setattr(stage, "backend_of", lambda _: Resampling("stand-in", "cpu"))
    there = encoded(tmp_path / "device.zarr", TakingTensors(), chosen)
    for axis in AXES:
        for name in (layout.latents(1, axis), layout.latents(8, axis), layout.gram(1, axis)):
            assert np.array_equal(there.read(name), expected.read(name))


class Turns(TorchBackend):
    """Notes each time that the device is taken by a thread and given back, and what is asked for meanwhile."""

    def __init__(self) -> None:
        super().__init__("stand-in", "cpu")
        self.depth, self.log = 0, list[str]()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        self.log += ["taken"] * (self.depth == 0)
        self.depth += 1
        with super().at_work():
            yield
        self.depth -= 1
        self.log += ["left"] * (self.depth == 0)


@pytest.mark.usefixtures("stand_in")
def test_a_slab_is_asked_for_as_a_whole_by_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, chosen = Turns(), FeatureSettings(encoder="texture", batch=4, dense_ratios=())

    class Noting(Tensors):
        def encode_tensor(self, slices: Any) -> Any:
            turns.log.append("batch")
            return super().encode_tensor(slices)

    monkeypatch.setattr(features, "backend_of", lambda _: turns)
    encoded(tmp_path / "run.zarr", Noting(), chosen)
    text = " ".join(turns.log)
    assert "taken batch batch batch batch left" in text
    assert "left batch" not in text


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_device_resamples_as_the_host_bit_for_bit(data: st.DataObject) -> None:
    sides = []
    for axis in range(2):
        length, size = (data.draw(st.integers(1, 90), f"{name} {axis}") for name in ("voxels", "pixels"))
        first = data.draw(st.integers(0, size - 1))
        positions = np.arange(first, data.draw(st.integers(first + 1, size)), dtype=float)
        sides.append(interpolation(positions, size, length))
    rows, columns = sides
    shape = (3, rows.stop - rows.start, columns.stop - columns.start)
    slices = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    there = resizing.resample(torch.from_numpy(slices), rows, columns)
    assert np.array_equal(there.numpy(), images.resample(slices, rows, columns))


def test_images_go_to_a_gpu_from_pinned_memory_and_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    empty, to, log = torch.empty, torch.Tensor.to, list[Any]()

    def pinned(shape: Any, **options: Any) -> Any:
        assert options.pop("pin_memory")
        return empty(shape, **options)

    def sent(self: Any, device: str, *dtype: Any, non_blocking: bool = False) -> Any:
        log.append((device, non_blocking))
        return to(self, "cpu", *dtype)

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.Tensor, "to", sent)
    values = np.arange(6, dtype=np.int16).reshape(2, 3)
    values.flags.writeable = False
    there = to_device(values, "cuda:1")
    assert there.dtype == torch.float32
    assert np.array_equal(there.numpy(), values)
    assert torch.equal(to_device(there, "cuda:1"), there)  # what is there stays
    assert log == [("cuda:1", True)] * 2


def reduced(tokens: Any, backend: Backend, finest: int | None = 4) -> dict[str, Array]:
    weights = np.random.default_rng(2).random((7, 9), np.float32)
    reduction = Reduction(backend, 13, (7, 9), tokens.shape[-1], finest, weights)
    for start in range(0, 13, 5):
        reduction.add(tokens[start : start + 5])
    every = {1: reduction.native} | {ratio: reduction.coarse(ratio) for ratio in ((4, 8, 16) if finest else ())}
    out = {
        f"{name} {ratio}": landing.array()
        for ratio, pair in every.items()
        for name, landing in zip("lg", pair, strict=True)
    }
    return {**out, "sums": reduction.sums().array()}


class OnDevice(TorchBackend):
    """What a GPU does, here: products in torch, all rows at a time."""

    block_values = 1 << 28

    def __init__(self) -> None:
        self._name, self._device = "stand-in", "cpu"

    def dots(self, a: Any, b: Any) -> Any:
        return (a * b).sum(-1)


@pytest.mark.parametrize("channels", [18, 80])
@pytest.mark.parametrize("backend", [TorchBackend("stand-in", "cpu"), OnDevice()], ids=["cpu", "as on a GPU"])
def test_latents_are_the_same_bit_for_bit_and_products_but_for_the_order_of_terms(
    channels: int, backend: TorchBackend
) -> None:
    tokens = RNG.normal(size=(13, 7, 9, channels)).astype(np.float32)
    for finest in (4, None):
        expected = reduced(tokens.copy(), NUMPY, finest)
        there = reduced(torch.from_numpy(tokens.copy()), backend, finest)
        assert there.keys() == expected.keys()
        for name, values in expected.items():
            if name.startswith("l"):
                assert there[name].dtype == np.float16
                assert np.array_equal(there[name], values)
            else:
                np.testing.assert_allclose(there[name], values, rtol=1e-5, atol=1e-5 * channels)


class Device:
    """Streams and events of a GPU that is not there, and the order of what was asked of them."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.log.append("on copies")
        yield
        self.log.append("off copies")


def test_copies_from_a_gpu_wait_for_nothing_but_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    empty, copy = torch.empty, torch.Tensor.copy_

    def pinned(shape: Any, **options: Any) -> Any:
        assert options.pop("pin_memory")
        return empty(shape, **options)

    def copied(self: Any, values: Any, non_blocking: bool = False) -> Any:
        device.log.append("copy" if non_blocking else "copy and wait")
        return copy(self, values)

    def stream(where: str) -> Any:
        made = mock.Mock()
        made.wait_stream.side_effect = lambda other: device.log.append(f"copies wait for {other}")
        return made

    def event(blocking: bool) -> Any:
        assert blocking  # who waits holds no core
        made = mock.Mock()
        made.record.side_effect = lambda stream: device.log.append("mark")
        made.synchronize.side_effect = lambda: device.log.append("wait")
        return made

    torch_backend._copies.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "stream", device.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "kernels")
    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: device.log.append("kept for copies"))
    try:
        landing = TorchBackend("stand-in", "cuda").landing((4, 3), np.float16)
        values = torch.from_numpy(RNG.normal(size=(4, 3)).astype(np.float32))
        parts = [landing.put(slice(i, i + 2), values[i : i + 2]) for i in (0, 2)]
        one = ["copies wait for kernels", "on copies", "copy", "mark", "off copies", "kept for copies"]
        assert device.log == 2 * one
        assert np.array_equal(landing.array(), values.half().numpy())
        assert device.log == [*2 * one, "wait"]
        assert torch.equal(torch.cat(parts), values.half())
    finally:
        torch_backend._copies.cache_clear()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("kind", [Encoder, Tensors])
@pytest.mark.parametrize("value", [np.nan, 1e5])
def test_tokens_that_are_not_finite_as_stored_are_an_error_and_not_stored(
    tmp_path: Path, kind: type[Encoder], value: float
) -> None:
    class Broken(kind):  # type: ignore[misc, valid-type]
        def encode(self, slices: Float32) -> Float32:
            tokens: Float32 = super().encode(slices)
            tokens[-1, -1, -1, 0] = value
            return tokens

    chosen = FeatureSettings(encoder="texture", dense_ratios=())
    with pytest.raises(ModelError, match="not finite in half precision"), np.errstate(over="ignore"):
        encoded(tmp_path / "run.zarr", Broken(), chosen)
    store = RunStore.open(tmp_path / "run.zarr")
    assert all(store.array(layout.latents(1, axis)).nchunks_initialized == 0 for axis in AXES)


def test_the_built_in_encoder_is_reduced_without_torch() -> None:
    code = (
        "import sys; from cryosam_dask.models import get_encoder; from cryosam_dask.stages import slabs, features;"
        "from cryosam_dask.models.torch_backend import backend_of; b = backend_of(get_encoder('texture'));"
        "b.landing((1, 1), 'f2').put(slice(0, 1), b.zeros((1, 1))); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
