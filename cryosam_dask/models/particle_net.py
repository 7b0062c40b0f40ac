"""The network of the built-in models: a 3D U-Net that looks at a tomogram once, and light heads that answer clicks.

From a box of the tomogram (density with zero mean and unit deviation, particles bright) the trunk makes features on a
grid of half the resolution. From these come, for each voxel, what it belongs to and how likely an instance has its
centre there; for each place a descriptor, alike for instances of a kind; and for a click the weights of a small
function of mask features and position that is the mask of what was clicked (dynamic filters; Tian et al., Conditional
convolutions for instance segmentation, ECCV 2020, in three dimensions).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 2
"""Voxels of a side of the features' cells."""

MULTIPLE = 16
"""A box's sides must be multiples of it."""

CLASSES = ("solvent", "particle", "membrane", "filament", "microtubule", "gold")
"""What a voxel can belong to; cytosol is told from the solvent by nothing but that it is no particle."""

DESCRIPTOR = 64
"""Length of a descriptor."""

_MASK = 8  # mask features of a voxel
_HIDDEN = 8
_INPUTS = _MASK + 4  # mask features, the position relative to the click, and its square
_FILTERS = _INPUTS * _HIDDEN + _HIDDEN + _HIDDEN * _HIDDEN + _HIDDEN + _HIDDEN + 1
_UNIT = 12.0  # voxels; positions are given to filters in this unit


class Seen(NamedTuple):
    """What the trunk makes of N boxes (N, 1, z, y, x); cells have `STRIDE` voxels a side.

    features : (N, F, z', y', x') of cells, for `ParticleNet.at`
    descriptors : (N, D, z', y', x') of cells, unit length
    centre : (N, 1, z', y', x') logits
    classes : (N, 6, z, y, x) logits of voxels
    masks : (N, 8, z, y, x) mask features of voxels
    """

    features: Tensor
    descriptors: Tensor
    centre: Tensor
    classes: Tensor
    masks: Tensor


class Trunk(NamedTuple):
    """What all answers about N boxes (N, 1, z, y, x) are made from.

    fine : (N, a, z / 2, y / 2, x / 2); coarse : (N, b, z / 4, y / 4, x / 4)
    """

    fine: Tensor
    coarse: Tensor


def _conv(inputs: int, outputs: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, size, padding=size // 2, bias=False), nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Sequential(nn.Conv3d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = functional.relu_(x + self.second(self.first(x)))
        return out


class _Down(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        halve = nn.Conv3d(inputs, outputs, 2, stride=2, bias=False)
        super().__init__(
            halve, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True), *(_Residual(outputs) for _ in range(blocks))
        )


class Up(nn.Module):
    """Cells of half the size, joined with what is known of them. See `particle_trunk` for how they are inferred."""

    def __init__(self, inputs: int, beside: int, outputs: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(inputs, outputs, 1, bias=False)
        self.join = _conv(outputs + beside, outputs)
        self.block = _Residual(outputs)

    def forward(self, below: Tensor, beside: Tensor) -> Tensor:
        raised = functional.interpolate(self.reduce(below), scale_factor=2, mode="nearest")
        out: Tensor = self.block(self.join(torch.cat([raised, beside], 1)))
        return out


def to_cells(voxels: Tensor) -> Tensor:
    """(N, C, z, y, x) → (N, 8C, z/2, y/2, x/2)."""
    n, c, z, y, x = voxels.shape
    cells = voxels.reshape(n, c, z // 2, 2, y // 2, 2, x // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return cells.reshape(n, 8 * c, z // 2, y // 2, x // 2)


def to_voxels(cells: Tensor) -> Tensor:
    """The inverse of `to_cells`."""
    n, c, z, y, x = cells.shape
    voxels = cells.reshape(n, c // 8, 2, 2, 2, z, y, x).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return voxels.reshape(n, c // 8, 2 * z, 2 * y, 2 * x)


class ParticleNet(nn.Module):
    """See the module. Widths are of cells of 2, 4, 8 and 16 voxels."""

    def __init__(self, widths: tuple[int, int, int, int] = (32, 64, 96, 96)) -> None:
        super().__init__()
        a, b, c, d = widths
        wide = a + b
        self.stem = nn.Sequential(_conv(8, a), _Residual(a))
        self.down4, self.down8, self.down16 = _Down(a, b, 2), _Down(b, c, 2), _Down(c, d, 1)
        self.up8, self.up4, self.up2 = Up(d, c, c), Up(c, b, b), Up(b, a, a)
        self.descriptor = nn.Sequential(nn.Conv3d(wide, 96, 1), nn.ReLU(inplace=True), nn.Conv3d(96, DESCRIPTOR, 1))
        self.centre = nn.Conv3d(wide, 1, 1)
        self.voxels = nn.Conv3d(a, 8 * (len(CLASSES) + _MASK), 1)
        self.controller = nn.Sequential(nn.Linear(wide, 96), nn.ReLU(inplace=True), nn.Linear(96, _FILTERS + 1))
        nn.init.constant_(self.centre.bias, -4.0)  # type: ignore[arg-type]

    def trunk(self, boxes: Tensor) -> Trunk:
        """Look at boxes (N, 1, z, y, x) whose sides are multiples of `MULTIPLE`."""
        two = self.stem(to_cells(boxes))
        four = self.down4(two)
        eight = self.down8(four)
        with torch.autocast(boxes.device.type, enabled=False):  # its gradients in bfloat16 are not finite on some CPUs
            deep = self.down16(eight.float())
        coarse = self.up4(self.up8(deep, eight), four)
        return Trunk(self.up2(coarse, two), coarse)

    def forward(self, boxes: Tensor) -> Seen:
        """All answers everywhere, of boxes as in `trunk`, as training needs them; `Heads` answers where it is asked."""
        fine, coarse = self.trunk(boxes)
        features = torch.cat([fine, functional.interpolate(coarse, scale_factor=2, mode="nearest")], 1)
        voxels = to_voxels(self.voxels(fine))
        return Seen(
            features,
            functional.normalize(self.descriptor(features).float(), dim=1),
            self.centre(features),
            voxels[:, : len(CLASSES)],
            voxels[:, len(CLASSES) :],
        )

    def at(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Filters (P, W) and quality logits (P,) of clicks on cells with features (P, F)."""
        out = self.controller(features)
        return out[:, :-1], out[:, -1]


def mask_logits(filters: Tensor, masks: Tensor, relative: Tensor) -> Tensor:
    """Mask logits (P, V) of P clicks at V voxels each.

    filters : (P, W) from `ParticleNet.at`; masks : (P, V, 8) mask features; relative : (P, V, 3) voxels from the click
    """
    place = relative / _UNIT
    x = torch.cat([masks, place, place.square().sum(-1, keepdim=True)], -1)
    sizes = [_INPUTS * _HIDDEN, _HIDDEN, _HIDDEN * _HIDDEN, _HIDDEN, _HIDDEN, 1]
    w1, b1, w2, b2, w3, b3 = torch.split(filters, sizes, 1)
    x = torch.relu(torch.baddbmm(b1[:, None], x, w1.view(-1, _INPUTS, _HIDDEN)))
    x = torch.relu(torch.baddbmm(b2[:, None], x, w2.view(-1, _HIDDEN, _HIDDEN)))
    return torch.baddbmm(b3[:, None], x, w3.view(-1, _HIDDEN, 1))[..., 0]


def load_weights(net: ParticleNet, path: Path) -> None:
    """Take weights of any precision from a safetensors file."""
    # counts of batches are not among them
    net.load_state_dict({name: value.float() for name, value in load_file(path).items()}, strict=False)
