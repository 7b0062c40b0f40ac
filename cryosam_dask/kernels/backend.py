"""What reducing tokens asks of the library whose arrays they are, and NumPy's answers.

Tokens are arrays of NumPy, or tensors of torch where the encoder computed them (`models.torch_backend`). The code that
reduces them (`kernels.reduction`) is the same for both, and nothing here knows torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cryosam_dask.geometry import Interpolation
from cryosam_dask.kernels import images
from cryosam_dask.types import Array, Float32

CACHED_VALUES = 1 << 18
"""Values in single precision that stay in a core's cache."""

_BLAS_CHANNELS = 64
"""Vectors of so many values or more are multiplied faster by BLAS, one call a product, than by einsum's loop."""


class Landing(Protocol):
    """An array in the host's memory that results are brought to, part by part along its first axis."""

    def put(self, part: slice, values: Any) -> Any:
        """Bring values, converted to the array's type, to a part. Returns them as converted, where they were computed.

        They may still be under way when this returns.
        """
        ...

    def array(self) -> Array:
        """The array, once all that was put has arrived."""
        ...


class Backend(Protocol):
    """A library of arrays at the place where tokens are; "array" means one of its own.

    Attributes
    ----------
    block_values : how many values in single precision are multiplied at a time: those that stay in a cache
    """

    @property
    def block_values(self) -> int: ...

    def landing(self, shape: Sequence[int], dtype: DTypeLike) -> Landing:
        """Room for results in the host's memory."""
        ...

    def place(self, values: Array) -> Any:
        """Values of the host, as an array."""
        ...

    def zeros(self, shape: Sequence[int]) -> Any:
        """An array of zeros in single precision."""
        ...

    def single(self, values: Any) -> Any:
        """An array in single precision; itself if it is."""
        ...

    def dots(self, a: Any, b: Any) -> Any:
        """Products of vectors in single precision along the last of three axes."""
        ...

    def numpy(self, values: Any) -> Array:
        """An array in the host's memory."""
        ...

    def resample(self, slices: Float32, rows: Interpolation, columns: Interpolation) -> Any:
        """Slices of the host by `images.resample`, as an encoder of such arrays takes them."""
        ...

    def at_work(self) -> contextlib.AbstractContextManager[Any]:
        """The context that arrays are computed with in."""
        ...


class _Memory:
    def __init__(self, shape: Sequence[int], dtype: DTypeLike) -> None:
        self._array: NDArray[Any] = np.empty(tuple(shape), dtype)

    def put(self, part: slice, values: Array) -> Array:
        self._array[part] = values
        return self._array[part]

    def array(self) -> Array:
        return self._array


class NumpyBackend:
    """Tokens that are arrays of NumPy."""

    block_values = CACHED_VALUES

    def landing(self, shape: Sequence[int], dtype: DTypeLike) -> Landing:
        return _Memory(shape, dtype)

    def place(self, values: Array) -> Array:
        return values

    def zeros(self, shape: Sequence[int]) -> Float32:
        return np.zeros(tuple(shape), np.float32)

    def single(self, values: Array) -> Float32:
        return values.astype(np.float32, copy=False)

    def dots(self, a: Float32, b: Float32) -> Float32:
        blas = a.shape[-1] >= _BLAS_CHANNELS
        out: Float32 = np.vecdot(a, b) if blas else np.einsum("rcz,rcz->rc", a, b)
        return out

    def numpy(self, values: Array) -> Array:
        return values

    def resample(self, slices: Float32, rows: Interpolation, columns: Interpolation) -> Float32:
        return images.resample(slices, rows, columns)

    def at_work(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()


NUMPY = NumpyBackend()
