"""Files of tensors: read without running anything in them, and loaded whole into a model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosam_dask.errors import ModelError

if TYPE_CHECKING:
    import torch


_TRAINED = "sam."


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint (.safetensors or a PyTorch file) as a flat dict of tensors on the CPU.

    PyTorch files are read with `weights_only=True`: nothing in them is executed. A dict inside `model`, `model_state`
    (micro-sam), `state_dict` or `teacher` is unwrapped, and `sam.` before all names (micro-sam's training) is left out.

    Raises
    ------
    ModelError
        The file is cut, is no checkpoint, or holds objects besides tensors.
    """
    tensors = _unwrap(_read(path))
    if all(name.startswith(_TRAINED) for name in tensors):
        tensors = {name.removeprefix(_TRAINED): tensor for name, tensor in tensors.items()}
    if not tensors:
        raise ModelError(f"weights file {path}: expected a dict of tensors, found none; it is no checkpoint")
    return tensors


def _read(path: Path) -> Any:
    import torch

    try:
        with path.open("rb") as stream:
            head = stream.read(9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors" or head[8:9] == b"{":  # eight bytes of header size, then JSON
                import safetensors.torch

                return safetensors.torch.load_file(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        size = path.stat().st_size if path.is_file() else 0
        if "Unsupported global" in str(error):  # a whole state of a training, or an attack
            raise ModelError(
                f"weights file {path} ({size:,} bytes) holds Python objects, which are never loaded, or is no "
                f"checkpoint; expected tensors alone, as micro_sam.util.export_custom_sam_model writes them"
            ) from error
        raise ModelError(
            f"weights file {path} ({size:,} bytes) is cut or is no checkpoint ({type(error).__name__}); expected a "
            f"PyTorch or safetensors file, download it again"
        ) from error


def _unwrap(read: Any, depth: int = 3) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(read, dict):
        return {}
    for key in ("model", "model_state", "state_dict", "teacher"):
        if depth and isinstance(read.get(key), dict):
            return _unwrap(read[key], depth - 1)
    return {key: value for key, value in read.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


def load_into(
    module: torch.nn.Module, tensors: dict[str, torch.Tensor], name: str, path: Path, assign: bool = False
) -> None:
    """Load all of `module`'s weights from `tensors`; a classifier (`head…`) in the file is left out.

    `assign` puts the tensors themselves into the module, as one built on the meta device needs.

    Raises
    ------
    ModelError
        A tensor is missing, has another shape, or has no place in the model.
    """
    try:
        missing, unexpected = module.load_state_dict(tensors, strict=False, assign=assign)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        detail = lines[0] if lines else str(error).splitlines()[0]
        raise ModelError(
            f"weights file {path} does not fit {name}: {detail} ({len(lines)} such); is it for another model size?"
        ) from error
    unexpected = [key for key in unexpected if not key.startswith(("head", "fc_norm"))]
    if missing or unexpected:
        raise ModelError(
            f"weights file {path} does not fit {name}: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} with no place in the model {unexpected[:3]}; is it for another model?"
        )
