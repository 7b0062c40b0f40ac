"""What reading slices costs by the tomogram's chunks: slabs of each view, single thick planes, and writing them.

    python tests/benchmarks/chunks.py [--shape 96,928,960] [--layouts 32,64,64 32,32,32/32,256,256] [--repeats 2]

A layout is the shape of a chunk, and of a shard where chunks are bundled in one. Data are float32 noise on the local
disk, with the codecs of a run. Prints one JSON line: for each layout the seconds of writing, boxes of the ingest one
after the other; for each view and number of slices in a unit, the seconds of reading all of its units (from a part),
without neighbours and with two on either side; milliseconds of a plane with two neighbours on either side, the number
of objects and the bytes. `processor` are processor seconds of all threads, `wall` is time. With `--concurrency` the
first layout is also read with other numbers of requests that zarr has under way.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from cryosam_dask import geometry
from cryosam_dask.store import layout
from cryosam_dask.types import AXES, Axis, Float32, Shape3

Numbers = tuple[int, ...]
PARTS = 3
REACH = 2


def numbers(text: str) -> Numbers:
    return tuple(int(n) for n in text.split(","))


def timed(run: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Least processor and wall seconds."""
    rows = []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        run()
        rows.append((time.process_time() - processor, time.perf_counter() - wall))
    processor, wall = np.min(rows, axis=0).tolist()
    return {"processor": round(processor, 4), "wall": round(wall, 4)}


def create(path: str, shape: Shape3, text: str) -> zarr.Array[Any]:
    chunks, _, shards = text.partition("/")
    return zarr.create_array(
        path,
        shape=shape,
        dtype="f4",
        chunks=numbers(chunks),
        shards=numbers(shards) if shards else None,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        config={"write_empty_chunks": True},
    )


def write(array: zarr.Array[Any], volume: Float32) -> None:
    for box in layout.image_boxes(volume.shape):
        array[geometry.box_slices(box)] = volume[geometry.box_slices(box)]


def read(array: zarr.Array[Any], axis: Axis, units: list[tuple[int, int]], reach: int) -> None:
    index = geometry.axis_index(axis)
    for start, stop in units:
        part = [slice(None)] * 3
        part[index] = slice(max(start - reach, 0), min(stop + reach, array.shape[index]))
        array[tuple(part)]


def reading(array: zarr.Array[Any], axis: Axis, size: int, reach: int, repeats: int) -> dict[str, float]:
    """Seconds of reading all units of a view, from those of one stretch of chunks in the middle."""
    length = array.shape[geometry.axis_index(axis)]
    stretch = min(64, length)
    first = max(0, length // 2 // 64 * 64)
    first = first if first + stretch <= length else 0
    units = [(first + a, first + b) for a, b in geometry.slabs(stretch, size)]
    found = timed(lambda: read(array, axis, units, reach), repeats)
    return {name: round(seconds * length / stretch, 3) for name, seconds in found.items()}


def measure(array: zarr.Array[Any], repeats: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for axis in AXES:
        for size in (16, 32):
            for reach in (0, REACH):
                row[f"{axis}{size}+{reach}"] = reading(array, axis, size, reach, repeats)
        length = array.shape[geometry.axis_index(axis)]
        planes = [(i, i + 1) for i in np.linspace(3, length - 4, PARTS).astype(int).tolist()]
        plane = timed(lambda a=axis, p=planes: read(array, a, p, REACH), repeats)  # type: ignore[misc]
        row[f"{axis}_plane_ms"] = {name: round(seconds / PARTS * 1000, 1) for name, seconds in plane.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="96,928,960", type=numbers)
    parser.add_argument("--layouts", nargs="+", default=["32,64,64", "32,32,32", "64,64,64", "32,32,32/32,256,256"])
    parser.add_argument("--concurrency", nargs="*", type=int, default=[])
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    volume = np.random.default_rng(0).standard_normal(options.shape, np.float32)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, text in enumerate(options.layouts):
            path = Path(folder) / f"{index}.zarr"
            array = create(str(path), options.shape, text)
            row: dict[str, Any] = {"write": timed(lambda a=array: write(a, volume), 1)}  # type: ignore[misc]
            files = [file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json"]
            row |= {"objects": len(files), "bytes": sum(file.stat().st_size for file in files)}
            rows[text] = row | measure(array, options.repeats)
        for count in options.concurrency:
            with zarr.config.set({"async.concurrency": count}):
                again = zarr.open_array(f"{folder}/0.zarr", mode="r")
                rows[f"{options.layouts[0]} concurrency {count}"] = measure(again, options.repeats)
    print(json.dumps({"shape": options.shape, "voxels": math.prod(options.shape), "layouts": rows}))


if __name__ == "__main__":
    main()
