"""Whole runs on object storage that fails, over and over: what was injected, and what was lost.

    python tests/campaigns/object_storage.py [--rounds 3] [--workers 0] [--every 7] [--only KIND …]

A loopback S3 server (moto's, see `tests/s3_server.py`) goes wrong at every Nth request, with one kind of fault a run,
then with all in turn; other runs are stopped by an outage longer than the patience, or by credentials that expire, at
another request each time, and the same command goes on until it gets through. The labels of each run are compared, byte
by byte, with those of an undisturbed run on a local disk. One line a row; the exit code is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mrcfile
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from s3_server import BUCKET, TRANSIENT, Storage, after, client, environment, every

import cryosam_dask as cs
from cryosam_dask.errors import StoreError
from cryosam_dask.pipeline import settings_for
from cryosam_dask.storage import filesystem
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore

CLICK = [11.0, 11.0, 11.0]
SETTINGS = settings_for("texture+random-walker", {"match.ratios": [4], "match.rank": "similarity", "match.count": 2})
MOST_STOPS = 60


def specks(path: Path) -> None:
    """A tomogram of 24 × 32 × 36 voxels with two balls."""
    z, y, x = np.indices((24, 32, 36))
    values = np.random.default_rng(0).normal(size=z.shape)
    for a, b, c in ((11, 11, 11), (12, 20, 26)):
        values += 3.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 25)
    with mrcfile.new(path, values.astype(np.float32)) as file:
        file.voxel_size = 10


def labels(url: str) -> bytes:
    return RunStore.open(url).read(layout.labels("particle")).tobytes()


@contextlib.contextmanager
def patience(seconds: float | None) -> Iterator[None]:
    if seconds is not None:
        os.environ["CRYOSAM_STORAGE_PATIENCE"] = str(seconds)
    try:
        yield
    finally:
        os.environ.pop("CRYOSAM_STORAGE_PATIENCE", None)


def through(storage: Storage, tomogram: str, url: str, kind: str, step: int, workers: int) -> tuple[int, int, int]:
    """A run through faults: injected, requests, stops."""
    before = storage.requests
    kinds = TRANSIENT if kind == "all in turn" else (kind,)
    with storage.failing(every(step, kinds)) as injected:
        cs.run(tomogram, [CLICK], url, settings=SETTINGS, workers=workers)
    return injected.total(), storage.requests - before, 0


def stopped(
    storage: Storage, tomogram: str, url: str, kind: str, rng: random.Random, workers: int
) -> tuple[int, int, int]:
    """A run that is stopped again and again, each time after other requests: injected, requests, stops."""
    before, injected, stops = storage.requests, 0, 0
    while True:
        filesystem.forget()
        with patience(0.5), storage.failing(after(rng.randrange(60, 700), kind)) as counted:
            try:
                cs.run(tomogram, [CLICK], url, settings=SETTINGS, workers=workers)
                return injected + counted.total(), storage.requests - before, stops
            except StoreError as error:
                injected, stops = injected + counted.total(), stops + 1
                if "\n" in str(error) or stops > MOST_STOPS:
                    sys.exit(f"stopped {stops} times, the last with: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--workers", default=0, type=int)
    parser.add_argument("--every", default=7, type=int)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--only", nargs="*", help="faults, as the table calls them")
    options = parser.parse_args()
    storage = Storage()
    os.environ.update(environment(storage.url))
    s3 = client(storage.url)
    s3.create_bucket(Bucket=BUCKET)
    rng, lost = random.Random(options.seed), 0
    print(f"{'fault':28} {'runs':>5} {'injected':>9} {'requests':>9} {'stops':>6} {'seconds':>8} {'lost':>5}")
    with tempfile.TemporaryDirectory() as folder:
        specks(Path(folder, "specks.mrc"))
        cs.run(Path(folder, "specks.mrc"), [CLICK], Path(folder, "run.zarr"), settings=SETTINGS, workers=0)
        expected = labels(str(Path(folder, "run.zarr")))
        s3.upload_file(str(Path(folder, "specks.mrc")), BUCKET, "specks.mrc")
        rows = [*TRANSIENT, "all in turn", "outage (503)", "outage (no connection)", "credentials expire"]
        stopping = {
            "outage (503)": "slow down",
            "outage (no connection)": "reset",
            "credentials expire": "expired",
        }
        for row in rows:
            if options.only and row not in options.only:
                continue
            sums, began, wrong = [0, 0, 0], time.monotonic(), 0
            for turn in range(options.rounds):
                url, tomogram = f"s3://{BUCKET}/{row.replace(' ', '-')}-{turn}.zarr", f"s3://{BUCKET}/specks.mrc"
                filesystem.forget()
                if row in stopping:
                    found = stopped(storage, tomogram, url, stopping[row], rng, options.workers)
                else:
                    found = through(storage, tomogram, url, row, options.every + turn, options.workers)
                sums = [a + b for a, b in zip(sums, found, strict=True)]
                wrong += labels(url) != expected
            lost += wrong
            seconds = time.monotonic() - began
            print(
                f"{row:28} {options.rounds:5} {sums[0]:9} {sums[1]:9} {sums[2]:6} {seconds:8.0f} {wrong:5}", flush=True
            )
    filesystem.forget()
    storage.close()
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
