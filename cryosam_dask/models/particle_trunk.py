"""`particle_net` for inference alone: the same sums, of which fewer are made."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cryosam_dask.models.particle_net import ParticleNet, Up

_PARITIES = tuple(itertools.product((0, 1), repeat=3))

# of a cell's two fine ones, the first sees fine −1, 0, 1 in coarse −1, 0, 0, the second in coarse 0, 0, 1
_TAPS = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])


def folded(net: ParticleNet) -> ParticleNet:
    """A network of trained weights, changed for inference: normalization is part of the convolution before it."""
    net = net.eval().requires_grad_(False)
    for block in [m for m in net.modules() if isinstance(m, nn.Sequential)]:
        for i, (conv, norm) in enumerate(itertools.pairwise(block)):
            if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                block[i], block[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    for name, up in [(name, m) for name, m in net.named_children() if isinstance(m, Up)]:
        setattr(net, name, _Raised(up))
    return net


class _Raised(nn.Module):
    """An `Up` whose normalization is folded.

    A convolution of 3³ cells that were repeated 2³ times is, for each of the 8 places in a cell, one of 2³ of the cells
    themselves: 8 products in the place of 27. What is beside is convolved as before.
    """

    def __init__(self, up: Up) -> None:
        super().__init__()
        join = up.join[0]
        assert isinstance(join, nn.Conv3d)
        self.reduce, self.block, self.bias = up.reduce, up.block, join.bias
        above, beside = join.weight[:, : up.reduce.out_channels], join.weight[:, up.reduce.out_channels :]
        self.beside = nn.Parameter(_blocked(beside), requires_grad=False)
        self.parts = nn.ParameterList(
            nn.Parameter(_blocked(torch.einsum("oiabc,za,yb,xc->oizyx", above, *(_TAPS[p] for p in at))), False)
            for at in _PARITIES
        )

    def forward(self, below: Tensor, beside: Tensor) -> Tensor:
        cells = functional.pad(self.reduce(below), (1,) * 6)
        out = functional.conv3d(beside, self.beside, self.bias, padding=1)
        z, y, x = below.shape[2:]
        for (k, j, i), weight in zip(_PARITIES, self.parts, strict=True):
            part = functional.conv3d(cells[:, :, k : k + z + 1, j : j + y + 1, i : i + x + 1], weight)
            out[:, :, k::2, j::2, i::2] += part
        raised: Tensor = self.block(functional.relu_(out))
        return raised


def _blocked(weight: Tensor) -> Tensor:
    return weight.detach().contiguous(memory_format=torch.channels_last_3d)
