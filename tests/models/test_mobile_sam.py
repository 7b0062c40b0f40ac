"""MobileSAM against its own package, on random weights of a narrow one: its sizes of images and grids are fixed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_sams import sam_of

from cryosam_dask import models
from cryosam_dask.errors import ModelError
from cryosam_dask.models import mobile_sam, registry
from cryosam_dask.models.sam_catalog import SAMS

from .contract import picture
from .test_sam import clicks

WIDTHS, DEPTHS, HEADS = (8, 8, 16, 320), (1, 1, 2, 1), (1, 1, 2, 5)
"""The last stage keeps its grid where it is 320 wide."""

PLANE = (60, 96)


def published() -> Any:
    """The package's own model with random weights everywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports timm by former names
        from mobile_sam import modeling

    torch.manual_seed(0)
    sizes = {"embed_dims": WIDTHS, "depths": DEPTHS, "num_heads": HEADS, "window_sizes": [7, 7, 14, 7]}
    encoder = modeling.TinyViT(img_size=1024, **sizes)
    model = sam_of(modeling, encoder, 1024, 64, 256, depth=2, mlp_dim=2048, num_heads=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model.eval()


def test_a_click_and_the_plane_after_it_equal_the_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WIDTHS", WIDTHS), ("DEPTHS", DEPTHS), ("HEADS", HEADS)):
        monkeypatch.setattr(mobile_sam, name, value)
    reference, path = published(), tmp_path / "vit_t.pt"
    torch.save(reference.state_dict(), path)
    segmenter: Any = registry.load_segmenter(f"mobile-sam-em-organelles={path}")
    from mobile_sam import SamPredictor

    predictor, point, before = SamPredictor(reference), clicks(PLANE, 1), None
    for index in range(2):
        grey = picture(PLANE, index)[0]
        predictor.set_image(np.repeat(grey[..., None], 3, 2))
        embedding = segmenter._embed_one(grey)
        np.testing.assert_allclose(embedding, predictor.get_image_embedding()[0].numpy(), atol=1e-4)
        found = segmenter.predict(embedding, PLANE, point, before)
        full, scores, low = predictor.predict(
            point_coords=point[:, ::-1],
            point_labels=np.array([1]),
            mask_input=before,
            multimask_output=True,
            return_logits=True,
        )
        np.testing.assert_allclose(found.logits[0], low, atol=2e-4 * np.abs(low).max())
        np.testing.assert_allclose(found.scores[0], scores, atol=1e-3)
        clear = np.abs(full) > 1e-3 * np.abs(full).max()  # nearer to zero, rounding may decide
        assert (found.masks[0] == (full > 0))[clear].all()
        before = low[[int(scores.argmax())]]


def test_the_table_is_what_timm_and_torch_count() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, row = mobile_sam.build(), SAMS["mobile-sam"]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embedding = model.to("meta").image_encoder(torch.empty(1, 3, 1024, 1024, device="meta"))
    info = models.segmenter_info("mobile-sam")
    assert info.embed_cost(PLANE).operations == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert info.embedding_shape(PLANE) == tuple(embedding.shape[1:])
    assert info.weights_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert row.parameters == models.segmenter_info("mobile-sam-em-organelles").weights_bytes / 4


def test_weights_of_sam_are_refused(tmp_path: Path) -> None:
    from segment_anything.modeling import PromptEncoder

    prompts = PromptEncoder(
        embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16
    )
    tensors = {f"prompt_encoder.{name}": tensor for name, tensor in prompts.state_dict().items()}
    torch.save({**tensors, "image_encoder.blocks.0.norm1.weight": torch.zeros(768)}, tmp_path / "vit_b.pt")
    with pytest.raises(ModelError, match=r"does not fit mobile-sam: .*is it for another model"):
        registry.load_segmenter(f"mobile-sam={tmp_path / 'vit_b.pt'}")
