"""What a model declares about itself. The rest of the program knows a model by its entry in the catalog, never by its
name.

An entry says what a model is called, cited and served by, where its weights are, what its shapes are, and what it takes
in memory and time, all without its weights and without torch; it also loads the model. Protocols, so that a family of
models may compute what it tells as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from cryosam_dask.models.weights import Source
from cryosam_dask.types import PromptedSegmenter, Shape3, SliceEncoder, VolumeSegmenter


@dataclass(frozen=True)
class About:
    """What reports and settings need to know of a model.

    Attributes
    ----------
    phrase : the model in the methods paragraph of a report; it follows "were encoded as" for an encoder, and "by
        self-prompting of" for a segmenter
    references : the publications to cite, as in a list of references
    defaults : the settings that serve it, by dotted names, where they differ from those of `Settings`: of `features`
        and `match` for an encoder, of `propagation` for a segmenter
    """

    phrase: str
    references: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)


class Cost(NamedTuple):
    """The time and the operations that a computation takes.

    Attributes
    ----------
    seconds : of one core, whatever the device
    operations : floating-point operations of torch in the precision that the settings ask for
    float32_operations : those that are done in float32 whatever the settings
    """

    seconds: float = 0.0
    operations: float = 0.0
    float32_operations: float = 0.0


class Entry(Protocol):
    """What is known of a model by its name alone, even of one whose shapes are not in the catalog (`timm:NAME`).

    Attributes
    ----------
    name : the name it is loaded by
    version : what identifies it in fingerprints; None for a model that its weights' SHA-256 identifies
    """

    @property
    def name(self) -> str: ...
    @property
    def about(self) -> About: ...
    @property
    def version(self) -> str | None: ...

    def source(self) -> Source | None:
        """Where its weights are fetched from; None if no place is known."""
        ...


class EncoderEntry(Entry, Protocol):
    """An encoder that can be loaded."""

    def load(self, path: str | None, device: str, dtype: str) -> SliceEncoder:
        """Load it, with the weights of `path` if that is given; `ModelError` if they are missing or wrong."""
        ...


class EncoderInfo(EncoderEntry, Protocol):
    """An encoder's entry with what planning needs to know.

    Attributes
    ----------
    patch : pixels of a token's side; channels : C
    uses_torch : whether it runs in torch (and can use a GPU); weights_bytes : memory of the loaded weights
    """

    @property
    def patch(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def uses_torch(self) -> bool: ...
    @property
    def weights_bytes(self) -> int: ...

    def encode_bytes(self, plane: tuple[int, int], count: int = 1, device: str = "cpu") -> int:
        """Working memory, in bytes, of one `encode` of `count` slices of shape (A, B), within a third of the real one.

        Input and output come on top. Only a few slices are at work at a time, so it stops growing with `count`.
        """
        ...

    def encode_cost(self, plane: tuple[int, int], tiles: Sequence[int]) -> Cost:
        """Encoding one slice of (A, B) voxels, cut into tiles of so many tokens, their margins included."""
        ...


class SegmenterInfo(Entry, Protocol):
    """A segmenter's entry with what planning needs to know; shapes as in `PromptedSegmenter`.

    Attributes
    ----------
    candidates : masks that `predict` gives for one prompt, at most
    uses_torch : whether it runs in torch (and can use a GPU); weights_bytes : memory of the loaded weights
    embedding_dtype : the type embeddings are stored in; embedding_share : share of their bytes that zstd leaves
    """

    @property
    def candidates(self) -> int: ...
    @property
    def uses_torch(self) -> bool: ...
    @property
    def weights_bytes(self) -> int: ...
    @property
    def embedding_dtype(self) -> np.dtype[Any]: ...
    @property
    def embedding_share(self) -> float: ...

    def load(self, path: str | None, device: str, dtype: str) -> PromptedSegmenter:
        """Load it, with the weights of `path` if that is given; `ModelError` if they are missing or wrong."""
        ...

    def embedding_shape(self, plane: tuple[int, int]) -> tuple[int, ...]:
        """Shape of the embedding of a plane (A, B)."""
        ...

    def logits_shape(self, plane: tuple[int, int]) -> tuple[int, int]:
        """Shape of the logits of a plane (A, B)."""
        ...

    def embed_bytes(self, plane: tuple[int, int]) -> int:
        """Working memory, in bytes, of embedding planes (A, B) one by one, without the embeddings."""
        ...

    def predict_bytes(self, plane: tuple[int, int], prompts: int) -> int:
        """Memory, in bytes, of `prompts` prompts on a plane (A, B): all their candidates, and a mask of each."""
        ...

    def walker_bytes(self, plane: tuple[int, int]) -> int:
        """Bytes that a prompt holds between two planes (A, B): the logits of its mask."""
        ...

    def embed_cost(self, plane: tuple[int, int]) -> Cost:
        """Embedding one plane (A, B)."""
        ...

    def predict_cost(self, first: int, further: int) -> Cost:
        """`first` predictions from points alone, and `further` ones from points with the mask of the plane before."""
        ...


class VolumeInfo(Entry, Protocol):
    """The entry of a segmenter that looks at boxes of the tomogram instead of planes, see `VolumeSegmenter`.

    Attributes
    ----------
    uses_torch : whether it runs in torch (and can use a GPU); weights_bytes : memory of the loaded weights
    halo : voxels around what is asked about that it should see; multiple : boxes begin at multiples of it
    reach : voxels around a click that its mask can have
    """

    @property
    def uses_torch(self) -> bool: ...
    @property
    def weights_bytes(self) -> int: ...
    @property
    def halo(self) -> int: ...
    @property
    def multiple(self) -> int: ...
    @property
    def reach(self) -> int: ...

    def load(self, path: str | None, device: str, dtype: str) -> VolumeSegmenter:
        """Load it, with the weights of `path` if that is given; `ModelError` if they are missing or wrong."""
        ...

    def look_bytes(self, shape: Shape3) -> int:
        """Working memory, in bytes, of a look at a box of `shape` voxels and of answers about it."""
        ...

    def look_cost(self, shape: Shape3, clicks: int) -> Cost:
        """A look at a box, and answers to so many clicks."""
        ...
