"""Candidates of prompts on a plane whose logits stay on the device that decoded them.

Scores are brought over at once. Masks, and where they lie and are most confident, are made for those candidates that
are asked for, of all prompts together, and travel as bits. Logits stay where they are, and the chosen one's go into
the decoder again on the next plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from cryosam_dask.models import sam_masks
from cryosam_dask.models.devices import device_memory
from cryosam_dask.models.sam_masks import Placement
from cryosam_dask.types import Array, Float32, Logits, Window

if TYPE_CHECKING:
    import torch


class DeviceLogits:
    """One mask's logits (h, w) on a device; see `Logits`."""

    row = col = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape: tuple[int, int] = (int(tensor.shape[0]), int(tensor.shape[1]))

    @property
    def block(self) -> Array:
        """(h, w) float32 on the host."""
        return np.asarray(self.tensor.cpu().numpy())

    def full(self) -> Array:
        """As `block`."""
        return self.block

    def paste(self, full: Array) -> None:
        """As `Window.paste`."""
        full[...] = self.block

    def cut(self, row: int, col: int, shape: tuple[int, ...]) -> Array:
        """As `Window.cut`."""
        return Window(self.shape, 0, 0, self.block).cut(row, col, shape)


def stacked(logits: Sequence[Logits], device: str) -> torch.Tensor:
    """Logits of B masks as (B, h, w) float32 on the device, wherever they are."""
    import torch

    held = [
        each.tensor if isinstance(each, DeviceLogits) else torch.tensor(np.asarray(each.full(), np.float32))
        for each in logits
    ]
    return torch.stack([tensor.to(device) for tensor in held])


class DecodedBatch(Sequence["Decoded"]):
    """Candidates of B prompts, M each; `MadeTogether`.

    Parameters
    ----------
    name, device : of the segmenter
    low : (B, M, h, w) float32 logits, and scores : (B, M) the model's own estimates of IoU, both on the device
    place : how the logits lie in the plane
    """

    def __init__(self, name: str, device: str, low: torch.Tensor, scores: torch.Tensor, place: Placement) -> None:
        self._name, self._device, self._place = name, device, place
        self._count = low.shape[1]
        self._low = low.flatten(0, 1)
        self._made: dict[int, tuple[Window, tuple[float, float]]] = {}
        self.scores: Float32 = np.asarray(scores.float().cpu().numpy())

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, b: int) -> Decoded: ...
    @overload
    def __getitem__(self, b: slice) -> list[Decoded]: ...
    def __getitem__(self, b: int | slice) -> Decoded | list[Decoded]:
        """The candidates of one prompt, or of several."""
        if isinstance(b, slice):
            return [Decoded(self, i) for i in range(*b.indices(len(self)))]
        if not -len(self) <= b < len(self):
            raise IndexError(b)
        return Decoded(self, b % len(self))

    def make(self, wanted: Sequence[tuple[int, int]], max_area: int | None) -> None:
        """Make masks together; see `MadeTogether.make`."""
        import torch

        numbers = [b * self._count + m for b, m in wanted]
        with torch.inference_mode(), device_memory(self._name, self._device):
            looked = sam_masks.look(self._low, numbers, self._place)
            masks = sam_masks.enlarge(self._low, numbers, looked[:, :4], self._place, max_area)
        rows, cols, _ = self._place
        for number, mask, (row, col) in zip(numbers, masks, looked[:, 4:].tolist(), strict=True):
            self._made[number] = mask, (rows.pixel(row), cols.pixel(col))

    def made(self, b: int, m: int) -> tuple[Window, tuple[float, float]]:
        """A mask that was made, or is made now, and its most confident pixel."""
        if (number := b * self._count + m) not in self._made:
            self.make([(b, m)], None)
        return self._made[number]

    def logits(self, b: int, m: int) -> DeviceLogits:
        """A candidate's logits; a copy, so that those of the others can be freed."""
        import torch

        with torch.inference_mode(), device_memory(self._name, self._device):
            return DeviceLogits(self._low[b * self._count + m].clone())


class Decoded:
    """The candidates of one prompt in a batch; see `Candidates`."""

    def __init__(self, batch: DecodedBatch, b: int) -> None:
        self._batch, self._b = batch, b

    @property
    def scores(self) -> Float32:
        scores: Float32 = self._batch.scores[self._b]
        return scores

    def mask(self, m: int) -> Window:
        return self._batch.made(self._b, m)[0]

    def logits(self, m: int) -> DeviceLogits:
        return self._batch.logits(self._b, m)

    def peak(self, m: int) -> tuple[float, float]:
        return self._batch.made(self._b, m)[1]
