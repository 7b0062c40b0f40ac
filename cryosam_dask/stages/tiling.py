"""How a large slice is cut into pieces, which are read, encoded and written one after the other.

What a piece keeps is whole chunks of the latents of every ratio, so that each chunk is written once. It is encoded in
one tile, or in several where a tile is smaller than a chunk. A slice that fits into one tile is one piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cryosam_dask import geometry
from cryosam_dask.geometry import Interpolation, Tile
from cryosam_dask.kernels.backend import Backend
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.store import layout
from cryosam_dask.types import Axis, Float32, Shape3, SliceEncoder, TensorEncoder

_ANY = 1 << 30


def chunk_side(ratio: int, channels: int) -> int:
    """Tokens of the side of a chunk of a ratio's latents: a multiple of the native ones' side, so that chunks nest."""
    native, side = (layout.latent_chunks(layout.SLAB // r, (_ANY, _ANY), channels)[1] for r in (1, ratio))
    return side // native * native


def latent_chunks(ratio: int, grid: tuple[int, int], channels: int) -> tuple[int, int, int, int]:
    """Chunks of a ratio's latents in `grid` tokens: the slices of one slab, a square of tokens, all channels."""
    side = chunk_side(ratio, channels)
    return layout.SLAB // ratio, min(side, grid[0]), min(side, grid[1]), channels


def piece_side(settings: FeatureSettings, channels: int) -> int:
    """Tokens that the sides of pieces are multiples of: the largest chunk's side among the ratios."""
    return max(chunk_side(ratio, channels) for ratio in (1, *settings.ratios))


@dataclass(frozen=True)
class Span:
    """One side of a piece, along the rows or the columns of a slice.

    Attributes
    ----------
    tiles : those that follow each other in it; tokens : that the slice has along this side
    length : voxels that the slice has; patch : pixels of a token
    """

    tiles: tuple[Tile, ...]
    tokens: int
    length: int
    patch: int

    @property
    def keep(self) -> slice:
        """The piece's tokens among those of the slice."""
        return slice(self.tiles[0].start, self.tiles[-1].stop)

    @property
    def size(self) -> int:
        """The number of tokens of the piece."""
        return self.tiles[-1].stop - self.tiles[0].start

    @property
    def pixels(self) -> int:
        """The number of pixels that its tiles see together."""
        return (self.tiles[-1].last - self.tiles[0].first) * self.patch

    @property
    def resized(self) -> bool:
        return self.length != self.tokens * self.patch

    @property
    def interpolation(self) -> Interpolation:
        """From the slice's voxels to the pixels that the tiles see, as if the whole slice were resized."""
        first = self.tiles[0].first * self.patch
        positions = np.arange(first, first + self.pixels, dtype=float)
        return geometry.interpolation(positions, self.tokens * self.patch, self.length)

    @property
    def voxels(self) -> slice:
        """The voxels that those pixels are made of."""
        if not self.resized:
            return slice(self.tiles[0].first * self.patch, self.tiles[-1].last * self.patch)
        between = self.interpolation
        return slice(between.start, between.stop)

    def within(self, tile: Tile) -> tuple[slice, slice]:
        """A tile's pixels among those of the piece, and the tokens it keeps among those of the piece."""
        first, start = self.tiles[0].first * self.patch, self.tiles[0].start
        seen = tile.read(self.patch)
        return slice(seen.start - first, seen.stop - first), slice(tile.start - start, tile.stop - start)


Piece = tuple[Span, Span]
"""Rows and columns."""


def spans(length: int, patch: int, settings: FeatureSettings, channels: int) -> list[Span]:
    """Cut one side of a slice, `length` voxels long."""
    tokens = geometry.token_count(length, patch, settings.slice_size)
    side = piece_side(settings, channels)
    out: list[list[Tile]] = [[]]
    for tile in geometry.tiles(tokens, settings.tile, settings.halo, side):
        out[-1].append(tile)
        if tile.stop % side == 0 and tile.stop < tokens:
            out.append([])
    return [Span(tuple(run), tokens, length, patch) for run in out]


def pieces(shape: Shape3, axis: Axis, patch: int, settings: FeatureSettings, channels: int) -> Iterator[Piece]:
    """The pieces of the slices of an axis, row by row."""
    rows, columns = (spans(n, patch, settings, channels) for n in geometry.plane_shape(shape, axis))
    return itertools.product(rows, columns)


def resized(slices: Float32, backend: Backend, piece: Piece) -> Any:
    """The pixels that a piece's tiles see, (n, A, B), from its voxels (n, rows, columns).

    They are `slices` where they need no resizing; else an array for an encoder whose tokens are the backend's.
    """
    rows, columns = piece
    if not rows.resized and not columns.resized:
        return slices
    return backend.resample(slices, rows.interpolation, columns.interpolation)


def encode(encoder: SliceEncoder, backend: Backend, pixels: Any, piece: Piece) -> Any:
    """Tokens (n, rows, columns, C) of a piece of n slices, from the pixels that its tiles see.

    They are an array of the backend's, which is that of the encoder's tokens (`models.torch_backend.backend_of`).
    """
    tokens_of = encoder.encode_tensor if isinstance(encoder, TensorEncoder) else encoder.encode
    rows, columns = piece
    if is_whole(piece):
        return tokens_of(pixels)
    with backend.at_work():
        out = backend.zeros((len(pixels), rows.size, columns.size, encoder.channels))
        for row, column in itertools.product(rows.tiles, columns.tiles):
            (a, keep_a), (b, keep_b) = rows.within(row), columns.within(column)
            tile = pixels[:, a, b]
            tokens = tokens_of(np.ascontiguousarray(tile) if isinstance(tile, np.ndarray) else tile.contiguous())
            out[:, keep_a, keep_b] = tokens[:, row.crop, column.crop]
    return out


def is_whole(piece: Piece) -> bool:
    """Whether a piece is one tile of which nothing is cropped."""
    return all(len(span.tiles) == 1 and span.size * span.patch == span.pixels for span in piece)


def largest(parts: Iterable[Piece]) -> Piece:
    """The piece that sees the most pixels."""
    return max(parts, key=lambda piece: piece[0].pixels * piece[1].pixels)
