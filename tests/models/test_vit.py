"""The timm encoder against plain timm, on random weights of small models of the same classes."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from cryosam_dask.errors import MemoryLimitError, ModelError, SettingsError
from cryosam_dask.models import sam_attention, vit

from .contract import SliceEncoderContract, noise

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2": ("vit_small_patch14_dinov2.lvd142m", {**SMALL, "img_size": 70}),
    "dinov2-reg": ("vit_small_patch14_reg4_dinov2.lvd142m", {**SMALL, "img_size": 70}),
    "dinov2-giant": ("vit_giant_patch14_dinov2.lvd142m", {**SMALL, "img_size": 70, "mlp_ratio": 4.0}),
    "dino": ("vit_small_patch16_224.dino", {**SMALL, "img_size": 64}),
    "dinov3": ("vit_small_patch16_dinov3.lvd1689m", SMALL),
    "sam": ("samvit_base_patch16.sa1b", {**SMALL, "img_size": 128, "global_attn_indexes": (1,), "window_size": 3}),
}


def tiny(kind: str) -> torch.nn.Module:
    """A small model of a class, with random weights everywhere (some start at zero)."""
    torch.manual_seed(0)
    architecture, settings = TINY[kind]
    module = vit.build(architecture, **settings)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1) * 0.5)
    return module.eval()


@pytest.mark.parametrize("kind", list(TINY))
class TestContract(SliceEncoderContract):
    @pytest.fixture
    def encoder(self, kind: str) -> vit.TimmEncoder:
        return vit.TimmEncoder(tiny(kind), kind, "random")


@pytest.mark.parametrize("grid", [(2, 3), (7, 4), (1, 1)])
@pytest.mark.parametrize("kind", list(TINY))
def test_tokens_equal_a_plain_forward_pass(kind: str, grid: tuple[int, int]) -> None:
    module: Any = tiny(kind)
    encoder = vit.TimmEncoder(copy.deepcopy(module), kind, "random")
    slices = noise(2, grid[0] * encoder.patch, grid[1] * encoder.patch)
    tokens = encoder.encode(slices)

    with torch.no_grad():
        features = module.forward_features(torch.from_numpy(np.stack([slices] * 3, 1)))
    for n, i, j in np.ndindex(2, *grid):
        if kind == "sam":
            expected = features[n, :, i, j]
        else:
            prefix = {"dinov2": 1, "dinov2-giant": 1, "dinov2-reg": 5, "dino": 1, "dinov3": 5}[kind]
            expected = features[n, prefix + i * grid[1] + j]
        np.testing.assert_allclose(tokens[n, i, j], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov2", "sam"])
def test_many_slices_pass_in_parts_with_the_same_result(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = vit.TimmEncoder(tiny(kind), "tiny", "random")
    slices = noise(5, 2 * encoder.patch, 3 * encoder.patch)
    at_once = encoder.encode(slices)
    monkeypatch.setitem(vit.PASS_TOKENS, "cpu", 12)
    assert vit.slices_per_pass((2, 3), "cpu") == 2
    np.testing.assert_allclose(encoder.encode(slices), at_once, atol=1e-5)


def test_sam_never_holds_the_scores_of_all_pairs_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 × 24 tokens and two heads: all scores of one slice are 663,552 numbers, a piece of 64 KiB is 16,384."""
    most = 0
    attend = torch.nn.functional.scaled_dot_product_attention

    def watch(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal most
        most = max(most, kwargs["attn_mask"].numel())
        return attend(*args, **kwargs)

    module: Any = tiny("sam")
    slices = noise(1, 24 * 16, 24 * 16)
    with torch.no_grad():
        expected = module.forward_features(torch.from_numpy(np.stack([slices] * 3, 1))).permute(0, 2, 3, 1).numpy()
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    monkeypatch.setitem(sam_attention.BIAS_BYTES, "cpu", 1 << 16)
    tokens = vit.TimmEncoder(module, "tiny", "random").encode(slices)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)
    assert 0 < most <= 1 << 14


def overlapping(device: str, other: str) -> int:
    """How many threads are on `device` and `other` at once, at most, if four take turns as models do."""
    inside, most = 0, 0
    guard, together = threading.Lock(), threading.Event()

    def call(where: str) -> None:
        nonlocal inside, most
        with vit.device_memory("tiny", where):
            with guard:
                inside += 1
                most = max(most, inside)
                if inside > 1:
                    together.set()
            together.wait(0.1)
            with guard:
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, [device, other] * 2))
    return most


def test_threads_take_turns_on_a_gpu_and_on_nothing_else() -> None:
    assert overlapping("cuda", "cuda:0") == 1
    assert overlapping("cuda:0", "cuda:1") == 2
    assert overlapping("cpu", "cpu") > 1


def test_a_turn_on_a_gpu_ends_with_an_error_too() -> None:
    with pytest.raises(MemoryLimitError, match="memory of cuda"), vit.device_memory("tiny", "cuda"):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    assert overlapping("cuda", "cuda") == 1


@pytest.mark.parametrize("shape", [(2, 28, 30), (2, 13, 28), (1, 0, 14)])
def test_slices_that_are_no_multiples_of_the_patch_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of patch 14"):
        vit.TimmEncoder(tiny("dinov2"), "tiny", "random").encode(np.zeros(shape, np.float32))


def test_bfloat16_is_near_float32_and_tokens_stay_float32() -> None:
    slices = noise(1, 28, 42)
    exact = vit.TimmEncoder(tiny("dinov2"), "tiny", "random").encode(slices)
    rough = vit.TimmEncoder(tiny("dinov2"), "tiny", "random", dtype="bfloat16").encode(slices)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(SettingsError, match="float64"):
        vit.TimmEncoder(tiny("dinov2"), "tiny", "random", dtype="float64")


def test_tokens_that_overflow_are_an_error() -> None:
    module: Any = tiny("dinov2")
    with torch.no_grad():
        module.norm.weight.fill_(np.inf)
    with pytest.raises(ModelError, match="not finite"):
        vit.TimmEncoder(module, "tiny", "random").encode(noise(1, 14, 14))


def test_a_gpu_without_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = vit.TimmEncoder(tiny("dinov2"), "tiny", "random")

    def fail(images: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder._module, "forward_features", fail)
    with pytest.raises(MemoryLimitError, match="tiny does not fit in the memory of cpu"):
        encoder.encode(noise(1, 14, 14))


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_no_such_model"])
def test_models_that_are_no_plain_transformers_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        vit.geometry(vit.build(name, meta=True), name)
