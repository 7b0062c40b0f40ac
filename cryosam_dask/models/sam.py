"""Segment Anything (SAM) behind the `PromptedSegmenter` protocol.

Frames. A plane (A, B) is scaled so that its longer side is the model's image size S (1024), then padded with zeros at
the bottom and right to S × S. Logits are S / 4 pixels square and cover the same padded frame: the centre of logit
(i, j) is 4 i + 2, 4 j + 2 input pixels from the upper left corner. Points go to the model as `SamPredictor` sends them,
so that results equal those of the public code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import ModelError
from cryosam_dask.models import sam_masks
from cryosam_dask.models.checkpoint import load_into, read_state_dict
from cryosam_dask.models.devices import device_memory
from cryosam_dask.models.sam_attention import fuse
from cryosam_dask.models.sam_decoder import MaskDecoder, pixels
from cryosam_dask.models.vit import autocast, check_dtype
from cryosam_dask.types import Array, Float32, Prediction, Window

if TYPE_CHECKING:
    import torch

BATCH = {"cpu": 2, "cuda": 32}
"""Prompts decoded together, by kind of device: a GPU's number is for one that has room."""

PROMPT_BYTES = 32 << 20
"""What decoding one prompt takes at its widest: pixels in float32, eight times 4096 × 256."""

CANDIDATES = 3
"""Masks of one prompt: SAM's whole, part and subpart."""


class SamSegmenter:
    """SAM's image encoder, prompt encoder and mask decoder, for many prompts on one plane.

    Embeddings are stored in float16. Their rounding (relative 5e-4) moves scores and logits by about 1e-3 of their
    spread, and flips mask pixels only where the logit is that close to zero. Only the image encoder runs in `dtype`;
    the light mask decoder is always float32.

    Parameters
    ----------
    model : a `segment_anything.modeling.Sam`; it is moved to the device and gets fused attention
    name, identity : as in the protocol
    device : "cpu", "cuda" or "cuda:N"
    dtype : one of `vit.DTYPES`, the type the image encoder computes in
    batch : prompts decoded together; by default what suits the device, with its free memory
    """

    def __init__(
        self,
        model: Any,
        name: str,
        identity: str,
        device: str = "cpu",
        dtype: str = "float32",
        batch: int | None = None,
    ) -> None:
        self.name = name
        self.identity = identity
        self.device = device
        self.dtype = check_dtype(dtype)
        self._model = model.to(device).eval().requires_grad_(False)
        self.batch = batch or prompts_together(device)
        fuse(self._model.image_encoder)
        self._decoder = MaskDecoder(self._model)
        self._size = int(model.image_encoder.img_size)
        self._threshold = float(model.mask_threshold)
        rows, columns = model.prompt_encoder.image_embedding_size
        self._embedding_shape = (int(model.prompt_encoder.embed_dim), int(rows), int(columns))
        self._logits_shape = (4 * int(rows), 4 * int(columns))

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        """(256, 64, 64) in the published models, whatever the plane."""
        return self._embedding_shape

    @property
    def embedding_dtype(self) -> np.dtype[Any]:
        """float16."""
        return np.dtype(np.float16)

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        """(256, 256) in the published models, whatever the plane."""
        return self._logits_shape

    def embed(self, planes: NDArray[np.uint8]) -> Array:
        """Embed planes (N, A, B) uint8 as grey images; returns (N, 256, 64, 64) float16.

        One plane at a time: global attention over one plane already fills a device.

        Raises
        ------
        ModelError
            An embedding is not finite in float16.
        """
        embeddings = np.empty((len(planes), *self._embedding_shape), np.float16)
        with np.errstate(over="ignore"):
            for index, plane in enumerate(planes):
                embeddings[index] = self._embed_one(plane)
        if not np.isfinite(embeddings).all():
            raise ModelError(f"{self.name} gave embeddings that are not finite in {self.dtype}; use dtype float32")
        return embeddings

    def _embed_one(self, plane: NDArray[np.uint8]) -> Float32:
        """The embedding (256, 64, 64) float32 of one plane, preprocessed as by `SamPredictor.set_image`."""
        import torch
        from PIL import Image

        if plane.dtype != np.uint8:
            raise ValueError(f"{self.name}: planes are {plane.dtype}, expected uint8")
        height, width = resized_shape(plane.shape, self._size)
        # The three channels are equal and resized one by one, so one is enough.
        grey = np.array(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
        with torch.inference_mode(), device_memory(self.name, self.device):
            image = torch.tensor(grey).to(self.device)[None, None].expand(1, 3, -1, -1)
            image = self._model.preprocess(image)
            with autocast(self.device, self.dtype):
                embedding = self._model.image_encoder(image)
            return np.asarray(embedding[0].float().cpu().numpy())

    def predict(self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Float32 | None) -> Prediction:
        """Three candidate masks for each of B points (row, column); see `PromptedSegmenter.predict`.

        Any number of prompts may be given; `pipeline.batch` of them are decoded at a time.
        """
        windows = None if logits is None else [Window(self._logits_shape, 0, 0, before) for before in logits]
        per_point = self.candidates(embedding, plane, points, windows)
        return Prediction.of(per_point, CANDIDATES, plane, self._logits_shape)

    def candidates(
        self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Sequence[Window] | None
    ) -> list[SamCandidates]:
        """The masks of `predict`, as logits from which masks are made on demand; see `WindowedSegmenter.candidates`."""
        import torch

        per_point: list[SamCandidates] = []
        with torch.inference_mode(), device_memory(self.name, self.device):
            image = pixels(torch.tensor(np.asarray(embedding, np.float32), device=self.device)[None])
            for start in range(0, len(points), self.batch):
                chunk = slice(start, start + self.batch)
                before = None if logits is None else np.stack([window.full() for window in logits[chunk]])
                part = self._decode(image, plane, points[chunk], before)
                scores, low = (tensor.cpu().numpy() for tensor in part)
                per_point += (SamCandidates(self, plane, scores[b], low[b]) for b in range(len(scores)))
        return per_point

    def _decode(
        self, image: torch.Tensor, plane: tuple[int, int], points: Float32, logits: Float32 | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (b, 3) and logits (b, 3, h, w) of b prompts in one pass of the decoder."""
        import torch

        resized = resized_shape(plane, self._size)
        scale = np.array([resized[1] / plane[1], resized[0] / plane[0]])
        xy = np.asarray(points, np.float64)[:, ::-1] * scale  # SAM's points are (x, y)
        coordinates = torch.as_tensor(xy, dtype=torch.float32, device=self.device)[:, None]
        labels = torch.ones(len(points), 1, dtype=torch.int, device=self.device)
        previous = None
        if logits is not None:
            previous = torch.tensor(np.asarray(logits, np.float32), device=self.device)[:, None]
        low, scores = self._decoder.decode(image, coordinates, labels, previous)
        return scores, low

    def enlarge(self, logits: Float32, plane: tuple[int, int]) -> Window:
        """The mask of logits (h, w) in the plane's pixels, in the window that they reach."""
        rows, cols = (
            sam_masks.side(length, resized, self._size, cells)
            for length, resized, cells in zip(plane, resized_shape(plane, self._size), logits.shape, strict=True)
        )
        return sam_masks.enlarge(logits, rows, cols, self._threshold)

    def peak(self, logits: Float32, plane: tuple[int, int]) -> Float32:
        """The most confident pixel (row, column) of each of (B, h, w) logits, as (B, 2) float32 in the plane's frame.

        Only logits centred on the image are looked at, never those on the padding; the first of equal ones wins.
        This is the place where `predict` draws the logit; `SamPredictor` puts points up to half a pixel from it.
        """
        resized = resized_shape(plane, self._size)
        cell = self._size / self._logits_shape[0]
        rows, columns = (max(1, int(np.ceil(length / cell - 0.5))) for length in resized)
        best = logits[:, :rows, :columns].reshape(len(logits), -1).argmax(1)
        position = np.stack(np.unravel_index(best, (rows, columns)), 1)
        scale = np.array([plane[0] / resized[0], plane[1] / resized[1]])
        pixels: Float32 = ((position + 0.5) * cell * scale - 0.5).astype(np.float32)
        return pixels.clip(0, np.array(plane, np.float32) - 1)


@dataclass(frozen=True)
class SamCandidates:
    """Three candidates of one prompt: scores (3,), and logits (3, h, w) that masks are made from; see `Candidates`."""

    segmenter: SamSegmenter
    plane: tuple[int, int]
    scores: Float32
    low: Float32

    def mask(self, m: int) -> Window:
        """The mask, on the window that positive logits reach."""
        return self.segmenter.enlarge(self.low[m], self.plane)

    def logits(self, m: int) -> Window:
        """The logits, all of them; a copy, so that those of the other candidates can be freed."""
        return Window((self.low.shape[1], self.low.shape[2]), 0, 0, self.low[m].copy())

    def peak(self, m: int) -> tuple[float, float]:
        """As by `SamSegmenter.peak`."""
        row, col = self.segmenter.peak(self.low[m : m + 1], self.plane)[0]
        return float(row), float(col)


def prompts_together(device: str) -> int:
    """How many prompts to decode in one pass; on a GPU no more than a quarter of its free memory is for."""
    kind = device.split(":")[0]
    if kind == "cpu":
        return BATCH[kind]
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(BATCH[kind], free // 4 // PROMPT_BYTES))


def resized_shape(plane: tuple[int, ...], size: int) -> tuple[int, int]:
    """Shape of a plane (A, B) scaled so that its longer side is `size`, rounded half up as by `ResizeLongestSide`."""
    scale = size / max(plane)
    return int(plane[0] * scale + 0.5), int(plane[1] * scale + 0.5)


def load(kind: str, path: Path, name: str) -> Any:
    """The Sam of the published size `kind` (vit_b, vit_l or vit_h) with the weights of an official checkpoint file.

    It is built on torch's meta device first: filling 600 million weights with random numbers takes half a minute.

    Raises
    ------
    ModelError
        The file is no checkpoint, or not one of this model.
    """
    import torch
    from segment_anything import sam_model_registry

    tensors = read_state_dict(path)
    with torch.device("meta"):
        model = sam_model_registry[kind](checkpoint=None)
    load_into(model, tensors, name, path, assign=True)
    return model.float()
