"""Check that reading a TIFF's structure takes bounded memory and time, before tifffile reads it.

tifffile trusts a file's tags: it allocates as many values as a tag claims to have, and multiplies values that should be
numbers. So the list of pages is walked here first, by the words of TIFF 6.0 (section 2) and BigTIFF.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError

_MOST_PAGES, _MOST_TAGS = 1 << 16, 512
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WHOLE = (1, 3, 4, 16)
_ONE_NUMBER = (256, 257, 259, 262, 266, 277, 278, 284, 296, 317, 322, 323, 32997, 32998)
"""Width, length, compression, photometric, fill order, samples, strips, planes, unit, predictor, tiles, depths."""
_ONE_EACH = (258, 339)  # a number for each sample: bits, format
_PLACES = (273, 279, 324, 325, 330)  # strips and tiles, with their sizes; pages below this one
_BELOW = 330


def check_structure(path: Path, file: io.FileIO, size: int) -> None:
    """Raise InputError unless all pages and their tags lie in the file of `size` bytes, and are of the usual kinds."""
    head = file.read(16)
    order = "<" if head.startswith(b"II") else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    word = np.dtype(f"{order}u8" if big else f"{order}u4")
    entry = np.dtype([("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", word), ("value", word)])
    counted = np.dtype(f"{order}u8" if big else f"{order}u2")
    waiting = [int(np.frombuffer(head[8 if big else 4 :][: word.itemsize].ljust(word.itemsize, b"\0"), word)[0])]
    seen: set[int] = set()
    while waiting:
        at = waiting.pop()
        if at == 0:
            continue
        where = f"{path}: damaged TIFF: page {len(seen)} at byte {at}"
        if at in seen or len(seen) >= _MOST_PAGES:
            raise InputError(f"{where}: {'listed twice' if at in seen else 'too many pages'}")
        seen.add(at)
        if at + counted.itemsize > size:
            raise InputError(f"{path}: truncated: page {len(seen) - 1} is described at byte {at}, the file has {size}")
        file.seek(at)
        count = int(np.frombuffer(file.read(counted.itemsize), counted)[0])
        if count > _MOST_TAGS:
            raise InputError(f"{where}: {count} tags")
        raw = file.read(count * entry.itemsize + word.itemsize)
        if len(raw) < count * entry.itemsize:
            raise InputError(
                f"{path}: truncated: page {len(seen) - 1} at byte {at} ends beyond the file's {size} bytes"
            )
        tags = np.frombuffer(raw, entry, count)
        _check_tags(where, tags, size)
        follows = raw[count * entry.itemsize :]
        waiting.append(int(np.frombuffer(follows, word)[0]) if len(follows) == word.itemsize else 0)
        waiting += _below(file, tags, order, size)


def _check_tags(where: str, tags: np.ndarray, size: int) -> None:
    for tag, kind, count in zip(tags["tag"].tolist(), tags["type"].tolist(), tags["count"].tolist(), strict=True):
        if count * _SIZES.get(kind, 1) > size:
            raise InputError(f"{where}: tag {tag} with {count} values, more than the file has bytes")
        if tag in _ONE_NUMBER and (kind not in _WHOLE or count != 1):
            raise InputError(f"{where}: tag {tag} is not one number")
        if (tag in _ONE_EACH and (kind not in _WHOLE or not 0 < count <= 64)) or (
            tag in _PLACES and kind not in (*_WHOLE, 13, 18)
        ):
            raise InputError(f"{where}: tag {tag} holds no numbers")


def _below(file: io.FileIO, tags: np.ndarray, order: str, size: int) -> list[int]:
    """Places of a page's sub-pages, such as coarser levels."""
    places: list[int] = []
    for tag in tags[tags["tag"] == _BELOW]:
        item, count = _SIZES[int(tag["type"])], int(tag["count"])
        raw = tag["value"].tobytes()
        if count * item > len(raw):
            file.seek(min(int(tag["value"]), size))
            raw = file.read(count * item)
        places += np.frombuffer(raw, f"{order}u{item}", min(count, len(raw) // item)).tolist()
    return places
