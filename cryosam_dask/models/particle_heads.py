"""What `particle_net` answers at some cells of a box, from its trunk: the same as the network's own heads, but only
where it is asked. Most cells of a box belong to no particle, and all answers take several times the trunk's memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from cryosam_dask.models.particle_net import CLASSES, STRIDE, ParticleNet, Trunk
from cryosam_dask.types import Float32

_SUB = STRIDE**3
_SLAB = 1 << 17  # cells that are answered at a time where all are

Cells = tuple[Tensor, Tensor, Tensor]
Window = tuple[slice, slice, slice]


class Heads:
    """Answers about one box, in single precision, whatever the trunk was computed in.

    cells : (z, y, x) of the box; cells of the trunk beyond it are of its padding
    """

    def __init__(self, net: ParticleNet, trunk: Trunk, cells: tuple[int, ...]) -> None:
        self._net, self.cells = net, cells
        z, y, x = cells
        self._fine = trunk.fine[0].permute(1, 2, 3, 0)[:z, :y, :x]
        self._coarse = trunk.coarse[0].permute(1, 2, 3, 0)
        weight, bias = net.voxels.weight.flatten(1), net.voxels.bias
        assert bias is not None
        # the 8 voxels of a cell are neighbouring outputs of each class and mask feature
        self._classes = weight[: _SUB * len(CLASSES)], bias[: _SUB * len(CLASSES)]
        self._masks = weight[_SUB * len(CLASSES) :], bias[_SUB * len(CLASSES) :]

    @property
    def device(self) -> torch.device:
        """Where the trunk is."""
        return self._fine.device

    def features(self, cells: Cells) -> Tensor:
        """(P, F) for `ParticleNet.at`."""
        above = (cells[0] // 2, cells[1] // 2, cells[2] // 2)
        return torch.cat([self._fine[cells], self._coarse[above]], 1).float()

    def descriptors(self, cells: Cells) -> Tensor:
        """(P, D), unit length."""
        return self._descriptors(self.features(cells))

    def centre(self) -> Float32:
        """(z, y, x) of cells: how likely an instance has its centre there."""
        weight, bias = self._net.centre.weight.flatten(), self._net.centre.bias
        a = self._fine.shape[-1]
        above = (self._coarse.float() @ weight[a:]).repeat_interleave(2, 0)
        above = above.repeat_interleave(2, 1).repeat_interleave(2, 2)
        out = torch.empty(self.cells, device=self.device)
        for slab in self._slabs():
            here = self._fine[slab].float() @ weight[:a] + above[slab][:, : self.cells[1], : self.cells[2]]
            out[slab] = torch.sigmoid(here if bias is None else here + bias)
        return out.cpu().numpy()

    def masks(self, window: Window, step: int) -> Tensor:
        """(z, y, x, 8) mask features of the cells' first voxels (`step` 2), or of all their voxels (1)."""
        return self._voxels(self._fine[window].float(), self._masks, step)

    def classes(self, window: Window, step: int) -> Tensor:
        """(z, y, x, 6) probabilities, of voxels as in `masks`."""
        return torch.softmax(self._voxels(self._fine[window].float(), self._classes, step), -1)

    def classes_at(self, cells: Cells) -> Tensor:
        """(P, 6) probabilities of the cells' first voxels."""
        return torch.softmax(self._voxels(self._fine[cells].float(), self._classes, STRIDE), -1)

    def all_classes(self) -> Tensor:
        """(6, z, y, x) probabilities of all voxels."""
        parts = [self.classes((slab, slice(None), slice(None)), 1).permute(3, 0, 1, 2) for slab in self._slabs()]
        return torch.cat(parts, 1)

    def cosines(self, query: Tensor) -> Tensor:
        """(z, y, x) of cells: of their descriptors with a query (D,)."""
        out = torch.empty(self.cells, device=self.device)
        for slab in self._slabs():
            z, y, x = torch.meshgrid(*(torch.arange(n, device=self.device) for n in self.cells), indexing="ij")
            here = self.descriptors((z[slab].reshape(-1), y[slab].reshape(-1), x[slab].reshape(-1)))
            out[slab] = (here @ query).reshape(out[slab].shape)
        return out

    def _descriptors(self, features: Tensor) -> Tensor:
        first, _, second = self._net.descriptor
        return functional.normalize(_linear(second, torch.relu_(_linear(first, features))), dim=1)

    def _voxels(self, fine: Tensor, head: tuple[Tensor, Tensor], step: int) -> Tensor:
        weight, bias = head
        if step == STRIDE:
            return functional.linear(fine, weight[::_SUB], bias[::_SUB])
        z, y, x, _ = fine.shape
        cells = functional.linear(fine, weight, bias).reshape(z, y, x, -1, STRIDE, STRIDE, STRIDE)
        return cells.permute(0, 4, 1, 5, 2, 6, 3).reshape(STRIDE * z, STRIDE * y, STRIDE * x, -1)

    def _slabs(self) -> Iterator[slice]:
        thick = max(1, _SLAB // (self.cells[1] * self.cells[2]))
        return (slice(z, min(z + thick, self.cells[0])) for z in range(0, self.cells[0], thick))


def _linear(head: nn.Module, values: Tensor) -> Tensor:
    """A convolution of single cells, of cells (P, C)."""
    assert isinstance(head, nn.Conv3d)
    return functional.linear(values, head.weight.flatten(1), head.bias)
