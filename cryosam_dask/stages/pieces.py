"""Pieces: masks of an extended structure → instances, each of all pieces that overlap or touch (`stages.select`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.kernels import merging
from cryosam_dask.types import Bool

if TYPE_CHECKING:
    import pandas as pd

DUPLICATE = 0.95
"""A piece with more than this share of its voxels inside a better one adds nothing."""

Mask = Callable[[int], Bool]
"""Gives the mask of a piece in its box."""


def bodies(boxes: NDArray[np.int64], mask: Mask, prompted: Bool, shortest: float) -> NDArray[np.int64]:
    """Number of the instance that each of (n,) pieces is of, from 0; −1 for pieces of what ends too soon.

    boxes : (n, 6) z0 y0 x0 z1 y1 x1; prompted : (n,) which a user clicked on; their instances stay
    shortest : voxels of the longest side of an instance's box, at least
    """
    numbers = merging.joined(boxes, mask)
    for body in range(int(numbers.max(initial=-1)) + 1):
        own = numbers == body
        longest = (boxes[own, 3:].max(0) - boxes[own, :3].min(0)).max()
        if longest < shortest and not prompted[own].any():
            numbers[own] = -1
    lasting = numbers >= 0
    numbers[lasting] = np.unique(numbers[lasting], return_inverse=True)[1]
    return numbers


def joined(
    rows: pd.DataFrame, numbers: NDArray[np.int64], boxes: NDArray[np.int64], mask: Mask
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """The picks of instances that are joined from pieces, best first, and the label of each piece.

    Position and size are those of the union. Score, similarity and quality are the pieces' means, weighted by their
    sizes; `group` and `member` are those of the best piece.

    rows : (n > 0) picks of the pieces, best first; numbers : (n,) the instance of each, from 0; boxes : (n, 6)
    """
    import pandas as pd

    out = []
    for body in range(int(numbers.max()) + 1):
        own = np.flatnonzero(numbers == body)
        pieces = rows.iloc[own]
        size, centre = merging.union(boxes[own], lambda i, own=own: mask(int(own[i])))  # type: ignore[misc]
        row = pieces.iloc[0].to_dict() | dict(zip(("z", "y", "x"), centre.tolist(), strict=True))
        for column in ("score", "similarity", "quality"):
            row[column] = np.average(pieces[column], weights=pieces["size"])
        out.append(row | {"size": size, "prompted": pieces["prompted"].max()})
    table = pd.DataFrame(out).astype(rows.dtypes)
    order = np.argsort(-table["score"].to_numpy(), kind="stable")
    table = table.iloc[order].reset_index(drop=True)
    table["instance"] = np.arange(1, len(table) + 1)
    labels = np.empty(len(table), np.int64)
    labels[order] = table["instance"]
    return table, labels[numbers]
