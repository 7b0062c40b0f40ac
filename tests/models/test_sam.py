"""The SAM adapter against `SamPredictor`, on random weights of a small model of the same classes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_sams import image_encoder, sam_of

from cryosam_dask.errors import ModelError
from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.models import resizing, sam, sam_attention
from cryosam_dask.settings import PropagationRules
from cryosam_dask.types import AXES, MadeTogether, Window

from .contract import PromptedSegmenterContract, noise, picture

PLANES = [(48, 80), (80, 48), (64, 64), (97, 31), (300, 200)]


def tiny_sam(size: int = 128) -> Any:
    """A Sam of 128 × 128 pixels with random weights everywhere (some start at zero)."""
    from segment_anything import modeling

    torch.manual_seed(0)
    sizes = {"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "patch_size": 16, "out_chans": 32}
    encoder = image_encoder(img_size=size, global_attn_indexes=(1,), window_size=3, **sizes)
    model = sam_of(modeling, encoder, size, size // 16, 32, depth=2, mlp_dim=64, num_heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1) * 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_sam()


@pytest.fixture
def segmenter(model: Any) -> sam.SamSegmenter:
    return sam.SamSegmenter(model, "sam-tiny", "random")


class TestContract(PromptedSegmenterContract):
    """SAM keeps the contract of every segmenter."""


def clicks(plane: tuple[int, int], count: int) -> np.ndarray:
    return np.random.default_rng(2).uniform(0, np.array(plane) - 1, (count, 2)).astype(np.float32)


def exact_embedding(segmenter: sam.SamSegmenter, grey: np.ndarray) -> np.ndarray:
    """The embedding before it is rounded to float16."""
    return segmenter._embed_one(grey)


@pytest.mark.parametrize("plane", PLANES)
def test_masks_scores_and_logits_equal_the_predictors(segmenter: sam.SamSegmenter, plane: tuple[int, int]) -> None:
    from segment_anything import SamPredictor

    grey = picture(plane)[0]
    predictor = SamPredictor(tiny_sam())  # as published; the segmenter's model has been optimised
    predictor.set_image(np.repeat(grey[..., None], 3, 2))
    embedding = exact_embedding(segmenter, grey)
    np.testing.assert_allclose(embedding, predictor.get_image_embedding()[0].numpy(), atol=1e-5)

    points = clicks(plane, 5)
    previous = noise(5, *segmenter.logits_shape(plane)) * 4
    for logits in (None, previous):
        found = segmenter.predict(embedding, plane, points, logits)
        for b, (row, column) in enumerate(points):
            full, scores, low = predictor.predict(
                point_coords=np.array([[column, row]]),
                point_labels=np.array([1]),
                mask_input=None if logits is None else logits[b : b + 1],
                multimask_output=True,
                return_logits=True,
            )
            np.testing.assert_allclose(found.logits[b], low, atol=1e-4)
            np.testing.assert_allclose(found.scores[b], scores, atol=1e-4)
            clear = np.abs(full) > 1e-4  # nearer to zero, rounding may decide
            assert clear.mean() > 0.99
            assert (found.masks[b] == (full > 0))[clear].all()
        assert found.masks.any()
        assert not found.masks.all()


def blob(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    """Logits of a disc with a ragged outline."""
    rows, columns = np.indices(shape)
    smooth = radius - np.hypot(rows - centre[0], columns - centre[1])
    return np.asarray(smooth + noise(*shape) * 0.7 * (np.abs(smooth) < 2), np.float32)


@pytest.mark.parametrize("plane", [*PLANES, (128, 128), (1, 200), (500, 3)])
@pytest.mark.parametrize("radius", [1.5, 4, 40])
def test_a_mask_is_made_where_it_lies_and_equals_the_published(
    model: Any, segmenter: sam.SamSegmenter, plane: tuple[int, int], radius: float
) -> None:
    resized = sam.resized_shape(plane, 128)
    for f in (0.0, 0.4, 0.97):
        logits = blob((32, 32), (f * resized[0] / 4, f * resized[1] / 4), radius)
        full = model.postprocess_masks(torch.tensor(logits)[None, None], resized, plane)[0, 0].numpy()
        found = segmenter.enlarge(logits, plane)
        assert found.shape == plane
        clear = np.abs(full) > 1e-5  # nearer to zero, rounding may decide
        assert (found.full() == (full > 0))[clear].all()
        reach = (2 * radius + 6) * np.array(plane) / np.array(resized) * 4
        assert (np.array(found.block.shape) <= reach + 1).all(), "no larger than the logits reach"
    assert (full > 0).any() or radius < 2


def test_logits_without_an_inside_and_on_the_padding_alone_give_no_mask(segmenter: sam.SamSegmenter) -> None:
    nothing = np.full((32, 32), -1, np.float32)
    assert not segmenter.enlarge(nothing, (48, 80)).full().any()
    nothing[25:] = 3  # the image ends at row 20
    assert not segmenter.enlarge(nothing, (48, 80)).full().any()


@pytest.mark.parametrize("rule", ["plain", "guarded"])
def test_windows_and_whole_planes_give_the_same_propagation(segmenter: sam.SamSegmenter, rule: Any) -> None:
    """The same masks but for pixels at the threshold, and the same way through the volume."""
    shape = 4, 24, 32
    rules = PropagationRules(rule=rule, min_contrast=0, max_drift=99, merge="union")
    volume = np.stack([picture(shape[1:], seed)[0] for seed in range(shape[0])])
    whole: Any = SimpleNamespace(batch=2, predict=segmenter.predict, peak=segmenter.peak)
    slices = {axis: np.ascontiguousarray(np.moveaxis(volume, a, 0)) for a, axis in enumerate(AXES)}
    embeddings: dict[Any, np.ndarray] = {}
    found = []
    for one in (segmenter, whole):
        work = Propagation.start([(2, 10, 18), (3, 20, 5)], shape, rules)
        while need := work.needed():
            for axis, plane in sorted(need):
                image = slices[axis][plane]
                if (axis, plane) not in embeddings:
                    embeddings[axis, plane] = segmenter.embed(image[None])[0]
                work.step(one, axis, plane, embeddings[axis, plane], image)
        found.append(work.to_arrays())
    lean, plain = found
    for key in ("walkers", "patches", "logits_boxes", "bits"):
        np.testing.assert_array_equal(lean[key], plain[key], err_msg=key)
    for key in ("places", "logits", "scores"):
        np.testing.assert_allclose(lean[key], plain[key], atol=1e-4, err_msg=key)
    assert len(lean["patches"]) > 12


@pytest.mark.parametrize(("free", "batch"), [(80 << 30, 32), (1 << 30, 8), (100 << 20, 1), (0, 1)])
def test_prompts_decoded_together_follow_a_gpus_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, batch: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    assert sam.prompts_together("cuda:1") == batch
    assert sam.prompts_together("cpu") == 2


def attentions(grid: tuple[int, int], heads: int = 3) -> tuple[Any, Any]:
    """The public attention for a grid of tokens with random weights, and a copy of it with ours."""
    from segment_anything.modeling.image_encoder import Attention

    torch.manual_seed(1)
    exact = Attention(8 * heads, heads, qkv_bias=True, use_rel_pos=True, input_size=grid).requires_grad_(False)
    for parameter in exact.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.5)
    ours = copy.deepcopy(exact)
    sam_attention.fuse(SimpleNamespace(blocks=[SimpleNamespace(attn=ours)]))
    return exact, ours


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("grid", "windows"), [((8, 8), 1), ((14, 14), 9), ((6, 11), 2), ((13, 4), 1)])
@pytest.mark.parametrize("budget", [1, 20_000, 60_000, 1 << 23])
def test_fused_attention_equals_the_published(
    monkeypatch: pytest.MonkeyPatch, grid: tuple[int, int], windows: int, budget: int
) -> None:
    monkeypatch.setitem(sam_attention.BIAS_BYTES, "cpu", budget)
    exact, ours = attentions(grid)
    x = torch.randn(windows, *grid, 24)
    assert distance(ours(x), exact(x)) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_attention_is_as_near_as_the_published_in_half_precision(dtype: torch.dtype) -> None:
    exact, ours = attentions((9, 12))
    x = torch.randn(2, 9, 12, 24)
    with torch.autocast("cpu", dtype):
        half, published = ours(x), exact(x)
    assert half.dtype == published.dtype == dtype
    assert 0 < distance(half, exact(x)) < 1.1 * distance(published, exact(x))


@pytest.mark.parametrize("size", [128, 176])
def test_the_image_encoder_equals_the_published(size: int) -> None:
    exact, ours = tiny_sam(size).image_encoder, tiny_sam(size).image_encoder
    published = type(ours.blocks[0].attn).forward
    sam_attention.fuse(ours)
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        assert distance(ours(images), exact(images)) < 1e-5
    assert type(exact.blocks[0].attn).forward is published  # other models keep theirs
    assert all(np.array_equal(ours.state_dict()[key], value) for key, value in exact.state_dict().items())


def test_fused_attention_never_holds_the_scores_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(*arguments: Any, **named: Any) -> torch.Tensor:
        masks.append(named["attn_mask"].numel() * named["attn_mask"].element_size())
        return attend(*arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    monkeypatch.setitem(sam_attention.BIAS_BYTES, "cpu", 100_000)
    _, ours = attentions((16, 16))
    ours(torch.randn(1, 16, 16, 24))
    assert max(masks) <= 100_000
    assert sum(masks) == 3 * 256 * 256 * 4


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_prompts_decoded_together_are_as_alone(model: Any, segmenter: sam.SamSegmenter, batch: int) -> None:
    plane = (48, 80)
    embedding = segmenter.embed(picture(plane)[0][None])[0]
    points, previous = clicks(plane, 7), noise(7, *segmenter.logits_shape(plane)) * 4
    together = sam.SamSegmenter(model, "sam-tiny", "random", batch=batch)
    for logits in (None, previous):
        found, expected = (s.predict(embedding, plane, points, logits) for s in (together, segmenter))
        np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_float16_embeddings_change_masks_little(segmenter: sam.SamSegmenter) -> None:
    plane = (48, 80)
    grey = picture(plane)[0]
    points = clicks(plane, 8)
    exact = segmenter.predict(exact_embedding(segmenter, grey), plane, points, None)
    stored = segmenter.predict(segmenter.embed(grey[None])[0], plane, points, None)
    assert 0 < np.abs(stored.logits - exact.logits).max() < 5e-3 * exact.logits.std()
    assert np.abs(stored.scores - exact.scores).max() < 5e-3 * max(exact.scores.std(), 1)
    assert (stored.masks != exact.masks).mean() < 2e-3


def test_bfloat16_computes_near_embeddings(model: Any, segmenter: sam.SamSegmenter) -> None:
    grey = picture((48, 80))[0][None]
    exact = segmenter.embed(grey).astype(np.float32)
    rough = sam.SamSegmenter(model, "sam-tiny", "random", dtype="bfloat16").embed(grey)
    assert rough.dtype == np.float16
    assert 0 < np.abs(rough - exact).mean() < 0.05 * np.abs(exact).mean()


@pytest.mark.parametrize("plane", PLANES)
def test_the_peak_is_the_best_logit_on_the_image(segmenter: sam.SamSegmenter, plane: tuple[int, int]) -> None:
    logits = noise(4, *segmenter.logits_shape(plane), seed=3)
    logits[0, -1, -1] = 100.0  # on the padding unless the plane is square
    scale = 128 / max(plane)
    height, width = round(plane[0] * scale), round(plane[1] * scale)
    for b, peak in enumerate(segmenter.peak(logits, plane)):
        best, expected = -np.inf, None
        for i, j in np.ndindex(*logits.shape[1:]):
            row, column = 4 * i + 2, 4 * j + 2  # the logit's centre, in input pixels from the corner
            if row < height and column < width and logits[b, i, j] > best:
                best, expected = logits[b, i, j], (row * plane[0] / height - 0.5, column * plane[1] / width - 0.5)
        assert expected is not None
        np.testing.assert_allclose(peak, np.clip(expected, 0, np.array(plane) - 1), atol=1e-4)


@pytest.mark.parametrize("plane", [(48, 80), (80, 48)])
def test_the_peak_of_a_mask_lies_where_the_mask_is(segmenter: sam.SamSegmenter, plane: tuple[int, int]) -> None:
    embedding = segmenter.embed(picture(plane)[0][None])[0]
    found = segmenter.predict(embedding, plane, clicks(plane, 6), None)
    checked = 0
    for m in range(3):
        peaks = segmenter.peak(found.logits[:, m], plane).round().astype(int)
        for b, (row, column) in enumerate(peaks):
            if found.logits[b, m].max() > 0.5 and found.masks[b, m].any():
                near = found.masks[b, m, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
                assert near.any()
                checked += 1
    assert checked > 5


@pytest.mark.parametrize("plane", [(1, 200), (928, 960), (513, 1024), (7, 3)])
def test_planes_are_scaled_as_by_the_public_code(plane: tuple[int, int]) -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    assert sam.resized_shape(plane, 1024) == ResizeLongestSide.get_preprocess_shape(*plane, 1024)


def test_planes_that_are_not_uint8_are_refused(segmenter: sam.SamSegmenter) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        segmenter.embed(np.zeros((1, 8, 8), np.float32))


def test_embeddings_that_overflow_are_an_error(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = sam.SamSegmenter(model, "sam-tiny", "random")
    monkeypatch.setattr(segmenter, "_embed_on_device", lambda plane: torch.full((32, 8, 8), 1e6))
    with pytest.raises(ModelError, match="not finite"):
        segmenter.embed(np.zeros((1, 8, 8), np.uint8))


@pytest.mark.parametrize("shape", [(102, 96), (40, 96), (92, 102), (92, 7), (102, 128), (92, 96)])
def test_planes_are_resized_on_the_device_as_by_pillow(shape: tuple[int, int]) -> None:
    """Equal in every pixel, larger and smaller."""
    grey = np.random.default_rng(0).integers(0, 256, (92, 96), np.uint8)
    np.testing.assert_array_equal(resizing.resize(torch.tensor(grey), shape).numpy(), by_pillow(grey, shape))


def test_planes_resized_to_less_are_as_by_pillow_whichever_way_it_goes_first() -> None:
    """Columns first, rows first: Pillow's versions differ, and the results differ by rounding."""
    grey = np.random.default_rng(0).integers(0, 256, (90, 33), np.uint8)
    ours = resizing.resize(torch.tensor(grey), (60, 22)).numpy()
    np.testing.assert_array_equal(ours, by_pillow(by_pillow(grey, (90, 22)), (60, 22)))
    assert np.abs(ours.astype(int) - by_pillow(grey, (60, 22))).max() <= 1


def by_pillow(grey: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    return np.array(Image.fromarray(grey).resize(shape[::-1], Image.Resampling.BILINEAR))


def test_a_plane_is_prepared_as_by_the_public_code(
    segmenter: sam.SamSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image that goes into the encoder: resized, normalised, padded."""
    from segment_anything.utils.transforms import ResizeLongestSide

    inputs: list[torch.Tensor] = []
    encoder = segmenter._model.image_encoder
    hook = encoder.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    grey = picture((48, 80))[0]
    segmenter.embed(grey[None])
    hook.remove()
    image = ResizeLongestSide(128).apply_image(np.repeat(grey[..., None], 3, 2))
    expected = segmenter._model.preprocess(torch.tensor(image).permute(2, 0, 1)[None])
    np.testing.assert_array_equal(inputs[0].numpy(), expected.numpy())


def test_an_embedding_goes_to_the_device_once_for_all_prompts_of_a_plane(
    segmenter: sam.SamSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = (48, 80)
    embedding = segmenter.embed(picture(plane)[0][None])[0]
    points, before = clicks(plane, 5), noise(5, 32, 32) * 4
    expected = segmenter.predict(embedding, plane, points, before)
    held = segmenter.hold(embedding)
    monkeypatch.setattr(segmenter, "hold", None)
    found = segmenter.candidates(held, plane, points, [Window((32, 32), 0, 0, logits) for logits in before])
    for b, candidates in enumerate(found):
        np.testing.assert_array_equal(candidates.scores, expected.scores[b])
        for m in range(3):
            np.testing.assert_array_equal(candidates.mask(m).full(), expected.masks[b, m])
            np.testing.assert_array_equal(candidates.logits(m).full(), expected.logits[b, m])


def test_masks_made_together_are_those_made_alone_and_large_ones_are_left_out(segmenter: sam.SamSegmenter) -> None:
    plane = (300, 200)  # several tiles
    embedding, points = segmenter.embed(picture(plane)[0][None])[0], clicks(plane, 4)
    alone, together = (segmenter.candidates(embedding, plane, points, None) for _ in range(2))
    wanted = [(b, m) for m in (2, 0, 1) for b in (1, 0, 3, 2)]
    areas = [int(alone[b].mask(m).block.sum()) for b, m in wanted]
    limit = int(np.median([area for area in areas if area]))
    assert isinstance(together, MadeTogether)
    together.make(wanted, limit)
    for (b, m), area in zip(wanted, areas, strict=True):
        mask = together[b].mask(m)
        assert mask.full().sum() == (area if area < limit else 0)
        assert together[b].peak(m) == alone[b].peak(m)
        if area < limit:
            np.testing.assert_array_equal(mask.full(), alone[b].mask(m).full())


def test_logits_on_a_device_are_as_good_as_windows(segmenter: sam.SamSegmenter) -> None:
    """They continue on the next plane alike, and can be stored."""
    plane = (48, 80)
    embedding, points = segmenter.embed(picture(plane)[0][None])[0], clicks(plane, 3)
    kept = [candidates.logits(1) for candidates in segmenter.candidates(embedding, plane, points, None)]
    windows = [Window(logits.shape, logits.row, logits.col, logits.block) for logits in kept]
    mixed = [kept[0], windows[1], kept[2]]
    results = [segmenter.candidates(embedding, plane, points, before) for before in (kept, windows, mixed)]
    for b in range(3):
        for m in range(3):
            first, *others = (found[b].logits(m).full() for found in results)
            assert all((other == first).all() for other in others)
    np.testing.assert_array_equal(kept[0].cut(3, 30, (4, 5)), windows[0].cut(3, 30, (4, 5)))
