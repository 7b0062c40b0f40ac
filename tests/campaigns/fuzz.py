"""Fuzz the readers of inputs: every file is read right, or refused in one printable line.

    python tests/campaigns/fuzz.py                                     # all readers, 20,000 cases of each
    python tests/campaigns/fuzz.py --reader mrc --runs 200000 --seconds 300 --seed 1
    python tests/campaigns/fuzz.py --reader omezarr --engine random    # without coverage: no package needed
    python tests/campaigns/fuzz.py --reader csv --case 6036            # one case of the random engine

What must hold of a case stands in `tests/io/damage.py`: no other exception, no warning, no more than two seconds, no
allocation out of proportion to the file, nothing executed, and where it is read, the voxels and points that a second
reader finds. Anything else counts under `other`, which must be 0; such inputs are kept (`--keep FOLDER`), and the exit
status is 1.

Coverage guides the search by default, with libFuzzer (`pip install atheris`): half of the cases are sound files with
structured damage, whose choices the fuzzer makes, half are bytes as they come. Each reader runs in a process of its
own with 8 GiB of address space, so that a crash or an allocation that the system would grant is found too.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

READERS = ("mrc", "star", "csv", "omezarr", "gz", "tiff", "hdf5", "npy", "npz")
READERS += ("xyz", "dynamo", "em", "stopgap", "pytom", "eman2", "cryolo", "cryosparc")
ADDRESS_SPACE = 8 << 30
HANG = 30  # s after which a case is given up, and counted
_IO = Path(__file__).parent.parent / "io"


@dataclass
class Tally:
    """What came of the cases so far."""

    cases: int = 0
    accepted: int = 0
    refused: int = 0
    other: list[str] = field(default_factory=list)
    allocated: int = 0
    slowest: float = 0.0


class Choices(random.Random):
    """A generator whose numbers are a fuzzer's bytes, then zeros."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self.data, self.place = data, 0

    def getrandbits(self, k: int) -> int:
        count = (k + 7) // 8
        taken = self.data[self.place : self.place + count].ljust(count, b"\0")
        self.place += count
        return int.from_bytes(taken, "little") >> (8 * count - k)

    def random(self) -> float:
        return self.getrandbits(16) / 2**16


class Worker:
    """One reader's cases in this process; the tally is written where the parent finds it whatever happens."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.tally = arguments, Tally()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.start, self.kinds = 0.0, Counter[str]()

    def save(self) -> None:
        self.arguments.tally.write_text(json.dumps(asdict(self.tally)))

    def case(self, name: str, make: Callable[[Path], Path]) -> None:
        """Make an input in the folder, examine it, and count what came of it."""
        import damage

        self.start = self.start or time.monotonic()  # the instrumented import is not part of the time asked for
        self.tally.cases += 1
        path = None
        try:
            path = make(self.folder)
            outcome = damage.examine(self.arguments.reader, path)
        except Exception as error:  # noqa: BLE001
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            kind = f"{what} ({Path(where.filename).name}:{where.lineno})"
            self.kinds[kind] += 1
            if self.kinds[kind] <= 3:
                kept = self.arguments.keep / f"{self.arguments.reader}-{self.tally.cases}"
                if path is not None and path.exists():
                    kept.mkdir(parents=True, exist_ok=True)
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, kept / path.name)
                self.tally.other.append(f"{name}: {kind}; kept in {kept}")
            else:
                self.tally.other.append(f"{name}: again {kind}")
            self.save()
        else:
            self.tally.accepted += outcome.refused is None
            self.tally.refused += outcome.refused is not None
            self.tally.allocated = max(self.tally.allocated, outcome.allocated)
            self.tally.slowest = max(self.tally.slowest, outcome.seconds)
        for left in self.folder.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        if self.tally.cases % 100 == 0 or self.done():
            self.save()

    def done(self) -> bool:
        asked = self.arguments
        return self.tally.cases >= asked.runs or bool(
            asked.seconds and self.start and time.monotonic() - self.start > asked.seconds
        )

    def run_random(self) -> None:
        import damage
        import damage_points  # noqa: F401

        make = damage.MAKERS[self.arguments.reader]
        seed = self.arguments.first
        while not self.done():
            self.arguments.current.write_text(str(seed))
            faulthandler.dump_traceback_later(HANG, exit=True)
            self.case(f"seed {seed}", lambda folder, seed=seed: make(random.Random(seed), folder))
            seed += 1
        faulthandler.cancel_dump_traceback_later()

    def run_coverage(self) -> None:
        import atheris

        with atheris.instrument_imports(include=["cryosam_dask.io", "zarr.core.metadata", "zarr.codecs"]):
            import damage
            import damage_points

        names = {"omezarr": "tomo.zarr", "gz": "tomo.mrc.gz", "tiff": "tomo.tif"}
        names |= {kind: f"points{end}" for kind, end in damage_points.SUFFIXES.items()}
        make = damage.MAKERS[self.arguments.reader]
        corpus = self.folder.with_name(f"{self.folder.name}-corpus")
        _seeds(corpus, self.arguments)

        def made(data: bytes, folder: Path) -> Path:
            if not data or data[0] % 2:
                return make(Choices(data[1:]), folder)
            path = folder / names.get(self.arguments.reader, f"tomo.{self.arguments.reader}")
            if self.arguments.reader == "omezarr":
                return _one_file(Choices(data[1:9]), data[9:], path)
            path.write_bytes(data[1:])
            return path

        def one(data: bytes) -> None:
            self.case(f"input {self.tally.cases + 1}", lambda folder: made(data, folder))
            if self.done():
                self.clean(corpus)
                os._exit(0)  # the way out of libFuzzer that does not count as a crash

        flags = [f"-seed={self.arguments.first + 1}", f"-timeout={HANG}", "-rss_limit_mb=6000", "-max_len=6000"]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], one)
        atheris.Fuzz()

    def clean(self, *more: Path) -> None:
        for folder in (self.folder, *more):
            shutil.rmtree(folder, ignore_errors=True)


def _one_file(r: random.Random, content: bytes, path: Path) -> Path:
    """A sound image, one of whose files has other content."""
    import damage

    files = dict(r.choice(damage.sound_images()))
    files[r.choice(sorted(files))] = content
    for name, raw in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(raw)
    return path


def _seeds(corpus: Path, arguments: argparse.Namespace) -> None:
    """What the fuzzer starts from: random choices, and sound files as they are."""
    import damage

    corpus.mkdir()
    r = random.Random(arguments.first)
    for number in range(100):
        (corpus / f"choices{number}").write_bytes(b"\1" + r.randbytes(r.choice((20, 100, 400))))
    if arguments.reader == "omezarr":
        for number, files in enumerate(damage.sound_images()):
            for place, name in enumerate(sorted(files)):
                choice = bytes([number << 3 & 255, place << 3 & 255]).ljust(8, b"\0")
                (corpus / f"file{number}-{place}").write_bytes(b"\0" + choice + files[name])
        return
    with tempfile.TemporaryDirectory() as name:
        for number in range(50):
            path = damage.MAKERS[arguments.reader](random.Random(number), Path(name))
            (corpus / f"file{number}").write_bytes(b"\0" + path.read_bytes())


def work(arguments: argparse.Namespace) -> None:
    """The child's part: limit itself, run, write the tally."""
    sys.path[:0] = [str(_IO), str(_IO.parent.parent)]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    import tracemalloc

    tracemalloc.start()
    worker = Worker(arguments)
    worker.run_coverage() if arguments.engine == "coverage" else worker.run_random()
    worker.clean()


def run_reader(reader: str, asked: argparse.Namespace) -> tuple[Tally, str]:
    """All cases of a reader, in as many processes as crash; with the branches of Python code that were covered."""
    total, first, edges, start = Tally(), asked.seed, "", time.monotonic()
    while total.cases < asked.runs:
        left = asked.seconds - (time.monotonic() - start) if asked.seconds else 0
        if asked.seconds and left <= 0:
            break
        with tempfile.TemporaryDirectory() as name:
            tally, current = Path(name, "tally"), Path(name, "current")
            command = [
                sys.executable,
                __file__,
                "--worker",
                "--reader",
                reader,
                "--engine",
                asked.engine,
                "--tally",
                tally,
            ]
            command += ["--current", current, "--runs", asked.runs - total.cases, "--seconds", left, "--first", first]
            command += ["--keep", asked.keep]
            ended = subprocess.run(
                list(map(str, command)), capture_output=True, text=True, errors="replace", check=False
            )
            part = Tally(**json.loads(tally.read_text())) if tally.exists() else Tally()
            at = current.read_text() if current.exists() else "?"
        if ended.returncode:
            code = ended.returncode
            how = signal.Signals(-code).name if code < 0 else f"status {code}"
            lines = [line for line in ended.stderr.splitlines() if line.strip()]
            part.other.append(f"the process ended with {how} at seed {at}: {' / '.join(lines[:12])[:1200]}")
            part.cases += 1
        total = Tally(
            total.cases + part.cases,
            total.accepted + part.accepted,
            total.refused + part.refused,
            total.other + part.other,
            max(total.allocated, part.allocated),
            max(total.slowest, part.slowest),
        )
        covered = [line.split("cov: ")[1].split()[0] for line in ended.stderr.splitlines() if "cov: " in line]
        edges = covered[-1] if covered else edges
        if not ended.returncode or len(total.other) > 20:
            break
        first = int(at) + 1 if at.isdecimal() else first + 1
    return total, edges


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=READERS, action="append", help="one or more; all of them without it")
    parser.add_argument("--runs", type=int, default=20_000, help="cases of each reader")
    parser.add_argument("--seconds", type=float, default=0, help="at most this long for each reader; 0: no limit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("coverage", "random"), default="coverage")
    parser.add_argument("--case", type=int, help="one seed of the random engine, in this process")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir(), "fuzz-found"))
    for name, kind in (("tally", Path), ("current", Path), ("first", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def one_case(reader: str, seed: int) -> None:
    sys.path[:0] = [str(_IO), str(_IO.parent.parent)]
    import damage
    import damage_points  # noqa: F401

    with tempfile.TemporaryDirectory() as folder, damage.traced():
        print(damage.examine(reader, damage.MAKERS[reader](random.Random(seed), Path(folder))))


def main() -> int:
    asked: Any = parse()
    readers = asked.reader or list(READERS)
    if asked.worker:
        asked.reader = readers[0]
        work(asked)
        return 0
    if asked.case is not None:
        one_case(readers[0], asked.case)
        return 0
    if asked.engine == "coverage" and importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (pip install atheris): random cases instead of coverage-guided ones")
        asked.engine = "random"
    names = ("cases", "read", "refused", "other", "MB", "s", "edges")
    print(f"{'reader':9} {'engine':8} {' '.join(f'{name:>8}' for name in names)}")
    found: list[str] = []
    for reader in readers:
        tally, edges = run_reader(reader, asked)
        counts = (tally.cases, tally.accepted, tally.refused, len(tally.other))
        figures = f"{tally.allocated / 1e6:8.1f} {tally.slowest:8.3f} {edges:>8}"
        print(f"{reader:9} {asked.engine:8} {' '.join(f'{n:8}' for n in counts)} {figures}", flush=True)
        found += [f"{reader}: {line}" for line in tally.other]
    print("MB: the largest allocation of a case, s: the slowest case, edges: covered in Python code")
    print(*found[:40], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
