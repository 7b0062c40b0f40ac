"""Segment Anything (SAM) behind the `PromptedSegmenter` protocol.

Frames. A plane (A, B) is scaled so that its longer side is the model's image size S (1024), then padded with zeros at
the bottom and right to S × S. Logits are S / 4 pixels square and cover the same padded frame: the centre of logit
(i, j) is 4 i + 2, 4 j + 2 input pixels from the upper left corner. Points go to the model as `SamPredictor` sends them,
so that results equal those of the public code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import ModelError
from cryosam_dask.models import sam_masks
from cryosam_dask.models.checkpoint import load_into, read_state_dict
from cryosam_dask.models.decoded import Decoded, DecodedBatch, stacked
from cryosam_dask.models.devices import device_memory
from cryosam_dask.models.resizing import resize
from cryosam_dask.models.sam_attention import fuse
from cryosam_dask.models.sam_decoder import MaskDecoder
from cryosam_dask.models.sam_masks import Placement, Side
from cryosam_dask.models.vit import autocast, check_dtype
from cryosam_dask.types import Array, Float32, Logits, Prediction, Window

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

    decoder: type[MaskDecoder] = MaskDecoder
    parts = 1
    """How many times the prompt encoder's channels an embedding has."""

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
        self._decoder = self.decoder(self._model)
        self._size = int(model.image_encoder.img_size)
        self._threshold = float(model.mask_threshold)
        rows, columns = model.prompt_encoder.image_embedding_size
        self._embedding_shape = (self.parts * int(model.prompt_encoder.embed_dim), int(rows), int(columns))
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
        for index, plane in enumerate(planes):
            embeddings[index] = self._embed_on_device(plane).half().cpu().numpy()
        if not np.isfinite(embeddings).all():
            raise ModelError(f"{self.name} gave embeddings that are not finite in {self.dtype}; use dtype float32")
        return embeddings

    def _embed_one(self, plane: NDArray[np.uint8]) -> Float32:
        """The embedding (256, 64, 64) float32 of one plane, before it is rounded."""
        return np.asarray(self._embed_on_device(plane).float().cpu().numpy())

    def _embed_on_device(self, plane: NDArray[np.uint8]) -> torch.Tensor:
        """The embedding (256, 64, 64) of one plane, preprocessed as by `SamPredictor.set_image`."""
        import torch

        if plane.dtype != np.uint8:
            raise ValueError(f"{self.name}: planes are {plane.dtype}, expected uint8")
        with torch.inference_mode(), device_memory(self.name, self.device):
            # The three channels are equal and resized one by one, so one is enough.
            grey = resize(torch.tensor(plane, device=self.device), self.frame(plane.shape))
            image = torch.zeros(1, 3, self._size, self._size, device=self.device)
            there = image[0, :, : grey.shape[0], : grey.shape[1]]
            torch.sub(grey, self._model.pixel_mean, out=there).div_(self._model.pixel_std)
            with autocast(self.device, self.dtype):
                embedding: torch.Tensor = self._model.image_encoder(image)[0]
            return embedding

    def predict(self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Float32 | None) -> Prediction:
        """Three candidate masks for each of B points (row, column); see `PromptedSegmenter.predict`.

        Any number of prompts may be given; `pipeline.batch` of them are decoded at a time.
        """
        windows = None if logits is None else [Window(self._logits_shape, 0, 0, before) for before in logits]
        per_point = self.candidates(embedding, plane, points, windows)
        return Prediction.of(per_point, CANDIDATES, plane, self._logits_shape)

    def hold(self, embedding: Array) -> torch.Tensor:
        """A plane's embedding on the device, as pixels (1, 4096, 256) float32; see `HoldingSegmenter`."""
        import torch

        with torch.inference_mode(), device_memory(self.name, self.device):
            # it travels, and is turned, as it is stored: half the bytes; and as a matrix, which torch turns by blocks
            there = torch.tensor(np.asarray(embedding), device=self.device)
            return there.flatten(1).T.contiguous().float()[None]

    def candidates(
        self,
        embedding: Array | torch.Tensor,
        plane: tuple[int, int],
        points: Float32,
        logits: Sequence[Logits] | None,
    ) -> Sequence[Decoded]:
        """The masks of `predict`, as logits from which masks are made on demand; see `WindowedSegmenter.candidates`.

        embedding : as by the protocol, or as `hold` gives it
        """
        import torch

        if not len(points):
            return []
        image = self.hold(embedding) if isinstance(embedding, np.ndarray) else embedding
        with torch.inference_mode(), device_memory(self.name, self.device):
            parts = []
            for start in range(0, len(points), self.batch):
                chunk = slice(start, start + self.batch)
                before = None if logits is None else stacked(logits[chunk], self.device)
                parts.append(self._decode(image, plane, points[chunk], before))
            scores, low = (each[0] if len(each) == 1 else torch.cat(each) for each in zip(*parts, strict=True))
            place = Placement(*self.sides(plane), self._threshold)
            return DecodedBatch(self.name, self.device, low, scores, place)

    def _decode(
        self, image: torch.Tensor, plane: tuple[int, int], points: Float32, logits: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (b, 3) and logits (b, 3, h, w) of b prompts in one pass of the decoder."""
        import torch

        resized = self.frame(plane)
        scale = np.array([resized[1] / plane[1], resized[0] / plane[0]])
        xy = np.asarray(points, np.float64)[:, ::-1] * scale  # SAM's points are (x, y)
        coordinates = torch.as_tensor(xy, dtype=torch.float32, device=self.device)[:, None]
        labels = torch.ones(len(points), 1, dtype=torch.int, device=self.device)
        previous = None if logits is None else logits[:, None]
        low, scores = self._decoder.decode(image, coordinates, labels, previous)
        return scores, low

    def frame(self, plane: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns of the model's image that a plane (A, B) fills."""
        return resized_shape(plane, self._size)

    def sides(self, plane: tuple[int, int]) -> tuple[Side, Side]:
        """How the plane's rows and columns are made of the logits'."""
        rows, cols = (
            sam_masks.side(length, resized, self._size, cells)
            for length, resized, cells in zip(plane, self.frame(plane), self._logits_shape, strict=True)
        )
        return rows, cols

    def enlarge(self, logits: Float32, plane: tuple[int, int]) -> Window:
        """The mask of logits (h, w) in the plane's pixels, in the window that they reach."""
        import torch

        low = torch.tensor(np.asarray(logits, np.float32), device=self.device)[None]
        place = Placement(*self.sides(plane), self._threshold)
        with torch.inference_mode(), device_memory(self.name, self.device):
            return sam_masks.enlarge(low, [0], sam_masks.look(low, [0], place)[:, :4], place)[0]

    def peak(self, logits: Float32, plane: tuple[int, int]) -> Float32:
        """The most confident pixel (row, column) of each of (B, h, w) logits, as (B, 2) float32 in the plane's frame.

        Only logits centred on the image are looked at, never those on the padding; the first of equal ones wins.
        This is the place where `predict` draws the logit; `SamPredictor` puts points up to half a pixel from it.
        """
        rows, cols = self.sides(plane)
        best = logits[:, : rows.inside, : cols.inside].reshape(len(logits), -1).argmax(1)
        cells = np.stack(np.unravel_index(best, (rows.inside, cols.inside)), 1).tolist()
        return np.array([(rows.pixel(row), cols.pixel(col)) for row, col in cells], np.float32).reshape(-1, 2)


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
