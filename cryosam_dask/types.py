"""Shapes and contracts that all layers share. Axis order is (z, y, x) everywhere; indices are zero-based."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Axis = Literal["z", "y", "x"]
AXES: tuple[Axis, Axis, Axis] = ("z", "y", "x")

Shape3 = tuple[int, int, int]
Point = tuple[float, float, float]

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
Array = NDArray[Any]

Json = dict[str, Any]
"""An object of JSON: settings of a stage, attributes of a group, a description."""

Volume = Any
"""A tomogram in an array instead of a file: `xarray.DataArray`, or an array (z, y, x) of NumPy or Dask."""


class Window(NamedTuple):
    """An array of `shape` that is 0 (or False) outside a block, whose first element is at (row, col).

    Masks of single objects, and logits of a segmenter that looks at a prompt's surroundings only, are kept like this.
    """

    shape: tuple[int, int]
    row: int
    col: int
    block: Array

    @classmethod
    def crop(cls, full: Array) -> Window:
        """Keep the block that is not 0."""
        rows = np.flatnonzero((full != 0).any(1))
        r0, r1 = (int(rows[0]), int(rows[-1]) + 1) if rows.size else (0, 0)
        cols = np.flatnonzero((full[r0:r1] != 0).any(0))
        c0, c1 = (int(cols[0]), int(cols[-1]) + 1) if cols.size else (0, 0)
        return cls((full.shape[0], full.shape[1]), r0, c0, full[r0:r1, c0:c1].copy())

    def full(self) -> Array:
        """The whole array."""
        out = np.zeros(self.shape, self.block.dtype)
        self.paste(out)
        return out

    def paste(self, full: Array) -> None:
        """Put the block into a whole array."""
        h, w = self.block.shape
        full[self.row : self.row + h, self.col : self.col + w] = self.block

    def cut(self, row: int, col: int, shape: tuple[int, ...]) -> Array:
        """The part of the whole array that begins at (row, col) and has `shape`; 0 beyond the array's ends."""
        out = np.zeros(shape, self.block.dtype)
        r0, c0 = max(row, self.row), max(col, self.col)
        r1 = min(row + shape[0], self.row + self.block.shape[0])
        c1 = min(col + shape[1], self.col + self.block.shape[1])
        if r0 < r1 and c0 < c1:
            held = self.block[r0 - self.row : r1 - self.row, c0 - self.col : c1 - self.col]
            out[r0 - row : r1 - row, c0 - col : c1 - col] = held
        return out


class Logits(Protocol):
    """What a `Window` of logits has. A segmenter's own logits may stay on its device until `block` is asked for."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def row(self) -> int: ...
    @property
    def col(self) -> int: ...
    @property
    def block(self) -> Array: ...

    def full(self) -> Array:
        """As `Window.full`."""
        ...

    def paste(self, full: Array) -> None:
        """As `Window.paste`."""
        ...

    def cut(self, row: int, col: int, shape: tuple[int, ...]) -> Array:
        """As `Window.cut`."""
        ...


class Candidates(Protocol):
    """The candidate masks of one prompt on one plane; each is made when it is asked for, and only as large as it is.

    `Prediction` has the same with every mask at the plane's full size.
    """

    @property
    def scores(self) -> Float32:
        """(M,) float32 the model's own estimate of each mask's quality, larger is better."""
        ...

    def mask(self, m: int) -> Window:
        """Candidate m's mask, bool, in pixels of the plane."""
        ...

    def logits(self, m: int) -> Logits:
        """Candidate m's logits, float32, in the segmenter's own frame; for the next plane."""
        ...

    def peak(self, m: int) -> tuple[float, float]:
        """Candidate m's most confident pixel (row, column) of the plane, as by `PromptedSegmenter.peak`."""
        ...


class Prediction(NamedTuple):
    """Candidate masks of B prompts on one plane, M candidates each.

    Attributes
    ----------
    masks : (B, M, A, B') bool
        At the plane's own size.
    scores : (B, M) float32
        The model's own estimate of each mask's quality, larger is better.
    logits : (B, M, h, w) float32
        Confidence in the segmenter's own frame (`PromptedSegmenter.logits_shape`), > 0 inside; what `predict`
        takes back as `logits` on the next plane.
    """

    masks: Bool
    scores: Float32
    logits: Float32

    @classmethod
    def of(
        cls, candidates: Sequence[Candidates], count: int, plane: tuple[int, int], frame: tuple[int, int]
    ) -> Prediction:
        """Candidates of B prompts at full size: masks of `plane`, logits of `frame`.

        A prompt with fewer than `count` = M candidates gets empty masks with score 0 for the rest.
        """
        masks = np.zeros((len(candidates), count, *plane), bool)
        scores = np.zeros((len(candidates), count), np.float32)
        logits = np.zeros((len(candidates), count, *frame), np.float32)
        for b, candidate in enumerate(candidates):
            for m, score in enumerate(candidate.scores):
                candidate.mask(m).paste(masks[b, m])
                candidate.logits(m).paste(logits[b, m])
                scores[b, m] = score
        return cls(masks, scores, logits)


@runtime_checkable
class SliceEncoder(Protocol):
    """Turns slices into a grid of tokens.

    Attributes
    ----------
    name : the name it is loaded by; identity : version or hash of the weights (part of the fingerprints)
    patch : pixels of a token's side; channels : C
    """

    name: str
    identity: str
    patch: int
    channels: int

    def encode(self, slices: Float32) -> Float32:
        """Encode slices (N, A, B), zero mean and unit deviation over the tomogram, A and B multiples of `patch`.

        Returns tokens (N, A / patch, B / patch, C), float32; token (i, j) stands for the pixels
        [i·patch, (i+1)·patch) × [j·patch, (j+1)·patch).
        """
        ...


@runtime_checkable
class TensorEncoder(SliceEncoder, Protocol):
    """An encoder of torch that also leaves its tokens where it computed them: optional, and quicker.

    What is stored of the tokens is then computed there, and nothing else is brought to the host's memory.

    Attributes
    ----------
    device : "cpu", "cuda" or "cuda:N"
    """

    device: str

    def encode_tensor(self, slices: Any) -> Any:
        """What `encode` gives, as a `torch.Tensor` (N, A / patch, B / patch, C), float32, on `device`.

        `slices` may also be a tensor that is on `device` already, as they are where they were resized there.
        The caller may change it. It is not checked for values that are not finite, and on a GPU not waited for.
        """
        ...


@runtime_checkable
class PromptedSegmenter(Protocol):
    """Segments one object on a plane from a point, and optionally from the mask on the plane before.

    Attributes
    ----------
    name : the name it is loaded by; identity : version or hash of the weights (part of the fingerprints)
    batch : how many prompts one `predict` call serves best on this device
    """

    name: str
    identity: str
    batch: int

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        """Shape of one plane's embedding, for a plane of shape (A, B), without computing it."""
        ...

    @property
    def embedding_dtype(self) -> np.dtype[Any]:
        """The type embeddings are stored in."""
        ...

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        """Shape (h, w) of the logits for a plane of shape (A, B)."""
        ...

    def embed(self, planes: NDArray[np.uint8]) -> Array:
        """Embed planes (N, A, B) uint8; returns `(N, *embedding_shape((A, B)))` of `embedding_dtype`."""
        ...

    def predict(self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Float32 | None) -> Prediction:
        """Segment one plane of shape (A, B) = `plane` for B prompts.

        Parameters
        ----------
        embedding : one plane's embedding
        points : (B, 2) pixel positions (row, column) in the plane
        logits : (B, h, w) logits of the masks on the plane before, or None on the first plane
        """
        ...

    def peak(self, logits: Float32, plane: tuple[int, int]) -> Float32:
        """The most confident pixel of each of (B, h, w) logits: (B, 2) pixel positions (row, column) in the plane.

        Positions that stand for the segmenter's own padding are never returned.
        """
        ...


@runtime_checkable
class WindowedSegmenter(PromptedSegmenter, Protocol):
    """A segmenter that also gives candidates without masks of whole planes: optional, and quicker on large planes."""

    def candidates(
        self, embedding: Array, plane: tuple[int, int], points: Float32, logits: Sequence[Logits] | None
    ) -> Sequence[Candidates]:
        """What `predict` finds, for each of B prompts; logits : B windows, or None on the first plane."""
        ...


@runtime_checkable
class MadeTogether(Protocol):
    """Candidates of B prompts that a device makes the masks of together: optional, as what `candidates` returns."""

    def make(self, wanted: Sequence[tuple[int, int]], max_area: int | None) -> None:
        """Have the masks of candidates (b, m) at hand, before each `mask` is asked for.

        max_area : a mask of so many pixels or more is of no use, and may be given as an empty one; None: any size is
        """
        ...


@runtime_checkable
class HoldingSegmenter(Protocol):
    """A windowed segmenter that computes on a device, and is to get a plane's embedding there once: optional.

    Its `candidates` also takes what `hold` returns in the place of the embedding, any number of times. It best returns
    candidates that are `MadeTogether`, whose logits stay on the device.
    """

    def hold(self, embedding: Array) -> Any:
        """A plane's embedding on the device, as the decoder takes it."""
        ...


class Answers(NamedTuple):
    """What a `VolumeSegmenter` says about n clicks in a box, without their masks at full resolution.

    descriptor : (n, D) float32, unit length; alike for instances of a kind. The mean over the click's mask
    quality : (n,) float32, 0 to 1, the model's own estimate of the mask's IoU with what was clicked
    size : (n,) voxels of the mask; middle : (n, 3) its centre of mass in voxels of the box, the click if it is empty
    classes : (n, K) float32, what the mask belongs to: mean probabilities of the model's classes, solvent first and
        particles second, then structures without a size
    """

    descriptor: Float32
    quality: Float32
    size: NDArray[np.int64]
    middle: NDArray[np.float64]
    classes: Float32


class Look(Protocol):
    """What a `VolumeSegmenter` saw in a box of the tomogram; all positions are voxels (z, y, x) of that box."""

    def centres(self, least: float) -> tuple[NDArray[np.float64], Float32]:
        """Places (n, 3) where an instance of any kind seems to have its centre; how much so (n,), from `least` on."""
        ...

    def answer(self, points: Array) -> Answers:
        """Answer clicks (n, 3)."""
        ...

    def masks(self, points: Array) -> list[tuple[NDArray[np.int64], Bool]]:
        """For each click (n, 3) the first voxel of a window around it, and the mask in that window."""
        ...

    def quality(self, points: Array) -> Float32:
        """The estimates (n,) of the masks' IoU with what was clicked, as in `answer`."""
        ...

    @property
    def clarity(self) -> float:
        """How clearly instances stand out from the solvent: less in the wrong contrast, bright for dark."""
        ...

    def likeness(self, descriptor: Float32, classes: Float32) -> Float32:
        """How like a structure each voxel of the box is, 0 to 1: by its descriptor (D,) and its classes (K,)."""
        ...


@runtime_checkable
class VolumeSegmenter(Protocol):
    """Segments in three dimensions at once: it looks at a box of the tomogram, and then answers clicks in it.

    Attributes
    ----------
    name : the name it is loaded by; identity : version or hash of the weights (part of the fingerprints)
    """

    name: str
    identity: str

    def look(self, box: Float32) -> Look:
        """Look at a box (z, y, x) of the tomogram: zero mean and unit deviation over the tomogram, particles bright."""
        ...


@dataclass(frozen=True)
class Pick:
    """One found particle: its centre of mass in voxels (z, y, x), its score, its label in the instance volume."""

    z: float
    y: float
    x: float
    score: float
    instance: int
