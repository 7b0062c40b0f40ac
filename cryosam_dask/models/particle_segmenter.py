"""The built-in segmenter of volumes: `particle_net` with its weights, and what it says about a box. Torch is needed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

from cryosam_dask import geometry
from cryosam_dask.models.particle_heads import Cells, Heads
from cryosam_dask.models.particle_net import (
    CLASSES,
    DESCRIPTOR,
    MULTIPLE,
    STRIDE,
    ParticleNet,
    Trunk,
    load_weights,
    mask_logits,
)
from cryosam_dask.models.particle_trunk import folded
from cryosam_dask.types import Answers, Array, Bool, Float32

REACH = 22
"""Voxels around a click that its mask can have."""

LIMIT = 8.0
"""Densities beyond so many deviations count as so many: beads of gold."""

_POOLED = 0.1  # cells of a mask with a lower probability don't enter its descriptor
_CLEAREST = 8  # cells whose centrality says how clear a look is
_AS_GOOD = 0.5  # of the probability of the click's best class
_BESIDE = 2  # cells beside a mask of cells in which its voxels are asked for
_SOME = 64  # clicks that are answered at a time
_Ends = tuple[NDArray[np.int64], NDArray[np.int64]]  # first voxel, and the one after the last
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ParticleSegmenter:
    """A `VolumeSegmenter`.

    Parameters
    ----------
    weights : a safetensors file; device, dtype : where and in what to compute
    """

    name = "particle-net"

    def __init__(self, weights: Path, identity: str, device: str = "cpu", dtype: str = "float32") -> None:
        self.identity = identity
        self._device, self._dtype = torch.device(device), _DTYPES[dtype]
        net = ParticleNet()
        load_weights(net, weights)
        self._net = folded(net).to(self._device).to(memory_format=torch.channels_last_3d)

    def look(self, box: Float32) -> ParticleLook:
        """Look at a box (z, y, x) of standard density, particles bright; see `VolumeSegmenter.look`."""
        shape = np.array(box.shape)
        above = -shape % MULTIPLE
        padded = np.pad(np.clip(box, -LIMIT, LIMIT), [(0, int(n)) for n in above], mode="edge")
        batch = torch.from_numpy(np.ascontiguousarray(padded, np.float32))[None, None].to(self._device)
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32),
        ):
            trunk = self._net.trunk(batch.to(memory_format=torch.channels_last_3d))
        return ParticleLook(self._net, trunk, box.shape)


class ParticleLook:
    """What the network saw in a box; positions are voxels of the box."""

    def __init__(self, net: ParticleNet, trunk: Trunk, shape: tuple[int, ...]) -> None:
        self._net, self._shape = net, np.array(shape)
        self._heads = Heads(net, trunk, tuple(-(-n // STRIDE) for n in shape))
        with torch.inference_mode():
            self._centre = self._heads.centre()

    def centres(self, least: float) -> tuple[NDArray[np.float64], Float32]:
        """Places (n, 3) where an instance seems to have its centre, and how much so (n,), 0 to 1, from `least` on."""
        highest = ndimage.maximum_filter(self._centre, 3, mode="constant")
        cells = np.argwhere((self._centre == highest) & (self._centre >= least))
        return np.asarray(cells * STRIDE + (STRIDE - 1) / 2, float), np.asarray(self._centre[tuple(cells.T)])

    def answer(self, points: Array) -> Answers:
        """Answer clicks; see `Look.answer`. Masks are of cells here: each stands for STRIDE³ voxels."""
        vectors, sizes, middles, kinds = [], [], [], []
        for point, (low, probability) in zip(points, self._probabilities(points, STRIDE), strict=True):
            inside = np.nonzero(probability > _POOLED)
            cells = self._cells(*(i + int(a) // STRIDE for i, a in zip(inside, low, strict=True)))
            weight = torch.from_numpy(probability[inside]).to(self._heads.device)
            pooled = weight @ self._heads.descriptors(cells)
            vectors.append(functional.normalize(pooled[None], eps=1e-6)[0].cpu().numpy())
            mask = _connected(probability > 0.5, np.round((point - low) / STRIDE).astype(np.int64))
            sizes.append(int(mask.sum()) * STRIDE**3)
            where = np.argwhere(mask)
            middles.append(where.mean(0) * STRIDE + low + (STRIDE - 1) / 2 if len(where) else np.asarray(point, float))
            at = cells if len(where) else self._cells(*(np.array([n]) for n in _cell(point, self._heads.cells)))
            kinds.append(self._heads.classes_at(at).mean(0).cpu().numpy())
        return Answers(
            np.asarray(vectors, np.float32).reshape(len(points), DESCRIPTOR),
            self.quality(points),
            np.asarray(sizes, np.int64),
            np.asarray(middles, np.float64).reshape(-1, 3),
            np.asarray(kinds, np.float32).reshape(-1, len(CLASSES)),
        )

    def masks(self, points: Array) -> list[tuple[NDArray[np.int64], Bool]]:
        """The masks of clicks; see `Look.masks`."""
        out: list[tuple[NDArray[np.int64], Bool]] = []
        for some in range(0, len(points), _SOME):
            with torch.inference_mode():
                filters, _ = self._net.at(self._at(points[some : some + _SOME]))
                for point, own in zip(points[some : some + _SOME], filters, strict=True):
                    out.append(self._mask(np.round(point).astype(np.int64), own))
        return out

    def _mask(self, point: NDArray[np.int64], filters: torch.Tensor) -> tuple[NDArray[np.int64], Bool]:
        """The mask of a click: only around what the mask of cells has is it asked for at full resolution, but in the
        whole window where it goes on beyond that."""
        low, high = self._window(point)
        cells = _connected(self._probability(point, filters, STRIDE, (low, high)) > 0.5, (point - low) // STRIDE)
        if cells.any():
            first, last = np.array(geometry.bounds(cells)).T
            near = np.maximum(low, low + STRIDE * (first - _BESIDE)), np.minimum(high, low + STRIDE * (last + _BESIDE))
            if ((point >= near[0]) & (point < near[1])).all():
                mask = self._probability(point, filters, 1, near) > 0.5
                own = _connected(mask, point - near[0])
                if mask[tuple(point - near[0])] and not _goes_on(own, near[0] > low, near[1] < high):
                    return near[0], own
        return low, _connected(self._probability(point, filters, 1, (low, high)) > 0.5, point - low)

    @property
    def clarity(self) -> float:
        """Centrality of the clearest centres over the share of what is no solvent.

        Noise of the wrong contrast looks like much, and nothing in it has a clear centre.
        """
        highest = np.sort(self._centre, axis=None)[-_CLEAREST:]
        return float(highest.mean()) / max(float((1 - self._classes[0]).mean()), 1e-3)

    @cached_property
    def _classes(self) -> torch.Tensor:
        """(6, z, y, x) probabilities of the box's voxels."""
        z, y, x = self._shape
        return self._heads.all_classes()[:, :z, :y, :x]

    def likeness(self, descriptor: Float32, classes: Float32) -> Float32:
        """How like a structure each voxel is; see `Look.likeness`."""
        query = torch.from_numpy(descriptor).to(self._heads.device)
        cosine = self._heads.cosines(query)[None, None]
        fine = functional.interpolate(cosine, scale_factor=STRIDE, mode="trilinear")[0, 0]
        fine = fine[: self._shape[0], : self._shape[1], : self._shape[2]]
        # a class that is half as probable as the best is as good: one click of a small vesicle looks like a tube's
        share = torch.from_numpy(classes / max(_AS_GOOD * float(classes[1:].max()), 1e-6)).clamp(0, 1).to(fine.device)
        share[0] = 0.0
        kind = torch.tensordot(share, self._classes, 1)
        return np.asarray((kind * fine.clamp(0, 1)).cpu().numpy())

    def _cells(self, z: Array, y: Array, x: Array) -> Cells:
        device = self._heads.device
        return torch.from_numpy(z).to(device), torch.from_numpy(y).to(device), torch.from_numpy(x).to(device)

    def _at(self, points: Array) -> torch.Tensor:
        cells = np.round(np.asarray(points)).astype(np.int64) // STRIDE
        return self._heads.features(
            self._cells(*(np.clip(c, 0, n - 1) for c, n in zip(cells.T, self._heads.cells, strict=True)))
        )

    def quality(self, points: Array) -> Float32:
        """The estimates of the masks' IoU; see `Look.quality`."""
        if not len(points):
            return np.empty(0, np.float32)
        with torch.inference_mode():
            return torch.sigmoid(self._net.at(self._at(points))[1]).cpu().numpy()

    def _probabilities(self, points: Array, step: int) -> list[tuple[NDArray[np.int64], Float32]]:
        """For each click the first voxel of a window around it, and the mask's probability at every `step`-th voxel."""
        out: list[tuple[NDArray[np.int64], Float32]] = []
        for some in range(0, len(points), _SOME):
            with torch.inference_mode():
                filters, _ = self._net.at(self._at(points[some : some + _SOME]))
                for point, own in zip(points[some : some + _SOME], filters, strict=True):
                    click = np.round(point).astype(np.int64)
                    window = self._window(click)
                    out.append((window[0], self._probability(click, own, step, window)))
        return out

    def _window(self, point: NDArray[np.int64]) -> _Ends:
        """Where the mask of a click may be."""
        return np.maximum(point - REACH, 0) // STRIDE * STRIDE, np.minimum(point + REACH, self._shape)

    def _probability(self, point: NDArray[np.int64], filters: torch.Tensor, step: int, window: _Ends) -> Float32:
        """The probability of a click's mask at every `step`-th voxel of a window that begins at a cell's first one."""
        low, high = window
        axes = [torch.arange(int(a), int(b), step) for a, b in zip(low, high, strict=True)]
        z, y, x = (slice(int(a) // STRIDE, -(-int(b) // STRIDE)) for a, b in zip(low, high, strict=True))
        values = self._heads.masks((z, y, x), step)[: len(axes[0]), : len(axes[1]), : len(axes[2])]
        values = values.reshape(-1, values.shape[-1])
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3) - torch.from_numpy(point)
        logits = mask_logits(filters[None], values[None], places[None].float().to(values.device))[0]
        shape = tuple(len(a) for a in axes)
        return torch.sigmoid(logits).reshape(shape).cpu().numpy()


def _goes_on(mask: Bool, before: Bool, after: Bool) -> bool:
    """Whether a mask comes to its window's first voxels along an axis of `before`, or to its last ones of `after`."""
    return any(
        bool(mask.take(end, axis).any())
        for end, sides in ((0, before), (-1, after))
        for axis in np.flatnonzero(sides).tolist()
    )


def _cell(point: Array, grid: tuple[int, ...]) -> tuple[int, ...]:
    """The cell that a point lies in."""
    return tuple(min(max(round(float(p)) // STRIDE, 0), n - 1) for p, n in zip(point, grid, strict=True))


def _connected(mask: Bool, point: NDArray[np.int64]) -> Bool:
    """The part of a mask that a point lies in; the largest part where it lies in none."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    here = int(parts[tuple(np.clip(point, 0, np.array(mask.shape) - 1))])
    own: Bool = parts == (here or 1 + int(np.argmax(np.bincount(parts.ravel())[1:])))
    return own
