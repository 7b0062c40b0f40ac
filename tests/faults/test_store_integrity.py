"""Damage in a store is found, named, and made again: each chunk's checksum, what is missing, and who wrote it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from zarr.storage import LocalStore

import cryosam_dask as cs
from cryosam_dask.errors import StoreError
from cryosam_dask.executors import base, serial
from cryosam_dask.pipeline import integrity, settings_for
from cryosam_dask.settings import Settings
from cryosam_dask.stages import origin
from cryosam_dask.store import layout, local_chunks, marks
from cryosam_dask.store.arrays import chunk_of
from cryosam_dask.store.run_store import RunStore

NAME = "ball"
POINT = [12.0, 10.0, 10.0]
SHAPE = (36, 44, 70)


@pytest.fixture(scope="session")
def two_balls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MRC of 36 × 44 × 70 voxels: balls in noise, with more than one unit in every stage."""
    z, y, x = np.indices(SHAPE)
    values = np.random.default_rng(0).normal(size=SHAPE)
    for a, b, c in ((12, 10, 10), (12, 30, 30), (24, 12, 58)):
        values += 3.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 25)
    path = tmp_path_factory.mktemp("balls") / "two.mrc"
    with mrcfile.new(path, values.astype(np.float32)) as file:
        file.voxel_size = 10
    return path


@pytest.fixture(scope="session")
def chosen() -> Settings:
    return settings_for(
        "texture+random-walker",
        {
            "match.count": 4,
            "match.ratios": [8, 1],
            "match.center": True,
            "features.ratios": [4, 8],
            "features.dense_ratios": [8, 4],
            "features.standardize": "scale",
            "propagation.group": 2,
        },
    )


def run(path: Path, out: Path, settings: Settings) -> Any:
    return cs.run(path, [POINT], out, name=NAME, settings=settings, workers=0)


@pytest.fixture(scope="session")
def traced(
    two_balls: Path, chosen: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, set[tuple[str, tuple[int, ...]]]]]:
    """A finished run, and for each chunk the units (stage, marks) that wrote it."""
    out = tmp_path_factory.mktemp("traced") / "run.zarr"
    written: dict[str, set[tuple[str, tuple[int, ...]]]] = {}
    current: list[tuple[str, tuple[int, ...]]] = []
    patch = pytest.MonkeyPatch()
    original, set_, write = base.run_unit, LocalStore.set, local_chunks.write

    def run_unit(stage: str, work: Any, settings: Any, context: Any, unit: Any) -> Any:
        current.append((stage, tuple(unit.marks)))
        try:
            return original(stage, work, settings, context, unit)
        finally:
            current.pop()

    def note(key: str) -> None:
        if current and chunk_of(key):
            written.setdefault(key, set()).add(current[-1])

    async def spy(self: LocalStore, key: str, value: Any) -> None:
        note(key)
        await set_(self, key, value)

    def spied(store: LocalStore, key: str, content: Any) -> None:
        note(key)
        write(store, key, content)

    patch.setattr(base, "run_unit", run_unit)
    if hasattr(serial, "run_unit"):
        patch.setattr(serial, "run_unit", run_unit)
    patch.setattr(LocalStore, "set", spy)
    patch.setattr(local_chunks, "write", spied)
    # zarr has a shortcut in some versions
    try:
        run(two_balls, out, chosen)
    finally:
        patch.undo()
    return out, written


@pytest.fixture
def copy(traced: tuple[Path, Any], tmp_path: Path) -> Path:
    out = tmp_path / "run.zarr"
    shutil.copytree(traced[0], out)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and "journal" not in p.parts and p.name != "zarr.json"
    }


def test_paths_and_shapes_say_which_unit_wrote_each_chunk(traced: tuple[Path, Any]) -> None:
    """Compared with what was seen as the units ran, over all arrays of a run."""
    out, written = traced
    store = RunStore.open(out)
    looked = 0
    stages = set()
    for key, writers in written.items():
        array, index = chunk_of(key)  # type: ignore[misc]
        found = origin.origin(store, array)
        if found.kind in ("marks", "state"):
            continue
        mark = found.mark(index)
        assert found.kind in ("stage", "unit"), key
        assert all(stage == found.stage and mark in marks_ for stage, marks_ in writers), (
            key,
            writers,
            found.stage,
            mark,
        )
        stages.add(found.stage)
        looked += 1
    begun = set(origin.stages(store))
    assert begun == stages
    assert looked > 300
    for path, _ in store.files():
        if (chunk := chunk_of(path)) and path not in written:
            assert origin.origin(store, chunk[0]).kind in ("driver", "coordinates", "marks"), path


def test_every_array_of_a_finished_run_is_expected(traced: tuple[Path, Any]) -> None:
    store = RunStore.open(traced[0])
    wanted = {path for s in origin.stages(store) for path, _ in origin.expected(store, s, marks.done(store, s))}
    there = {chunk[0] for path, _ in store.files() if (chunk := chunk_of(path))}
    by_units = {path for path in there if origin.origin(store, path).kind in ("stage", "unit")}
    beyond = {
        path for path in by_units - wanted if not path.endswith(("/unmoved", "/template")) and "queries" not in path
    }
    assert beyond == set()


def test_a_sound_run_is_said_to_be_sound(copy: Path) -> None:
    report = integrity.verify(copy)
    assert report.sound
    assert report.chunks > 300
    assert report.bytes > 1e5
    assert "all sound" in report.in_words()
    integrity.check_complete(RunStore.open(copy))


def flip(path: Path, seed: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(seed).randrange(len(data))] ^= 1 << random.Random(seed + 1).randrange(8)
    path.write_bytes(data)


ARRAYS = [
    "scale0/tomogram/c/1/0/1",
    "statistics/c/1/0",
    "scale0/z/c/0",
    "features/r1/y/c/1/0/0/0",
    "features/r4/x_gram/c/2/0/0/0",
    "features/sums/z/c/1/0",
    "features/standardization/z/c/0/0",
    "features/dense/r4/features/c/0/0/0/0",
    "features/r4/token_z/c/0",
    f"queries/{NAME}/feature/c/0",
    f"queries/{NAME}/group00000/bits/c/0",
    f"similarity/{NAME}/r8/dots/y/c/0/0/0/0",
    f"similarity/{NAME}/r1/similarity/c/0/0/0",
    f"similarity/{NAME}/r1/x/c/0",
    f"proposals/{NAME}/points/c/0/0",
    f"proposals/{NAME}/profiles00000/profiles/c/0/0",
    f"instances/{NAME}/group00000/box/c/0/0",
    f"picks/{NAME}/score/c/0",
    f"labels/{NAME}/scale0/labels/c/1/0/0",
    f"labels/{NAME}_semantic/scale0/labels/c/0/0/1",
]


def test_flipped_bits_are_named_and_made_again(
    copy: Path, two_balls: Path, chosen: Settings, traced: tuple[Path, Any]
) -> None:
    """One in an array of every kind: exactly these are named, and exactly the units that wrote them run again."""
    before = contents(traced[0])
    for number, key in enumerate(ARRAYS):
        flip(copy / key, number)
    report = integrity.verify(copy)
    assert [(d.array, d.chunk) for d in report.damages] == sorted(chunk_of(key) for key in ARRAYS)  # type: ignore[type-var]
    assert {d.kind for d in report.damages} <= {"checksum", "truncated", "undecodable"}
    assert all(d.array in report.in_words() for d in report.damages)
    done = integrity.repair(copy, report)
    assert done.left == []
    again = run(two_balls, copy, chosen)
    ran = {stage: len({t.unit for t in timings}) for stage, timings in again.timings.items() if timings}
    assert ran == done.units
    assert contents(copy) == before
    assert integrity.verify(copy).sound


def test_lost_chunks_are_noticed_before_anything_runs(
    copy: Path, two_balls: Path, chosen: Settings, traced: tuple[Path, Any]
) -> None:
    """Lost, or empty as after a power failure: labels, that no stage reads, and a whole group of instances."""
    (copy / f"labels/{NAME}/scale0/labels/c/1/0/0").unlink()
    (copy / "scale0/tomogram/c/0/0/1").write_bytes(b"")
    shutil.rmtree(copy / f"instances/{NAME}/group00000")
    with pytest.raises(StoreError, match=r"chunk 1/0/0 of labels/ball/scale0/labels: missing .*verify .* --repair"):
        run(two_balls, copy, chosen)
    report = integrity.verify(copy)
    found = {(d.array, d.chunk, d.kind) for d in report.damages}
    assert (f"labels/{NAME}/scale0/labels", (1, 0, 0), "missing") in found
    assert ("scale0/tomogram", (0, 0, 1), "truncated") in found
    assert (f"instances/{NAME}/group00000/bits", None, "missing") in found
    done = integrity.repair(copy, report)
    assert done.units == {"ingest": 1, f"label/{NAME}": 1, f"segment/instances/{NAME}": 1}
    again = run(two_balls, copy, chosen)
    assert {s: len({t.unit for t in timings}) for s, timings in again.timings.items() if timings} == done.units
    assert contents(copy) == contents(traced[0])


BROKEN = [
    ("scale0/tomogram", '{"zarr_format": 3, "node_ty'),
    ("features/r4/z_gram", ""),
    (f"instances/{NAME}/group00000/bits", '{"shape": 1}'),
    (f"similarity/{NAME}/r8/similarity", "[]"),
    (f"queries/{NAME}", ""),
    (f"picks/{NAME}", "\0\0\0"),
    (f"labels/{NAME}", "{}"),
    ("marks/features", ""),
    ("scale0/z", "x"),
]


@pytest.mark.parametrize("path", [path for path, _ in BROKEN])
def test_broken_metadata_is_one_line(path: str, copy: Path, two_balls: Path, chosen: Settings) -> None:
    (copy / path / "zarr.json").write_text(dict(BROKEN)[path])
    if path in ("scale0/z", f"labels/{NAME}", f"picks/{NAME}"):
        run(two_balls, copy, chosen)  # nothing reads the first two, the last is written anew
        return
    with pytest.raises(StoreError, match=rf"{path}(/zarr.json is damaged|: metadata).*--repair") as caught:
        run(two_balls, copy, chosen)
    assert "\n" not in str(caught.value)


def test_broken_metadata_is_found_and_made_again(
    copy: Path, two_balls: Path, chosen: Settings, traced: tuple[Path, Any]
) -> None:
    for path, text in BROKEN:
        (copy / path / "zarr.json").write_text(text)
    report = integrity.verify(copy)
    assert {d.array for d in report.damages} == {path for path, _ in BROKEN}
    assert {d.kind for d in report.damages} == {"metadata"}
    assert integrity.repair(copy, report).left == []
    run(two_balls, copy, chosen)
    assert contents(copy) == contents(traced[0])
    assert integrity.verify(copy).sound
    tree, was = cs.open_run(copy), cs.open_run(traced[0])
    assert {n.path: set(n.data_vars) for n in tree.subtree} == {n.path: set(n.data_vars) for n in was.subtree}


def test_a_broken_root_is_one_line(copy: Path, two_balls: Path, chosen: Settings) -> None:
    for text in (
        "",
        '{"zarr_format": 3',
        '{"zarr_format": 3, "node_type": "group", "attributes": {"cryosam": {"format": 1}}}',
    ):
        (copy / "zarr.json").write_text(text)
        with pytest.raises(StoreError, match=r"run\.zarr") as caught:
            run(two_balls, copy, chosen)
        assert "\n" not in str(caught.value)


def test_marks_that_are_gone_make_their_stage_run_again(
    copy: Path, two_balls: Path, chosen: Settings, traced: tuple[Path, Any]
) -> None:
    shutil.rmtree(copy / "marks/ingest")
    shutil.rmtree(copy / f"marks/label/{NAME}")
    (copy / "labels/strange.txt").write_text("what is this")
    again = run(two_balls, copy, chosen)
    assert {stage for stage, timings in again.timings.items() if timings} == {"ingest", f"label/{NAME}"}
    (copy / "labels/strange.txt").unlink()
    assert contents(copy) == contents(traced[0])


def test_a_damaged_chunk_that_is_read_ends_the_command_with_its_name(
    copy: Path, two_balls: Path, chosen: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(copy / "features/r8/y/c/1/0/0/0")
    RunStore.open(copy, "r+").delete(layout.marks(f"project/{NAME}/r8"))
    runs = []
    original = base.run_unit

    def spy(*args: Any) -> Any:
        runs.append(args[4].name)
        return original(*args)

    for module in (base, serial):
        if hasattr(module, "run_unit"):
            monkeypatch.setattr(module, "run_unit", spy)
    with pytest.raises(StoreError, match=r"chunk 1/0/0/0 of features/r8/y is damaged .*--repair") as caught:
        run(two_balls, copy, chosen)
    assert "\n" not in str(caught.value)
    assert len(runs) == len(set(runs)) > 0, "a damaged chunk stays damaged: no use in trying again"


def test_an_object_store_is_looked_through_and_mended_as_well(traced: tuple[Path, Any], tmp_path: Path) -> None:
    import fsspec

    url = f"memory://integrity{tmp_path.name}/run.zarr"
    files = fsspec.filesystem("memory")
    for path in traced[0].rglob("*"):
        if path.is_file():
            files.pipe_file(f"{url}/{path.relative_to(traced[0])}", path.read_bytes())
    assert integrity.verify(url).sound
    data = bytearray(files.cat_file(f"{url}/labels/{NAME}/scale0/labels/c/1/0/0"))
    data[len(data) // 2] ^= 1
    files.pipe_file(f"{url}/labels/{NAME}/scale0/labels/c/1/0/0", bytes(data))
    files.rm_file(f"{url}/scale0/tomogram/c/0/0/1")
    report = integrity.verify(url)
    assert [(d.array, d.chunk, d.kind) for d in report.damages] == [
        (f"labels/{NAME}/scale0/labels", (1, 0, 0), "checksum"),
        ("scale0/tomogram", (0, 0, 1), "missing"),
    ]
    assert integrity.repair(url, report).units == {"ingest": 1, f"label/{NAME}": 1}
    store = RunStore.open(url)
    assert not marks.done(store, "ingest").all()
    assert not files.exists(f"{url}/labels/{NAME}/scale0/labels/c/1/0/0")
