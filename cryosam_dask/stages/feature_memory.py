"""Projected memory of the feature stages' units, in bytes, from shapes alone.

Tokens are held piece by piece (`stages.tiling`), so units stop growing where slices become larger than a piece.
"""

from __future__ import annotations

import math

from cryosam_dask import geometry
from cryosam_dask.geometry import Box
from cryosam_dask.models.info import EncoderInfo
from cryosam_dask.settings import FeatureSettings
from cryosam_dask.stages import tiling
from cryosam_dask.stages.base import BESIDES
from cryosam_dask.stages.tiling import Piece
from cryosam_dask.store import layout
from cryosam_dask.types import AXES, Axis, Shape3

WRITTEN_AT_ONCE = 10
"""Chunks that zarr has in hand while it writes an array."""


def unit_memory(shape: Shape3, axis: Axis, slices: int, info: EncoderInfo, settings: FeatureSettings) -> int:
    """The largest piece: its voxels in all slices and their neighbours, and one slab of it: its tokens in half
    precision, the sums of runs in single precision, Gram maps, a batch that is encoded, or chunks that are written."""
    parts = list(tiling.pieces(shape, axis, info.patch, settings, info.channels))
    piece = tiling.largest(parts)
    slab = min(slices, layout.SLAB)
    runs = [geometry.cell_count(slab, ratio) for ratio in sorted(settings.ratios)]
    cells = piece[0].size * piece[1].size
    maps = 4 * len(layout.GRAM_MAPS) * cells
    # maps of the piece on the left wait for this one
    held = maps * (slab + sum(runs)) * geometry.cell_count(slices, layout.SLAB) if len(parts) > 1 else 0
    kept = cells * info.channels * (2 * slab + 4 * max(runs, default=0)) + maps * slab + held
    chunk = 2 * math.prod(tiling.latent_chunks(1, (piece[0].size, piece[1].size), info.channels)[1:]) * slab
    # chunks that are written: themselves, compressed, and compressed with their checksums
    writing = min(3 * WRITTEN_AT_ONCE * chunk, 3 * 2 * slab * cells * info.channels)
    return (
        _read_bytes(piece, slices, settings) + kept + max(_encode_bytes(piece, slab, info, settings), writing) + BESIDES
    )


def _read_bytes(piece: Piece, slices: int, settings: FeatureSettings) -> int:
    """A piece's voxels as they are stored, with the neighbours of the slices."""
    plane = [int(span.voxels.stop - span.voxels.start) for span in piece]
    return 4 * (slices + settings.thickness - 1) * math.prod(plane)


def _encode_bytes(piece: Piece, slices: int, info: EncoderInfo, settings: FeatureSettings) -> int:
    """A batch of a piece: its images, its tokens before and after the linear map, and what the encoder takes."""
    rows, columns = piece
    batch = min(settings.batch, slices)
    resized = rows.resized or columns.resized
    images = 4 * rows.pixels * columns.pixels * (2 if resized else 1)
    tokens = 4 * info.channels * rows.size * columns.size * (1 if settings.standardize == "none" else 2)
    a, b = (max((tile.last - tile.first for tile in span.tiles), default=0) for span in piece)
    tile = 4 * a * b * (info.patch**2 + info.channels)
    encoding = info.encode_bytes((a * info.patch, b * info.patch), batch)
    return batch * (images + tokens + (0 if tiling.is_whole(piece) else tile)) + encoding


def standardize_memory(shape: Shape3, axis: Axis, info: EncoderInfo, settings: FeatureSettings) -> int:
    """One slice of the largest piece, and the moments with what they are inverted with, by libraries that it loads."""
    piece = tiling.largest(tiling.pieces(shape, axis, info.patch, settings, info.channels))
    moments = 8 * info.channels**2 * 6
    return _read_bytes(piece, 1, settings) + _encode_bytes(piece, 1, info, settings) + moments + 3 * BESIDES


def dense_memory(shape: Shape3, ratio: int, box: Box, info: EncoderInfo, settings: FeatureSettings) -> int:
    """The largest view's tokens under a box of cells as they are stored, in single precision and once more in another
    order, and interpolated along their rows; or at the end the features of all views, as parts, joined and stored."""
    channels = info.channels
    features: int = math.prod(b - a for a, b in box) * channels
    largest = 0
    for axis in AXES:
        slices, *plane = (b - a for a, b in geometry.box_of(box, axis))
        lengths = geometry.plane_shape(shape, axis)
        grid = [geometry.token_count(n, info.patch, settings.slice_size) for n in lengths]
        rows, columns = (
            min(tokens, geometry.cell_count(cells * ratio * tokens, length) + 1)
            for cells, tokens, length in zip(plane, grid, lengths, strict=True)
        )
        largest = max(largest, slices * columns * channels * (10 * rows + 4 * plane[0]))
    return max(largest + 2 * 4 * features, 3 * 10 * features) + BESIDES
