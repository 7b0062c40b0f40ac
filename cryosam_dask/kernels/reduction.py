"""Tokens of a piece of a slab → what is stored of them: latents of all ratios in half precision, Gram maps, sums.

One code for tokens in the host's memory and for those on a GPU, of which only the results are brought over.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cryosam_dask.kernels import tokens as kernel
from cryosam_dask.kernels.backend import Backend, Landing
from cryosam_dask.types import Float32

MAPS = 4
"""Gram maps of a token."""


class Reduction:
    """Reduces the tokens of a piece, some slices at a time.

    What is held in single precision are the sums of the finest ratio's runs of slices, from which all coarser ones
    follow.

    Parameters
    ----------
    count : slices; size : tokens (rows, columns) of the piece; channels : C
    finest : the finest ratio besides the native one; None if there is none
    weights : (rows, columns) of the tokens in the sums
    """

    def __init__(
        self, backend: Backend, count: int, size: tuple[int, int], channels: int, finest: int | None, weights: Float32
    ) -> None:
        self._backend, self._count, self._finest = backend, count, finest
        self._shape = (*size, channels)
        self._native = self._landings(count)
        with backend.at_work():
            self._weights = backend.place(weights.reshape(-1))
            self._runs = backend.zeros((-(-count // finest) if finest else 0, *self._shape))
            self._sums = backend.zeros((channels,))
        self._done = 0

    def _landings(self, count: int) -> tuple[Landing, Landing]:
        rows, columns, _ = self._shape
        return (
            self._backend.landing((count, *self._shape), np.float16),
            self._backend.landing((count, rows, columns, MAPS), np.float32),
        )

    def add(self, tokens: Any) -> None:
        """The next slices' tokens (n, rows, columns, C) in single precision, which are rounded in place."""
        first = self._done
        self._done += len(tokens)
        latents, maps = self._native
        with self._backend.at_work():
            if self._finest:
                for index in range(len(tokens)):
                    run = self._runs[(first + index) // self._finest]
                    run += tokens[index]
            part = slice(first, self._done)
            # all that follows is of the tokens as they are stored
            tokens[...] = latents.put(part, tokens)
            maps.put(part, kernel.gram_maps(tokens, self._backend))
            for index in range(len(tokens)):
                self._sums += self._weights @ tokens[index].reshape(len(self._weights), -1)

    def coarse(self, ratio: int) -> tuple[Landing, Landing]:
        """Latents of a coarser ratio, means of `ratio` slices, and their Gram maps, once all slices were added."""
        assert self._finest
        step = ratio // self._finest
        counts = np.minimum(self._finest, self._count - np.arange(0, self._count, self._finest))
        latents, maps = self._landings(-(-self._count // ratio))
        with self._backend.at_work():
            for cell, start in enumerate(range(0, len(self._runs), step)):
                runs = slice(start, start + step)
                mean = kernel.mean_of(self._runs[runs], int(counts[runs].sum()))
                rounded = latents.put(slice(cell, cell + 1), mean[None])
                maps.put(slice(cell, cell + 1), kernel.gram_maps(rounded, self._backend))
        return latents, maps

    @property
    def native(self) -> tuple[Landing, Landing]:
        """Latents (count, rows, columns, C) and their Gram maps."""
        return self._native

    def sums(self) -> Landing:
        """Weighted sum of all tokens that were added, (1, C)."""
        landing = self._backend.landing((1, self._shape[-1]), np.float32)
        with self._backend.at_work():
            landing.put(slice(0, 1), self._sums[None])
        return landing
