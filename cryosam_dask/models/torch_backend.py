"""Tensors of torch as the arrays that tokens are reduced in, and the way between the host's memory and a GPU's.

On a GPU nothing here waits for the device but `Landing.array`: kernels and copies are queued, and the host goes on to
what comes next. Copies go by pinned memory and by a stream of their own, so that they run beside the next batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from cryosam_dask.geometry import Interpolation
from cryosam_dask.kernels.backend import CACHED_VALUES, NUMPY, Backend, Landing
from cryosam_dask.models import resizing
from cryosam_dask.models.devices import device_memory, to_device
from cryosam_dask.types import Array, Float32, SliceEncoder, TensorEncoder

if TYPE_CHECKING:
    import torch

_GPU_VALUES = 1 << 28
"""Values that a GPU multiplies at a time: so many that it is busy, and 1 GB of products."""


def backend_of(encoder: SliceEncoder) -> Backend:
    """The backend that an encoder's tokens are reduced with: torch's, if it gives tensors, else NumPy's."""
    return TorchBackend(encoder.name, encoder.device) if isinstance(encoder, TensorEncoder) else NUMPY


class TorchBackend:
    """Tokens that are tensors on `device`; `name` is that of their encoder, for errors."""

    def __init__(self, name: str, device: str) -> None:
        self._name, self._device = name, device
        self.block_values = CACHED_VALUES if device == "cpu" else _GPU_VALUES

    def landing(self, shape: Sequence[int], dtype: DTypeLike) -> Landing:
        return _OnHost(shape, dtype) if self._device == "cpu" else _Pinned(shape, dtype, self._device)

    def place(self, values: Array) -> torch.Tensor:
        return to_device(values, self._device)

    def zeros(self, shape: Sequence[int]) -> torch.Tensor:
        import torch

        if self._device == "cpu":
            return torch.from_numpy(NUMPY.zeros(shape))
        return torch.zeros(tuple(shape), device=self._device)

    def single(self, values: torch.Tensor) -> torch.Tensor:
        return values.float()

    def dots(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if self._device == "cpu":  # torch has no such product without an array of all terms, NumPy has
            import torch

            return torch.from_numpy(NUMPY.dots(a.numpy(), b.numpy()))
        return (a * b).sum(-1)

    def numpy(self, values: torch.Tensor) -> Array:
        return values.cpu().numpy()

    def resample(self, slices: Float32, rows: Interpolation, columns: Interpolation) -> Float32 | torch.Tensor:
        if self._device == "cpu":
            return NUMPY.resample(slices, rows, columns)  # row by row in the cache, where torch goes over all each time
        with self.at_work():
            return resizing.resample(self.place(slices), rows, columns)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        import torch

        with torch.inference_mode(), device_memory(self._name, self._device):
            yield


def _dtype(dtype: DTypeLike) -> torch.dtype:
    import torch

    kind: torch.dtype = getattr(torch, np.dtype(dtype).name)
    return kind


class _OnHost:
    """Tensors that are in the host's memory to begin with."""

    def __init__(self, shape: Sequence[int], dtype: DTypeLike) -> None:
        import torch

        self._array = torch.from_numpy(np.empty(tuple(shape), dtype))  # NumPy asks for huge pages, which come quicker

    def put(self, part: slice, values: torch.Tensor) -> torch.Tensor:
        return self._array[part].copy_(values)

    def array(self) -> Array:
        return self._array.numpy()


class _Pinned:
    """Pinned memory, to which a GPU copies while it computes what was queued after."""

    def __init__(self, shape: Sequence[int], dtype: DTypeLike, device: str) -> None:
        import torch

        self._array = torch.empty(tuple(shape), dtype=_dtype(dtype), pin_memory=True)
        self._copies = _copies(device)
        event: Any = torch.cuda.Event
        self._arrived = event(blocking=True)  # who waits for it holds no core

    def put(self, part: slice, values: torch.Tensor) -> torch.Tensor:
        import torch

        converted = values.to(self._array.dtype)
        self._copies.wait_stream(torch.cuda.current_stream(values.device))  # the values are to be computed first
        with torch.cuda.stream(self._copies):
            self._array[part].copy_(converted, non_blocking=True)
            self._arrived.record(self._copies)
        converted.record_stream(self._copies)  # so that their memory is not used again before they are copied
        return converted

    def array(self) -> Array:
        self._arrived.synchronize()
        return self._array.numpy()


@functools.cache
def _copies(device: str) -> Any:
    """The stream of a device that copies to the host go by."""
    import torch

    stream: Any = torch.cuda.Stream
    return stream(device)
