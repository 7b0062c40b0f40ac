"""Thousands of faults in what a driver writes: killed, disk full, flipped bits, a disk that is full indeed.

    python tests/campaigns/driver.py [--every N] [--flips N] [--only kill,full,mark,flip,disk] [--seed N]

Each case breaks a run of a tiny tomogram once, gives the same command again, and compares all chunks with those of a
run that nothing has disturbed, bit for bit. A table is printed: the fault, how often it was injected, in how many cases
anything was lost or wrong, and how many finished units ran again (both must be nothing). `--every 1` goes through all
file operations of a run, some thousands, at about a second each; "disk" needs root, for it mounts a small tmpfs.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

import test_driver as tiny
from writes import Outcome, Step, digests, run

from cryosam_dask.pipeline import integrity
from cryosam_dask.store.arrays import chunk_of

FAULTS = ("kill", "full", "mark", "flip", "disk")


@dataclass
class Row:
    """One line of the table."""

    fault: str
    injected: int = 0
    lost: int = 0
    again: int = 0
    cases: list[str] = field(default_factory=list)

    def bad(self, case: str, why: str) -> None:
        self.lost += 1
        self.cases.append(f"{self.fault} {case}: {why}")


@dataclass(frozen=True)
class Bench:
    """Where it happens: the tomogram, the undisturbed run with its digests, and how many file operations that took."""

    folder: Path
    tomogram: Path
    undisturbed: Path
    expected: dict[str, str]
    operations: int

    def words(self, out: Path) -> list[str]:
        return tiny.arguments(self.tomogram, out)


def prepare(folder: Path) -> Bench:
    tomogram = tiny.make_tomogram(folder / "tiny.mrc", 0)
    out = folder / "undisturbed.zarr"
    (outcome,) = run([Step(tiny.arguments(tomogram, out), str(out))])
    assert outcome.code == 0, outcome.error
    return Bench(folder, tomogram, out, outcome.digest, outcome.operations)


def broken(bench: Bench, row: Row, places: Iterator[tuple[str, int]], do: str) -> None:
    """Break fresh runs, one at each place, and go on."""
    for path, at in places:
        out = bench.folder / "run.zarr"
        shutil.rmtree(out, ignore_errors=True)
        first, last = run([Step(bench.words(out), str(out), do, at, path), Step(bench.words(out), str(out))])
        if first.code == 0:
            return  # beyond the last operation
        row.injected += 1
        row.again += len(last.again)
        case = f"{at} of {path}"
        if do == "full" and not in_one_line(first):
            row.bad(case, first.error)
        elif last.code != 0:
            row.bad(case, last.error)
        elif last.digest != bench.expected:
            row.bad(case, f"{len(different(last.digest, bench.expected))} files differ")
        say(row)


def in_one_line(outcome: Outcome) -> bool:
    lines = [line for line in outcome.error.splitlines() if line]
    return outcome.code == 2 and "Traceback" not in outcome.error and lines[-1].startswith("cryosam: error: ")


def different(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(path for path in {*one, *other} if one.get(path) != other.get(path))


def flipped(bench: Bench, row: Row, count: int, chosen: random.Random) -> None:
    """One bit in one chunk: exactly it is named, and made again unless it is a plane that nothing waits for."""
    out = bench.folder / "run.zarr"
    keys = [path for path in bench.expected if chunk_of(path) and not path.startswith("marks/")]
    for _ in range(count):
        key = chosen.choice(keys)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(bench.undisturbed, out)
        data = bytearray((out / key).read_bytes())
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        (out / key).write_bytes(data)
        row.injected += 1
        report = integrity.verify(out)
        if [(damage.array, damage.chunk) for damage in report.damages] != [chunk_of(key)]:
            row.bad(key, f"named {[damage.words for damage in report.damages]}")
            continue
        repaired = integrity.repair(out, report)
        (last,) = run([Step(bench.words(out), str(out))])
        row.again += len(last.again)
        left = [path for path in different(last.digest, bench.expected) if not is_plane(path, key)]
        if last.code or left or repaired.left:
            row.bad(key, f"{last.error} {left[:3]} {repaired.left}")
        say(row)


def is_plane(path: str, key: str) -> bool:
    """Embeddings are made when a prompt comes to them; a finished run needs none."""
    return key.startswith("embeddings/") and (path == key or path.startswith("marks/embeddings/c/"))


def full_disk(bench: Bench, row: Row) -> None:
    """A tmpfs that grows by a little each time the command has met its end."""
    place = bench.folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True)
    try:
        out = place / "run.zarr"
        for size in range(64, 1 << 16, 256):
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(place)], check=True)
            (outcome,) = run([Step(bench.words(out), str(out))])
            row.again += len(outcome.again)
            if outcome.code == 0:
                break
            row.injected += 1
            if not in_one_line(outcome):
                row.bad(f"{size} kB", outcome.error)
            say(row)
        if digests(str(out)) != bench.expected:
            row.bad("at the end", f"{len(different(digests(str(out)), bench.expected))} files differ")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def say(row: Row) -> None:
    if row.injected % 25 == 0:
        print(f"  {row.fault}: {row.injected} injected, {row.lost} lost", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--every", type=int, default=97, help="of the file operations of a run, every Nth (97)")
    parser.add_argument("--flips", type=int, default=50, help="flipped bits (50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(FAULTS), help=f"of {','.join(FAULTS)}")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(Path(folder))
        every = [("*", at) for at in range(1 + given.seed % given.every, bench.operations, given.every)]
        # a mark is two operations: its file under another name, and the name
        marks = [("marks/*/c/*", at) for at in range(1, 1 << 12, max(1, given.every // 20))]
        tasks: dict[str, tuple[str, Callable[[Row], None]]] = {
            "kill": ("driver killed at a file operation", lambda row: broken(bench, row, iter(every), "kill")),
            "full": ("disk full from a file operation on", lambda row: broken(bench, row, iter(every), "full")),
            "mark": ("driver killed as a unit is marked", lambda row: broken(bench, row, iter(marks), "kill")),
            "flip": ("bit flipped in a chunk", lambda r: flipped(bench, r, given.flips, random.Random(given.seed))),
            "disk": ("disk full indeed (tmpfs)", lambda row: full_disk(bench, row)),
        }
        for name in given.only.split(","):
            words, task = tasks[name]
            rows.append(Row(words))
            start = time.monotonic()
            task(rows[-1])
            print(f"  {words}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    print(f"{'fault':36} {'injected':>8} {'lost or wrong':>13} {'run again':>9}")
    for row in rows:
        print(f"{row.fault:36} {row.injected:8} {row.lost:13} {row.again:9}")
    for row in rows:
        print(*row.cases, sep="\n", end="\n" if row.cases else "")
    sys.exit(any(row.lost or row.again for row in rows))


if __name__ == "__main__":
    main()
