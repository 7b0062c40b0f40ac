"""What every slice encoder and every prompted segmenter must keep: inherit a class and give its fixtures.

class TestMine(SliceEncoderContract):
    @pytest.fixture
    def encoder(self):
        return MyEncoder()
"""

from __future__ import annotations

import numpy as np
import pytest

from cryosam_dask.types import PromptedSegmenter, SliceEncoder, Window, WindowedSegmenter


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def disc(plane: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    """A boolean disc."""
    rows, columns = np.indices(plane)
    return np.hypot(rows - centre[0], columns - centre[1]) < radius


def picture(plane: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A noisy plane (uint8) with one bright disc; the disc's mask; its centre as points (1, 2)."""
    centre = plane[0] * 0.4, plane[1] * 0.55
    mask = disc(plane, centre, min(plane) / 6)
    grey = 90 + 80 * mask + np.random.default_rng(seed).normal(0, 8, plane)
    return grey.clip(0, 255).astype(np.uint8), mask, np.array([centre], np.float32)


class SliceEncoderContract:
    """Fixture `encoder`; `grids` are the token grids (a, b) tried, `tolerance` bounds what batching may change."""

    grids: tuple[tuple[int, int], ...] = ((3, 5), (6, 2))
    tolerance = 1e-4

    def slices(self, encoder: SliceEncoder, grid: tuple[int, int], count: int = 3) -> np.ndarray:
        return noise(count, grid[0] * encoder.patch, grid[1] * encoder.patch)

    def test_it_is_a_slice_encoder_with_a_name_and_an_identity(self, encoder: SliceEncoder) -> None:
        assert isinstance(encoder, SliceEncoder)
        assert encoder.name
        assert encoder.identity
        assert encoder.patch >= 1
        assert encoder.channels >= 1

    def test_tokens_are_finite_float32_on_the_grid_of_patches(self, encoder: SliceEncoder) -> None:
        for grid in self.grids:
            tokens = encoder.encode(self.slices(encoder, grid))
            assert tokens.shape == (3, *grid, encoder.channels)
            assert tokens.dtype == np.float32
            assert np.isfinite(tokens).all()

    def test_the_same_slices_give_the_same_tokens(self, encoder: SliceEncoder) -> None:
        slices = self.slices(encoder, self.grids[0])
        np.testing.assert_array_equal(encoder.encode(slices), encoder.encode(slices))

    def test_slices_together_equal_slices_one_by_one(self, encoder: SliceEncoder) -> None:
        slices = self.slices(encoder, self.grids[0])
        alone = np.concatenate([encoder.encode(slices[i : i + 1]) for i in range(len(slices))])
        np.testing.assert_allclose(encoder.encode(slices), alone, atol=self.tolerance)
        assert np.abs(alone[0] - alone[1]).max() > 10 * self.tolerance

    def test_read_only_and_transposed_slices_are_taken_and_left_alone(self, encoder: SliceEncoder) -> None:
        grid = self.grids[0]
        stored = self.slices(encoder, grid).transpose(1, 2, 0).copy()
        before = stored.copy()
        stored.flags.writeable = False
        view = stored.transpose(2, 0, 1)
        np.testing.assert_allclose(encoder.encode(view), encoder.encode(view.copy()), atol=self.tolerance)
        np.testing.assert_array_equal(stored, before)

    def test_no_slices_give_no_tokens(self, encoder: SliceEncoder) -> None:
        grid = self.grids[0]
        assert encoder.encode(self.slices(encoder, grid, count=0)).shape == (0, *grid, encoder.channels)

    def test_rows_and_columns_are_not_swapped(self, encoder: SliceEncoder) -> None:
        grid = (6, 6)
        slices = np.zeros((1, grid[0] * encoder.patch, grid[1] * encoder.patch), np.float32)
        plain = encoder.encode(slices)
        top = slice(0, 2 * encoder.patch)
        slices[0, top, 4 * encoder.patch :] = noise(2 * encoder.patch, 2 * encoder.patch)
        change = np.abs(encoder.encode(slices) - plain).sum(-1)[0]
        assert change[:2, 4:].mean() > change[4:, :2].mean()


class PromptedSegmenterContract:
    """Fixture `segmenter`; `planes` are the shapes tried, `tolerance` bounds what batching may change in logits."""

    planes: tuple[tuple[int, int], ...] = ((48, 80), (72, 40))
    tolerance = 1e-3

    def prompts(self, plane: tuple[int, int], count: int = 3) -> np.ndarray:
        return np.random.default_rng(1).uniform(4, np.array(plane) - 5, (count, 2)).astype(np.float32)

    def previous(self, segmenter: PromptedSegmenter, plane: tuple[int, int], count: int) -> np.ndarray:
        """Logits that the segmenter itself gave, as on the plane before."""
        grey, _, centre = picture(plane)
        prediction = segmenter.predict(segmenter.embed(grey[None])[0], plane, centre, None)
        return np.repeat(prediction.logits[:, 0], count, 0)

    def test_it_is_a_segmenter_with_a_name_and_an_identity(self, segmenter: PromptedSegmenter) -> None:
        assert isinstance(segmenter, PromptedSegmenter)
        assert segmenter.name
        assert segmenter.identity
        assert segmenter.batch >= 1

    def test_embeddings_have_the_declared_shape_and_type(self, segmenter: PromptedSegmenter) -> None:
        for plane in self.planes:
            grey = np.stack([picture(plane, seed)[0] for seed in range(2)])
            embeddings = segmenter.embed(grey)
            assert embeddings.shape == (2, *segmenter.embedding_shape(plane))
            assert embeddings.dtype == segmenter.embedding_dtype
            assert np.isfinite(embeddings).all()
            assert segmenter.embed(grey[:0]).shape == (0, *segmenter.embedding_shape(plane))

    def test_planes_together_equal_planes_one_by_one(self, segmenter: PromptedSegmenter) -> None:
        grey = np.stack([picture(self.planes[0], seed)[0] for seed in range(2)])
        together = segmenter.embed(grey)
        np.testing.assert_array_equal(together[:1], segmenter.embed(grey[:1]))
        np.testing.assert_array_equal(together[1:], segmenter.embed(grey[1:]))
        assert (together[0] != together[1]).any()

    @pytest.mark.parametrize("continued", [False, True])
    def test_predictions_have_the_declared_shapes(self, segmenter: PromptedSegmenter, continued: bool) -> None:
        for plane in self.planes:
            embedding = segmenter.embed(picture(plane)[0][None])[0]
            for count in (0, 1, 3):
                logits = self.previous(segmenter, plane, count) if continued else None
                found = segmenter.predict(embedding, plane, self.prompts(plane, count), logits)
                candidates = found.scores.shape[1]
                assert candidates >= 1
                assert found.masks.shape == (count, candidates, *plane)
                assert found.masks.dtype == bool
                assert found.scores.dtype == found.logits.dtype == np.float32
                assert found.logits.shape == (count, candidates, *segmenter.logits_shape(plane))
                assert np.isfinite(found.logits).all()
                assert np.isfinite(found.scores).all()

    @pytest.mark.parametrize("continued", [False, True])
    def test_prompts_together_equal_prompts_one_by_one(self, segmenter: PromptedSegmenter, continued: bool) -> None:
        plane = self.planes[0]
        embedding = segmenter.embed(picture(plane)[0][None])[0]
        count = segmenter.batch + 1  # more than one batch
        points = self.prompts(plane, count)
        logits = self.previous(segmenter, plane, count) if continued else None
        together = segmenter.predict(embedding, plane, points, logits)
        for b in range(count):
            alone = segmenter.predict(
                embedding, plane, points[b : b + 1], None if logits is None else logits[b : b + 1]
            )
            np.testing.assert_allclose(together.logits[b], alone.logits[0], atol=self.tolerance)
            np.testing.assert_allclose(together.scores[b], alone.scores[0], atol=self.tolerance)
            assert (together.masks[b] != alone.masks[0]).mean() < 1e-3

    @pytest.mark.parametrize("continued", [False, True])
    def test_windows_where_it_has_them_are_parts_of_the_prediction(
        self, segmenter: PromptedSegmenter, continued: bool
    ) -> None:
        if not isinstance(segmenter, WindowedSegmenter):
            pytest.skip("it gives whole planes only")
        for plane in self.planes:
            embedding = segmenter.embed(picture(plane)[0][None])[0]
            points = self.prompts(plane)
            logits = self.previous(segmenter, plane, 3) if continued else None
            windows = None if logits is None else [Window.crop(one) for one in logits]
            whole = segmenter.predict(embedding, plane, points, logits)
            found = segmenter.candidates(embedding, plane, points, windows)
            assert len(found) == 3
            for b, candidates in enumerate(found):
                np.testing.assert_allclose(candidates.scores, whole.scores[b, : len(candidates.scores)], atol=1e-6)
                for m in range(len(candidates.scores)):
                    mask, own = candidates.mask(m), candidates.logits(m)
                    assert mask.shape == plane
                    assert mask.block.dtype == bool
                    assert own.shape == segmenter.logits_shape(plane)
                    assert own.block.dtype == np.float32
                    assert (mask.full() != whole.masks[b, m]).mean() < 1e-3
                    np.testing.assert_allclose(own.full(), whole.logits[b, m], atol=self.tolerance)
                    if mask.block.any():
                        peak = segmenter.peak(whole.logits[b, m][None], plane)[0]
                        np.testing.assert_allclose(candidates.peak(m), peak, atol=1e-4)
            assert not segmenter.candidates(embedding, plane, points[:0], None)

    def test_read_only_inputs_are_taken_and_left_alone(self, segmenter: PromptedSegmenter) -> None:
        plane = self.planes[0]
        grey = picture(plane)[0]
        points, logits = self.prompts(plane, 2), self.previous(segmenter, plane, 2)
        inputs = [grey, points, logits]
        copies = [array.copy() for array in inputs]
        for array in inputs:
            array.flags.writeable = False
        embedding = segmenter.embed(grey[None])[0]
        embedding.flags.writeable = False
        first = segmenter.predict(embedding, plane, points, logits)
        second = segmenter.predict(embedding, plane, points, logits)
        np.testing.assert_array_equal(first.logits, second.logits)
        np.testing.assert_array_equal(first.masks, second.masks)
        for array, copy in zip(inputs, copies, strict=True):
            np.testing.assert_array_equal(array, copy)

    def test_the_peak_of_a_prediction_lies_in_the_plane(self, segmenter: PromptedSegmenter) -> None:
        for plane in self.planes:
            embedding = segmenter.embed(picture(plane)[0][None])[0]
            found = segmenter.predict(embedding, plane, self.prompts(plane), None)
            self.check_inside(segmenter.peak(found.logits[:, 0], plane), plane, 3)

    def test_the_peak_follows_the_highest_logit_and_never_leaves_the_plane(self, segmenter: PromptedSegmenter) -> None:
        for plane in self.planes:
            height, width = segmenter.logits_shape(plane)
            diagonal = np.linspace(0, 0.999, 9)
            logits = noise(len(diagonal), height, width) * np.float32(0.1)
            for b, f in enumerate(diagonal):
                logits[b, int(f * height), int(f * width)] = 5.0
            peaks = segmenter.peak(logits, plane)
            self.check_inside(peaks, plane, len(diagonal))
            np.testing.assert_array_equal(segmenter.peak(logits + np.float32(7), plane), peaks)
            assert (peaks[0] < np.array(plane) * 0.1 + 1).all()
            assert (peaks[2] > peaks[0]).all() or (peaks[2] == peaks[1]).any()

    @staticmethod
    def check_inside(peaks: np.ndarray, plane: tuple[int, int], count: int) -> None:
        assert peaks.shape == (count, 2)
        assert peaks.dtype == np.float32
        assert (peaks >= 0).all()
        assert (peaks <= np.array(plane) - 1).all()


class TrainedSegmenterContract(PromptedSegmenterContract):
    """For a segmenter that segments: a click on a bright disc gives the disc, and its peak continues it."""

    iou = 0.7

    def test_a_click_on_a_disc_gives_the_disc(self, segmenter: PromptedSegmenter) -> None:
        for plane in self.planes:
            grey, truth, centre = picture(plane)
            found = segmenter.predict(segmenter.embed(grey[None])[0], plane, centre, None)
            overlaps = [(mask & truth).sum() / (mask | truth).sum() for mask in found.masks[0]]
            best = found.masks[0, int(np.argmax(overlaps))]
            assert max(overlaps) > self.iou
            assert best[tuple(centre[0].round().astype(int))]

    def test_the_peak_and_the_logits_continue_the_object_on_the_next_plane(self, segmenter: PromptedSegmenter) -> None:
        plane = self.planes[0]
        (first, truth, centre), (second, *_) = picture(plane, 0), picture(plane, 1)
        embeddings = segmenter.embed(np.stack([first, second]))
        found = segmenter.predict(embeddings[0], plane, centre, None)
        overlaps = [(mask & truth).sum() / (mask | truth).sum() for mask in found.masks[0]]
        logits = found.logits[:, int(np.argmax(overlaps))]
        peak = segmenter.peak(logits, plane)
        assert truth[tuple(peak[0].round().astype(int))]
        following = segmenter.predict(embeddings[1], plane, peak, logits)
        assert max((mask & truth).sum() / (mask | truth).sum() for mask in following.masks[0]) > self.iou
