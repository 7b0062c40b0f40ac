"""How fast latents are written and read, by codec, chunk, shard and concurrency.

    python tests/benchmarks/latents.py --tokens 66,68 --channels 1024 [--slices 64]

Reads whole slabs of 16 slices, as naive matching does, and squares of 8 × 8 tokens of a slab, as hierarchical matching
and pooling do. Latents are normally distributed float16, as the last layer norm of a vision transformer leaves them.
Prints one JSON line: for each layout MB/s of latents (best of `--repeats`), CPU seconds per GB, and stored / raw bytes.
"as it is" is how runs store latents: frames of Zstandard whose blocks are raw.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from cryosam_dask.store import whole_chunks
from cryosam_dask.store.arrays import RunArray
from cryosam_dask.types import Array

SLAB = 16
AS_IT_IS = "as it is"
CODECS: dict[str, list[Any]] = {
    "none": [Crc32cCodec()],
    AS_IT_IS: [ZstdCodec(level=whole_chunks.LEVEL), Crc32cCodec()],
    "lz4": [BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle"), Crc32cCodec()],
    "zstd 1": [ZstdCodec(level=1), Crc32cCodec()],
    "lz4, bytes shuffled": [BloscCodec(cname="lz4", clevel=1, shuffle="shuffle"), Crc32cCodec()],
    "zstd 1, bytes shuffled": [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec()],
    "zstd 1, bits shuffled": [BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()],
}


def best(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """The least wall time of several, and the least CPU time."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def measure(folder: Path, latents: Array, codec: str, side: int, shard: int, concurrency: int, repeats: int) -> Any:
    """One layout's figures; `shard` is the side of a shard in chunks, 0 for none."""
    shutil.rmtree(folder, ignore_errors=True)
    chunk = (SLAB, side, side, latents.shape[-1])
    shards = (SLAB, side * shard, side * shard, latents.shape[-1]) if shard else None
    with zarr.config.set({"async.concurrency": concurrency}):
        array = zarr.create_array(
            folder,
            shape=latents.shape,
            dtype="f2",
            chunks=chunk,
            shards=shards,
            compressors=CODECS[codec],
            config={"write_empty_chunks": True},
        )
        if codec == AS_IT_IS:
            array = RunArray(array, str(folder))

        def write() -> None:
            for start in range(0, len(latents), SLAB):
                array[start : start + SLAB] = latents[start : start + SLAB]

        def read() -> None:
            for start in range(0, len(latents), SLAB):
                array[start : start + SLAB]

        squares = [(s, r) for s in range(0, len(latents), SLAB) for r in range(0, latents.shape[1] - 7, 8)]

        def pick() -> None:
            for start, row in squares:
                array[start : start + SLAB, row : row + 8, 16:24]

        written, read_, picked = best(write, repeats), best(read, repeats), best(pick, repeats)
    stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    megabytes = latents.nbytes / 1e6
    part = megabytes * len(squares) * SLAB * 64 / np.prod(latents.shape[:3])
    return {
        "codec": codec,
        "chunk": chunk[:3],
        "shard": shard,
        "concurrency": concurrency,
        "write_mb_s": round(megabytes / written[0]),
        "write_cpu_s_per_gb": round(1000 * written[1] / megabytes, 2),
        "read_mb_s": round(megabytes / read_[0]),
        "read_cpu_s_per_gb": round(1000 * read_[1] / megabytes, 2),
        "squares_mb_s": round(part / picked[0]),
        "stored": round(stored / latents.nbytes, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="66,68")
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--slices", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-codecs", action="store_true", help="no other chunks, shards and concurrencies")
    options = parser.parse_args()
    rows, columns = (int(n) for n in options.tokens.split(","))
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((options.slices, rows, columns, options.channels), np.float32).astype("f2")
    layouts = [
        *((codec, 8, 0, 10) for codec in CODECS),
        *(("zstd 1", side, 0, 10) for side in (4, 16, 32)),
        *(("zstd 1", 4, shard, 10) for shard in (4, 17)),
        *(("zstd 1", 8, 0, concurrency) for concurrency in (1, 4, 32)),
    ]
    layouts = layouts[: len(CODECS)] if options.only_codecs else layouts
    with tempfile.TemporaryDirectory() as scratch:
        found = [measure(Path(scratch) / "latents.zarr", latents, *layout, options.repeats) for layout in layouts]
    print(json.dumps({"latents": latents.shape, "layouts": found}))


if __name__ == "__main__":
    main()
