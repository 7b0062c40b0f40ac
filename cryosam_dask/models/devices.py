"""A device's memory: who works in it, and the way into it. Importing this imports no torch."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cryosam_dask.errors import MemoryLimitError

if TYPE_CHECKING:
    import torch

_turns: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)


@contextlib.contextmanager
def device_memory(name: str, device: str) -> Iterator[None]:
    """Room on a device for one model call: threads of a process take turns on a GPU, so that its memory holds the
    work of one of them. A GPU's lack of memory becomes a MemoryLimitError that says what helps.

    On the CPU nobody waits: there, threads compute beside each other, and each has its own share of the memory.
    """
    import torch

    turn = contextlib.nullcontext() if device == "cpu" else _turns["cuda:0" if device == "cuda" else device]
    try:
        with turn:
            yield
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryLimitError(
            f"{name} does not fit in the memory of {device}; use a smaller model, smaller slices, or --device cpu"
        ) from error


def to_device(values: Any, device: str) -> torch.Tensor:
    """Values as a tensor in single precision on a device, where a tensor may be already. A copy to a GPU is queued, and
    not waited for."""
    import torch

    if isinstance(values, torch.Tensor):
        return values.to(device, torch.float32, non_blocking=True)
    host = np.asarray(values, np.float32)
    if device == "cpu":
        return torch.tensor(host)  # a copy: from_numpy warns at read-only arrays
    pinned = torch.empty(host.shape, pin_memory=True)
    pinned.numpy()[...] = host  # the only copy that the host makes
    return pinned.to(device, non_blocking=True)
