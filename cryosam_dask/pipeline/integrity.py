"""Check that all that finished units wrote is there and sound, name what is not, and remove it to be made again.

Each chunk has a checksum, and each array's path says which unit of which stage wrote it (`stages.origin`). So repairing
means to remove what is damaged and the marks of those units. The same command then runs these units again, and
units give the same bytes each time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cryosam_dask.errors import StoreError
from cryosam_dask.stages import chain
from cryosam_dask.stages import origin as origins
from cryosam_dask.stages.origin import Origin
from cryosam_dask.store import layout, marks
from cryosam_dask.store.arrays import Index, RunArray, chunk_key, chunk_of, grid
from cryosam_dask.store.lease import Lease
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Bool

METADATA = "zarr.json"
SHOWN = 3
"""How many damages an error names."""


@dataclass(frozen=True)
class Damage:
    """A chunk, an array or a group that is damaged or missing.

    Attributes
    ----------
    array : path of an array, or of a group whose metadata is damaged
    chunk : index of the chunk; None: the array's (or the group's) metadata, or all of it
    kind : "missing", "truncated", "checksum", "undecodable", "metadata"
    stage, unit : what wrote it: the stage's name and the unit's mark, as far as there are such
    """

    array: str
    chunk: Index | None
    kind: str
    stage: str = ""
    unit: int | None = None

    @property
    def words(self) -> str:
        what = self.array if self.chunk is None else f"chunk {'/'.join(map(str, self.chunk))} of {self.array}"
        unit = f" unit {self.unit}" if self.unit is not None else ""
        return f"{what}: {self.kind}" + (f" ({self.stage}{unit})" if self.stage else "")


@dataclass(frozen=True)
class Report:
    """The result of `verify`.

    arrays, chunks, bytes : how many were read; damages : in the order of their paths
    """

    url: str
    arrays: int
    chunks: int
    bytes: int
    damages: tuple[Damage, ...]

    @property
    def sound(self) -> bool:
        return not self.damages

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound}

    def in_words(self, repaired: bool = False) -> str:
        """For people, a line for each damage; `repaired`: whether it has been taken away."""
        size = f"{self.arrays} arrays, {self.chunks} chunks, {self.bytes / 1e6:.1f} MB"
        if self.sound:
            return f"{self.url}: {size}: all sound"
        lines = [f"{self.url}: {size}: {len(self.damages)} damaged or missing", *(d.words for d in self.damages)]
        advice = "taken away" if repaired else "`--repair` takes this away"
        return "\n".join([*lines, f"{advice}; the command that made it, given again, makes it again and goes on"])


@dataclass
class Repair:
    """What `repair` removed. The command that made it makes it again.

    units : by stage, how many will run again; stages : those that will run again as a whole
    mended : damages that were repaired at once, or do not matter; left : damages that no command repairs
    """

    units: dict[str, int] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)
    mended: list[Damage] = field(default_factory=list)
    left: list[Damage] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(url: str | Path, *, threads: int = 4) -> Report:
    """Read every chunk of a run and check that nothing is missing that a finished unit wrote.

    Memory is a few chunks for each thread and the names of the files of one group. `StoreError` if there is no run.
    """
    count: Counter[str] = Counter()
    store = RunStore.open(url)
    damages = tuple(find_damage(store, threads=threads, count=count))
    return Report(store.url, count["arrays"], count["chunks"], count["bytes"], damages)


def find_damage(
    store: RunStore,
    arrays: Iterable[str] | None = None,
    *,
    content: bool = True,
    threads: int = 4,
    count: Counter[str] | None = None,
) -> Iterator[Damage]:
    """Find what is damaged in a run, array by array.

    Parameters
    ----------
    arrays : paths to look at; None looks at all
    content : read the chunks. Otherwise files are only listed, and what the driver writes anew each time is left out
    count : gets the numbers of "arrays", "chunks" and "bytes" added
    """
    count = Counter() if count is None else count
    done = _done(store)
    wanted = None if arrays is None else set(arrays)
    there: set[str] = set()
    with ThreadPoolExecutor(threads) as pool:
        for path, sizes in _listing(store):
            if None in sizes:
                there.add(path)
            if wanted is not None and path not in wanted:
                continue
            looked = _Array(store, path, sizes, done, content)
            yield from looked.damages(pool, threads)
            count.update(arrays=bool(looked.chunks), chunks=looked.chunks, bytes=sum(sizes.values()))
    for stage, finished in done.items():
        for path, unit in origins.expected(store, stage, finished):
            if path not in there and (wanted is None or path in wanted):
                yield Damage(path, None, "missing", stage, unit)


def check_complete(store: RunStore) -> None:
    """`StoreError` if a chunk that a finished unit wrote is gone or empty. Files are listed, not read."""
    damages = list(itertools.islice(find_damage(store, content=False), SHOWN + 1))
    if damages:
        more = " and more" if len(damages) > SHOWN else ""
        raise StoreError(
            f"{store.url}: {'; '.join(d.words for d in damages[:SHOWN])}{more}; "
            f"`cryosam verify {store.url} --repair` and then the same command make it again"
        )


def repair(url: str | Path, found: Report | Iterable[Damage]) -> Repair:
    """Remove what is damaged, and the marks of the units that wrote it, so that the same command makes it again.

    `StoreError` if a driver is writing the run at this moment.
    """
    with Lease(url):
        store = RunStore.open(url, "r+")
        done, units = Repair(), set[tuple[str, int]]()
        for damage in found.damages if isinstance(found, Report) else found:
            _repair(store, damage, done, units)
    done.units = dict(sorted(Counter(stage for stage, _ in units if stage not in done.stages).items()))
    return done


class _Array:
    """One array, or a group, with its files as listed."""

    def __init__(
        self, store: RunStore, path: str, sizes: dict[Index | None, int], done: dict[str, Bool], content: bool
    ) -> None:
        self._store, self._path, self._done, self._content = store, path, done, content
        self._metadata = sizes.pop(None, None)
        self._sizes: dict[Index, int] = {index: size for index, size in sizes.items() if index is not None}
        self._origin = Origin("unknown")
        self.chunks = len(self._sizes)

    def damages(self, pool: ThreadPoolExecutor, threads: int) -> Iterator[Damage]:
        self._origin = origins.origin(self._store, self._path)
        if not self._content and self._origin.kind not in ("stage", "unit", "coordinates"):
            return
        if self._metadata is None:
            return  # chunks of what is no array any more
        # arrays of one chunk that is there need not be opened to know that all is there
        whole = bool(self._metadata and self._sizes and all(self._sizes.values()))
        if whole and self._origin.kind != "stage" and not self._content:
            return
        array = self._opened()
        if array is None:
            yield self._damage(None, "metadata")
        elif isinstance(array, RunArray):
            yield from self._of_chunks(array, pool, threads)

    def _opened(self) -> RunArray | bool | None:
        """The array; True for a group; None where it can't be opened."""
        if not self._metadata:
            return None
        try:
            return self._store.array(self._path)
        except StoreError as error:
            return True if "no array" in str(error) else None

    def _of_chunks(self, array: RunArray, pool: ThreadPoolExecutor, threads: int) -> Iterator[Damage]:
        readable: list[Index] = []
        for index in np.ndindex(*grid(array)):
            size = self._sizes.get(index)
            if size is None:
                if self._is_due(index):
                    yield self._damage(index, "missing")
            elif size == 0:
                if self._content or self._is_due(index):
                    yield self._damage(index, "truncated")
            elif self._content:
                readable.append(index)
                if len(readable) == 4 * threads:
                    yield from self._read(array, readable, pool)
                    readable.clear()
        yield from self._read(array, readable, pool)
        self._store.close(self._path)

    def _read(self, array: RunArray, indices: list[Index], pool: ThreadPoolExecutor) -> Iterator[Damage]:
        for index, kind in zip(indices, pool.map(array.check, indices), strict=True):
            if kind is not None:
                yield self._damage(index, kind)

    def _is_due(self, index: Index) -> bool:
        """Whether a chunk must be there."""
        kind, stage = self._origin.kind, self._origin.stage
        if kind in ("marks", "state"):
            return False
        if kind == "coordinates":
            return stage in self._done
        if kind in ("driver", "unknown"):
            return self._content
        done, mark = self._done.get(stage), self._origin.mark(index)
        return done is not None and mark is not None and mark < len(done) and bool(done[mark])

    def _damage(self, index: Index | None, kind: str) -> Damage:
        marked = self._origin.kind == "marks"
        stage = self._path.removeprefix(layout.marks("")) if marked else self._origin.stage
        unit = self._origin.mark(index) if index is not None else None
        if index is None and self._origin.kind == "unit":
            unit = self._origin.mark(())
        if self._origin.kind == "marks" and index is not None:
            unit = index[0]
        return Damage(self._path, index, kind, stage, unit)


def _done(store: RunStore) -> dict[str, Bool]:
    """Which units of each stage are done. A stage whose marks can't be opened has begun, and none is known to be."""
    done: dict[str, Bool] = {}
    for path, size in store.files(layout.MARKS):
        folder, _, name = path.rpartition("/")
        if name == METADATA and size:
            try:
                stage = folder.removeprefix(layout.marks(""))
                done[stage] = marks.done(store, stage)
            except (StoreError, IndexError):
                continue
    return done


def _listing(store: RunStore) -> Iterator[tuple[str, dict[Index | None, int]]]:
    """All arrays and groups with the bytes of their chunks, and of their metadata under None; group by group."""
    for top in store.names():
        by_array: dict[str, dict[Index | None, int]] = {}
        for path, size in store.files(top):
            if (chunk := chunk_of(path)) is not None:
                by_array.setdefault(chunk[0], {})[chunk[1]] = size
            elif path.rpartition("/")[2] == METADATA:
                by_array.setdefault(path.rpartition("/")[0], {})[None] = size
        yield from sorted((path, sizes) for path, sizes in by_array.items() if path)


def _repair(store: RunStore, damage: Damage, done: Repair, units: set[tuple[str, int]]) -> None:
    where = origins.origin(store, damage.array)
    if where.kind == "coordinates":
        if damage.chunk is None:
            store.delete(damage.array)
        origins.mend(store, damage.array)
        done.mended.append(damage)
    elif where.kind == "state":
        store.delete(damage.array)
        done.mended.append(damage)
    elif where.kind == "driver" and where.declared is not None:
        store.delete(damage.array)
        if where.declared.command not in done.stages:
            done.stages.append(where.declared.command)
    elif where.kind == "marks" and damage.chunk is not None:
        store.delete(chunk_key(damage.array, damage.chunk))
        units.add((damage.stage, damage.chunk[0]))
    elif where.kind == "unknown":
        _repair_unknown(store, damage, done)
    elif damage.unit is not None:
        # the mark goes first: what is marked must be there
        store.delete(chunk_key(layout.marks(damage.stage), (damage.unit,)))
        store.delete(damage.array if damage.chunk is None else chunk_key(damage.array, damage.chunk))
        units.add((damage.stage, damage.unit))
    else:
        if where.kind != "marks":
            store.delete(damage.array)
        for stage in _laid_out_with(damage.stage):
            store.delete(layout.marks(stage))
            if stage not in done.stages:
                done.stages.append(stage)


def _laid_out_with(stage: str) -> list[str]:
    """The stages whose arrays are laid out together with those of one, itself included."""
    declared = chain.declaration_of(stage)
    if declared is None or not declared.together:
        return [stage]
    return [other.name for other in chain.STAGES if other.together and other.command == declared.command]


def _repair_unknown(store: RunStore, damage: Damage, done: Repair) -> None:
    """Groups hold nothing that a command does not write again, if it is told that there is something to do."""
    if damage.kind != "metadata" or damage.array.partition("/")[0] not in layout.TOP_GROUPS:
        done.left.append(damage)
        return
    for stage in _describing(store, damage.array):
        store.delete(layout.marks(stage))
        done.stages.append(stage)
    store.delete(layout.member(damage.array, METADATA))
    store.group(damage.array)
    done.mended.append(damage)


def _describing(store: RunStore, group: str) -> Iterator[str]:
    """The stages that write a group's metadata where they lay out their arrays in it, or around it."""
    for stage in chain.begun(store):
        declared = chain.declaration_of(stage)
        if declared is not None and declared.described:
            places = declared.places(store, declared.query_of(stage))
            if any(f"{place}/".startswith(f"{group}/") or f"{group}/".startswith(f"{place}/") for place in places):
                yield stage
