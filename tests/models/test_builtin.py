"""The built-in models keep the contracts of every encoder and every segmenter."""

from __future__ import annotations

import pytest

from cryosam_dask import models
from cryosam_dask.types import PromptedSegmenter, SliceEncoder

from .contract import SliceEncoderContract, TrainedSegmenterContract, picture


class TestTexture(SliceEncoderContract):
    """Fields of view are wide, so the grids are larger than a transformer needs."""

    @pytest.fixture
    def encoder(self) -> SliceEncoder:
        return models.load_encoder("texture")


class TestRandomWalker(TrainedSegmenterContract):
    """Planes of another size than the prompt's window."""

    @pytest.fixture
    def segmenter(self) -> PromptedSegmenter:
        return models.load_segmenter("random-walker")


def test_what_is_planned_is_what_the_models_are() -> None:
    encoder, info = models.load_encoder("texture"), models.encoder_info("texture")
    assert (info.patch, info.channels, info.uses_torch) == (encoder.patch, encoder.channels, False)
    segmenter, plan = models.load_segmenter("random-walker"), models.segmenter_info("random-walker")
    for plane in ((40, 60), (200, 100)):
        assert plan.embedding_shape(plane) == segmenter.embedding_shape(plane)
        assert plan.logits_shape(plane) == segmenter.logits_shape(plane)
    grey, _, centre = picture((40, 60))
    found = segmenter.predict(segmenter.embed(grey[None])[0], (40, 60), centre, None)
    assert found.scores.shape[1] <= plan.candidates
    assert plan.embedding_dtype == segmenter.embedding_dtype
    assert models.weights_identity("texture") == encoder.identity
    assert models.weights_identity("random-walker") == segmenter.identity
