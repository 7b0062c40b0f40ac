"""Tomograms that are arrays: the same run as of the file, in any order of axes and unit, lazily, and gone on with."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import mrcfile
import numpy as np
import pytest
import xarray as xr

import cryosam_dask as cs
from cryosam_dask.errors import ExecutionError, InputError, StoreError
from cryosam_dask.executors import lazy
from cryosam_dask.executors.base import Executor
from cryosam_dask.executors.dask import DaskExecutor
from cryosam_dask.executors.joined import UserClient
from cryosam_dask.executors.local import close_local, local_client
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.io.arrays import open_array
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.pipeline import Driver, batch, integrity
from cryosam_dask.stages import ingest_array
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Array, Shape3

SHAPE: Shape3 = (70, 45, 270)
ORIGIN = (120.0, -30.0, 0.0)


@pytest.fixture(scope="module")
def voxels() -> Array:
    return np.random.default_rng(0).normal(3, 2, size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def from_file(voxels: Array, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the file route makes of these voxels."""
    folder = tmp_path_factory.mktemp("file")
    with mrcfile.new(folder / "t.mrc", voxels) as file:
        file.voxel_size = 10
        file.header.origin = tuple(reversed(ORIGIN))
    ingest(folder / "t.mrc", folder / "run.zarr")
    return folder / "run.zarr"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    two = local_client(2)
    yield two
    close_local(two)


@pytest.fixture(params=["serial", "dask"])
def executor(request: pytest.FixtureRequest) -> Executor:
    return DaskExecutor(UserClient(request.getfixturevalue("client"))) if request.param == "dask" else SerialExecutor()


def ingest(tomogram: Any, out: Path, executor: Executor | None = None, **options: Any) -> RunStore:
    overwrite = options.pop("overwrite", False)
    Driver(out, executor or SerialExecutor(), overwrite=overwrite).ingest(tomogram, **options)
    return RunStore.open(out)


def labelled(
    values: Any, unit: str = "angstrom", step: float = 10.0, origin: tuple[float, ...] = ORIGIN
) -> xr.DataArray:
    factor = step / 10
    coords = {
        axis: (axis, (np.arange(n) * 10.0 + start) * factor, {"units": unit})
        for axis, n, start in zip(AXES, values.shape, origin, strict=True)
    }
    return xr.DataArray(values, dims=AXES, coords=coords, name="density")


def chunks(run: Path) -> dict[str, bytes]:
    """Bytes of the image, its levels, coordinates and statistics."""
    found = {path.relative_to(run).as_posix(): path for path in run.rglob("c/**/*") if path.is_file()}
    return {k: p.read_bytes() for k, p in found.items() if not k.startswith(("marks", layout.DIGESTS))}


KINDS: dict[str, Callable[[Array], Any]] = {
    "numpy": labelled,
    "dask": lambda v: labelled(da.from_array(v, chunks=(13, 17, 50))),
    "dask slices": lambda v: labelled(da.from_array(v, chunks=(1, -1, -1))),
    "overlapping": lambda v: labelled(
        da.from_array(v, chunks=(40, 45, 150)).map_overlap(np.positive, depth=2, boundary="nearest", dtype="f4")
    ),
    "turned": lambda v: labelled(da.from_array(v, chunks=(32, 32, 64))).transpose("x", "z", "y"),
    "turned numpy": lambda v: labelled(v).transpose("y", "x", "z").copy(),
}


@pytest.mark.parametrize(
    ("kind", "executor"),
    [*((kind, "serial") for kind in KINDS), *((kind, "dask") for kind in ("numpy", "dask", "overlapping"))],
    indirect=["executor"],
)
def test_the_store_is_the_one_of_the_file_bit_for_bit(
    kind: str, voxels: Array, from_file: Path, tmp_path: Path, executor: Executor
) -> None:
    store = ingest(KINDS[kind](voxels), tmp_path / "run.zarr", executor)
    assert chunks(tmp_path / "run.zarr") == chunks(from_file)
    known = RunStore.open(from_file)
    assert store.info["statistics"] == known.info["statistics"]
    assert (store.voxel_size, store.origin) == (known.voxel_size, known.origin)
    assert store.root.attrs["ome"] == known.root.attrs["ome"]
    assert integrity.verify(tmp_path / "run.zarr").sound


@pytest.mark.parametrize("lazily", [True, False])
def test_bare_arrays_need_a_voxel_size(voxels: Array, lazily: bool, tmp_path: Path) -> None:
    bare = da.from_array(voxels, chunks=32) if lazily else voxels
    with pytest.raises(InputError, match="does not tell its voxel size; give it as voxel_size="):
        ingest(bare, tmp_path / "run.zarr")
    assert ingest(bare, tmp_path / "run.zarr", voxel_size=(12, 10, 10)).voxel_size == (12.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("unit", "step"),
    [
        *(("nm", 1.0), ("nanometers", 1.0), ("Å", 10.0), ("Angstroms", 10.0)),
        *(("µm", 1e-3), ("micrometres", 1e-3), ("microns", 1e-3)),
    ],
)
def test_units_of_coordinates(voxels: Array, unit: str, step: float) -> None:
    found = open_array(labelled(voxels, unit, step))
    assert (found.voxel_size, found.origin, found.notes) == ((10.0, 10.0, 10.0), ORIGIN, ())


def test_a_spacing_in_single_precision_is_the_one_that_was_meant(voxels: Array) -> None:
    places = [(np.arange(n) * np.float32(1.32812)).astype("f4") for n in SHAPE]
    array = labelled(voxels).assign_coords(
        {axis: (axis, at, {"units": "nm"}) for axis, at in zip(AXES, places, strict=True)}
    )
    assert open_array(array).voxel_size == pytest.approx((13.2812,) * 3, rel=1e-6)
    exact = labelled(voxels, step=13.2812, origin=(0, 0, 0))
    assert open_array(exact).voxel_size == (13.2812,) * 3


@pytest.mark.parametrize(
    ("attributes", "size", "note"),
    [
        ({"voxel_size": 1.5, "units": "nm"}, (15.0,) * 3, None),
        ({"voxel_size": [12, 10, 10], "units": "angstroms"}, (12.0, 10.0, 10.0), None),
        ({"voxel_size": 13.5}, (13.5,) * 3, "no attribute units; voxel_size 13.5 is taken as ångström"),
        ({"voxel_size": 13.5, "units": "counts"}, (13.5,) * 3, r"units \(counts\) is no length; .* as ångström"),
    ],
)
def test_voxel_size_from_attributes(
    voxels: Array, attributes: dict[str, Any], size: tuple[float, ...], note: str | None
) -> None:
    found = open_array(xr.DataArray(voxels, dims=AXES, attrs=attributes))
    assert (found.voxel_size, found.origin) == (size, (0.0, 0.0, 0.0))
    assert len(found.notes) == (note is not None)
    if note is not None:
        with pytest.raises(AssertionError, match=note):
            raise AssertionError(found.notes[0])


def test_coordinates_go_before_attributes_and_what_is_given_before_both(voxels: Array) -> None:
    array = labelled(voxels).assign_attrs(voxel_size=20, units="angstrom")
    found = open_tomogram(array)
    assert found.voxel_size == (10.0,) * 3
    assert "10 Å by the coordinates and 20 Å by the attributes; the coordinates are taken" in found.notes[0]
    given = open_tomogram(array, voxel_size=7)
    assert (given.voxel_size, given.origin, given.notes) == ((7.0,) * 3, ORIGIN, ())


def renamed(v: Array) -> Any:
    return labelled(v).rename(z="Z")


def uneven(v: Array) -> Any:
    return labelled(v).assign_coords(z=("z", np.arange(70) ** 2.0, {"units": "nm"}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (renamed, r"density: dimensions Z, y, x, expected z, y and x; .*rename\(\)"),
        (lambda v: labelled(v).isel(z=0), "dimensions y, x, expected z, y and x"),
        (lambda v: labelled(v).expand_dims("channel"), "dimensions channel, z, y, x, expected z, y and x"),
        (uneven, "coordinate z is not evenly spaced"),
        (lambda v: labelled(v).isel(y=slice(None, None, -1)), r"coordinate y does not rise; sort it: .sortby\('y'\)"),
        (lambda v: labelled(v, "pixel"), "no voxel size along z, y, x: coordinates z, y, x have no units of length"),
        (lambda v: labelled(v).drop_vars("x"), "no voxel size along x: no coordinates and no voxel_size"),
        (lambda v: labelled(v).isel(z=slice(1)), "not 3D: one voxel along z"),
        (lambda v: labelled(v, step=1e9), "can't be; give it as voxel_size="),
        (lambda v: labelled(v).astype(complex), "voxels of type complex128, a transform, expected integers or real"),
        (lambda v: labelled(v).to_dataset(), "Dataset: expected a path, or an array.*of a Dataset one variable"),
        (lambda v: v.tolist(), r"a builtins.list: expected a path, or an array"),
        (lambda v: v[0], r"shape \(45, 270\), expected three axes z, y, x"),
        (lambda v: da.from_array(v, chunks=32)[da.from_array(v[:, 0, 0] > 3, chunks=32)], "compute_chunk_sizes"),
        (lambda v: np.ma.masked_less(v, 0), "voxels are masked"),
    ],
)  # fmt: skip
def test_what_can_not_be_a_tomogram_is_refused_in_one_line(
    voxels: Array, make: Any, message: str, tmp_path: Path
) -> None:
    bare = not isinstance(array := make(voxels), xr.DataArray)
    with pytest.raises(InputError, match=message) as caught:
        ingest(array, tmp_path / "run.zarr", **({"voxel_size": 10} if bare else {}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run.zarr").exists()


def test_the_option_for_8_bit_files_and_a_folder_of_runs_are_not_for_arrays(voxels: Array, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'unsigned' applies to MRC files only"):
        ingest(labelled(voxels), tmp_path / "run.zarr", unsigned=True)
    with pytest.raises(InputError, match=r"a DataArray among the tomograms: .* run arrays one by one"):
        batch.run_many([labelled(voxels)], [(1, 2, 3)], tmp_path / "runs")  # type: ignore[list-item]


@pytest.mark.parametrize("lazily", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_named_and_nothing_is_left(
    voxels: Array, bad: float, lazily: bool, tmp_path: Path
) -> None:
    broken = voxels.copy()
    broken[40, 5, 6] = bad
    with pytest.raises(InputError, match=r"density: 1 voxels of .* NaN, infinite .* the first at z,y,x = 40,5,6"):
        ingest(labelled(da.from_array(broken, chunks=30) if lazily else broken), tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


def test_a_constant_volume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"array: all voxels are \(nearly\) 7; expected a tomogram with contrast"):
        ingest(da.full((8, 9, 10), 7.0, dtype="f4"), tmp_path / "run.zarr", voxel_size=10)
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("i1", "i1"), ("u2", "u2"), (">i2", "i2"), ("f2", "f2"), ("i4", "f4"), ("f8", "f4"), ("?", "u1")],
)
def test_types_are_stored_as_those_of_files(voxels: Array, dtype: str, stored: str, tmp_path: Path) -> None:
    values = (voxels * 5 + 50).clip(0, 120).astype(dtype)
    values[:3] = values[:3] > 3
    for array in (values, da.from_array(values, chunks=40)):
        found = ingest(array, tmp_path / "run.zarr", voxel_size=10, overwrite=True).read(layout.tomogram())
        assert found.dtype == np.dtype(stored)
        assert (found == values.astype(stored)).all()


def test_a_lazy_array_that_is_not_what_it_says_is_refused(voxels: Array, tmp_path: Path, executor: Executor) -> None:
    lazily = da.from_array(voxels, chunks=(32, -1, -1))
    with pytest.raises(InputError, match=r"a block of shape .* was computed as .*chunks= of map_blocks"):
        ingest(lazily.map_blocks(lambda b: b[:, :9], dtype="f4"), tmp_path / "a.zarr", executor, voxel_size=10)
    with pytest.raises(InputError, match=r"blocks of int16 were computed as float32; dtype= of map_blocks"):
        ingest(lazily.map_blocks(lambda b: b, dtype="i2"), tmp_path / "b.zarr", executor, voxel_size=10)
    sloppy = lazily.map_blocks(lambda b: b.astype("f8"), dtype="f4")
    found = ingest(sloppy, tmp_path / "c.zarr", executor, voxel_size=10).read(layout.tomogram())
    assert found.dtype == np.float32


def fails_in_the_second_row(block: Array, block_info: Any = None) -> Array:
    if block_info[0]["chunk-location"][0] == 1 and os.environ.get("CRYOSAM_TEST_BROKEN"):
        raise RuntimeError("the detector is on fire")
    return block


def test_what_an_array_raises_is_said_and_the_same_command_goes_on(
    voxels: Array, from_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYOSAM_TEST_BROKEN", "1")
    array = da.from_array(voxels, chunks=(32, -1, -1)).map_blocks(fails_in_the_second_row, dtype="f4")
    with pytest.raises(
        ExecutionError, match=r"1 of 3 units failed .*voxels 32:64.*RuntimeError: the detector is on fire"
    ):
        ingest(labelled(array), tmp_path / "run.zarr")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run.zarr" / layout.tomogram()).rglob("c/*/*/*")}
    assert len(before) == 10
    monkeypatch.delenv("CRYOSAM_TEST_BROKEN")
    ingest(labelled(array), tmp_path / "run.zarr")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert chunks(tmp_path / "run.zarr") == chunks(from_file)


@pytest.mark.parametrize("kind", ["numpy", "dask"])
@pytest.mark.parametrize("again", ["numpy", "dask", "turned"])
def test_the_same_array_goes_on_and_another_one_is_refused(
    kind: str, again: str, voxels: Array, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    ingest(KINDS[kind](voxels), out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("c/**/*") if p.is_file()}
    ingest(KINDS[again](voxels), out)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("c/**/*") if p.is_file()} == before
    with pytest.raises(StoreError, match=r"ingest was made with other settings \(other input.content\); .*--overwrite"):
        ingest(KINDS[again](voxels + 1), out)
    moved = KINDS[again](voxels)
    with pytest.raises(StoreError, match=r"origin: .*--overwrite"):
        ingest(moved.assign_coords(z=("z", moved.z.values + 5, moved.z.attrs)), out)
    assert (RunStore.open(out).read(layout.tomogram()) == voxels).all()
    assert (ingest(KINDS[again](voxels + 1), out, overwrite=True).read(layout.tomogram()) == voxels + 1).all()


def test_of_an_array_in_memory_every_voxel_counts(voxels: Array, tmp_path: Path) -> None:
    ingest(voxels, tmp_path / "run.zarr", voxel_size=10)
    other = voxels.copy()
    other[13, 7, 1] += 1e-3
    with pytest.raises(StoreError, match="ingest was made with other settings"):
        ingest(other, tmp_path / "run.zarr", voxel_size=10)


def test_an_interrupted_ingest_is_not_gone_on_with_from_another_array(voxels: Array, tmp_path: Path) -> None:
    out, stage = tmp_path / "run.zarr", "ingest"
    for make in (lambda v: v, lambda v: da.from_array(v, chunks=32)):
        ingest(make(voxels), out, voxel_size=10, overwrite=True)
        (out / layout.marks(stage) / "c" / "1").unlink()
        with pytest.raises(StoreError, match="ingest was made with other settings"):
            ingest(make(voxels - 1), out, voxel_size=10)
        assert not marks.all_done(RunStore.open(out), stage)
        ingest(make(voxels), out, voxel_size=10)
        assert marks.all_done(RunStore.open(out), stage)


@pytest.mark.parametrize(
    "lost", [f"{layout.tomogram()}/c/1/0/2", f"{layout.DIGESTS}/c/1/0", f"{layout.STATISTICS}/zarr.json"]
)
def test_what_was_lost_is_made_again_from_the_array(voxels: Array, from_file: Path, lost: str, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    ingest(labelled(voxels), out)
    sha = RunStore.open(out).info["input"]["sha256"]
    (out / lost).unlink()
    integrity.repair(out, integrity.verify(out))
    ingest(labelled(da.from_array(voxels, chunks=30)), out)
    assert integrity.verify(out).sound
    assert chunks(out) == chunks(from_file)
    assert RunStore.open(out).info["input"]["sha256"] == sha


def test_a_run_tells_what_was_written_by_its_digest(voxels: Array, tmp_path: Path) -> None:
    """So two runs of one array are of one tomogram, though nothing was known of it before."""
    found = [
        ingest(make(voxels), tmp_path / f"{i}.zarr").info["input"]
        for i, make in enumerate((KINDS["numpy"], KINDS["turned"]))
    ]
    other = ingest(labelled(voxels + 1), tmp_path / "other.zarr").info["input"]
    assert found[0]["sha256"] == found[1]["sha256"] != other["sha256"]
    assert found[0]["path"] == "density"
    from cryosam_dask.analysis.comparison import _content

    assert _content(RunStore.open(tmp_path / "0.zarr")) == _content(RunStore.open(tmp_path / "1.zarr"))
    assert _content(RunStore.open(tmp_path / "0.zarr")) != _content(RunStore.open(tmp_path / "other.zarr"))


def test_an_array_on_a_cluster_is_used_there_and_nowhere_else(
    voxels: Array, from_file: Path, client: Any, tmp_path: Path
) -> None:
    held = labelled(client.persist(da.from_array(voxels, chunks=32)))
    ingest(held, tmp_path / "run.zarr", DaskExecutor(UserClient(client)))
    assert chunks(tmp_path / "run.zarr") == chunks(from_file)
    ingest(held, tmp_path / "run.zarr", DaskExecutor(UserClient(client)))
    for out in ("run.zarr", "new.zarr"):
        with pytest.raises(InputError, match="persisted on a Dask cluster; give its client="):
            ingest(held, tmp_path / out)


def test_a_lost_worker_costs_its_tasks_only(voxels: Array, from_file: Path, client: Any, tmp_path: Path) -> None:
    def kills_its_worker_once(block: Array, flag: str = "") -> Array:  # here, so that it travels by value
        if block.size and not Path(flag).exists():
            Path(flag).touch()
            os._exit(1)
        return block

    array = da.from_array(voxels, chunks=(32, -1, 90))
    deadly = array.map_blocks(
        kills_its_worker_once, flag=str(tmp_path / "died"), dtype="f4", meta=np.empty((0, 0, 0), "f4")
    )
    ingest(labelled(deadly), tmp_path / "run.zarr", DaskExecutor(UserClient(client)))
    assert (tmp_path / "died").exists()
    assert chunks(tmp_path / "run.zarr") == chunks(from_file)


def test_what_workers_can_not_load_is_said_and_costs_none_of_them(
    voxels: Array, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def same(block):\n    return block\n")
    monkeypatch.syspath_prepend(tmp_path)
    same = importlib.import_module("only_here").same
    array = da.from_array(voxels, chunks=(32, -1, 90)).map_blocks(same, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    before = set(client.scheduler_info()["workers"])
    with pytest.raises(ExecutionError, match=r"can't load what the units need .*only_here.*; install the same"):
        ingest(labelled(array), tmp_path / "run.zarr", DaskExecutor(UserClient(client)))
    assert set(client.scheduler_info()["workers"]) == before
    sys.modules.pop("only_here")


def test_shared_chunks_are_computed_once_where_all_fit(voxels: Array, tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(block: Array) -> Array:
        calls.append(1)
        return block

    array = da.from_array(voxels, chunks=(35, -1, -1)).map_blocks(counted, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    ingest(array.map_overlap(np.positive, depth=1, boundary="none", dtype="f4"), tmp_path / "run.zarr", voxel_size=10)
    assert len(calls) == 2


@pytest.mark.parametrize("room", [None, 1, 10**9, 3 * 10**8])
def test_units_go_in_compact_portions_that_fit(room: int | None) -> None:
    array = da.zeros((320, 1024, 512), dtype="i2", chunks=128)
    units = ingest_array.plan(open_array(array, voxel_size=(10.0,) * 3)).units
    found = lazy.portions(units, room)
    assert sorted(unit.name for portion in found for unit in portion) == sorted(unit.name for unit in units)
    if room is None:
        assert len(found) == 1
    else:
        assert all(sum(unit.memory for unit in portion) <= room or len(portion) == 1 for portion in found)
    assert {1: 40, 3 * 10**8: 14, 10**9: 4}.get(room or 0, 1) >= len(found)


MEASURE = """
import resource, sys, numpy as np, dask.array as da, psutil
from cryosam_dask.executors import serial
from cryosam_dask.pipeline import Driver
from cryosam_dask.stages import ingest_array

def made(block_info=None):
    z, y, x = ((np.arange(a, b) % n).astype("i1") for n, (a, b) in zip((7, 5, 3), block_info[None]["array-location"]))
    return z[:, None, None] + y[None, :, None] + x[None, None, :]

shape = (256, 768, 1024)
chunks = da.core.normalize_chunks((64, 256, 512), shape)
array = da.map_blocks(made, chunks=chunks, dtype="i1", meta=np.empty((0, 0, 0), "i1"))
array = array.map_overlap(np.positive, depth=2, boundary="nearest", dtype="i1")
serial.available_memory = lambda: 120 << 20
Driver(sys.argv[1] + "/small.zarr", serial.SerialExecutor()).ingest(array[:32, :256, :256], voxel_size=10)
before, most = psutil.Process().memory_info().rss, 0
write = ingest_array.work
def watched(context, settings, unit):
    global most
    most = max(most, psutil.Process().memory_info().rss)
    return write(context, settings, unit)
ingest_array.work = watched
Driver(sys.argv[1] + "/large.zarr", serial.SerialExecutor()).ingest(array, voxel_size=10)
print(most - before >> 20)
"""


def test_memory_of_a_lazy_tomogram_is_bounded(tmp_path: Path) -> None:
    """192 MB of voxels, many needed by several neighbours, with 120 MB to be had."""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 120


def test_a_whole_run_of_an_array_is_that_of_the_file(ball_tomogram: Path, tmp_path: Path) -> None:
    with mrcfile.open(ball_tomogram) as file:
        values = file.data.copy()
    arguments: dict[str, Any] = {"models": "texture+random-walker", "workers": 0}
    cs.run(ball_tomogram, [(20, 20, 20)], tmp_path / "file.zarr", **arguments)
    array = labelled(da.from_array(values, chunks=30), origin=(0, 0, 0))
    array.transpose("y", "z", "x").cryosam.run(points=[(20, 20, 20)], out=tmp_path / "array.zarr", **arguments)
    trees = [cs.open_run(tmp_path / f"{name}.zarr") for name in ("file", "array")]
    for node in ("picks/particle", "labels/particle/scale0", "scale0"):
        xr.testing.assert_identical(*(tree[node].to_dataset().load() for tree in trees))
    assert trees[1]["picks/particle"].sizes["pick"] == 4
    again = cs.run(array, [(20, 20, 20)], tmp_path / "array.zarr", **arguments)
    assert sum(map(len, again.timings.values())) == 0
    with pytest.raises(InputError, match="say where the run is to be"):
        array.cryosam.run(points=[(20, 20, 20)])
    with pytest.raises(InputError, match=r"valid|outside"):
        cs.run(array, [(20, 20, 900)], tmp_path / "array.zarr", **arguments)


@pytest.fixture(scope="module")
def tree(ball_tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("tree") / "run.zarr"
    cs.run(ball_tomogram, [(20, 20, 20)], out, models="texture+random-walker", workers=0)
    return cs.open_run(out)


def test_all_coordinates_and_positions_carry_units(tree: Any) -> None:
    seen = set()
    for node in tree.subtree:
        for name, variable in node.variables.items():
            if (name in AXES and name in node.coords) or str(name).startswith("position_"):
                assert variable.attrs["units"] == "angstrom", f"{node.path}/{name}"
                seen.add(node.path.split("/")[1])
    assert seen >= {"scale0", "labels", "similarity", "picks"}
    for lazily in (cs.FeatureVolume.open(tree.encoding["source"]).dense(16), tree.cryosam.similarity("particle", 8)):
        assert {lazily.coords[axis].attrs.get("units") for axis in AXES} == {"angstrom"}


def test_a_tomogram_of_a_run_selects_by_angstrom_and_runs_again_as_it_is(tree: Any, tmp_path: Path) -> None:
    tomogram = tree["scale0"]["tomogram"]
    plane = tomogram.sel(z=203.0, method="nearest")
    assert float(plane.z) == 200
    between = tomogram.isel(y=slice(10, 14), x=slice(10, 14)).interp(z=205.0)
    assert between.values == pytest.approx(tomogram[20:22, 10:14, 10:14].mean("z").values, rel=1e-5)
    found = ingest(tomogram, tmp_path / "again.zarr")
    assert found.voxel_size == (10.0,) * 3
    assert (found.read(layout.tomogram()) == tomogram.values).all()


def test_picks_select_by_angstrom(tree: Any) -> None:
    picks = tree["picks/particle"].to_dataset()
    right = picks.cryosam.sel(x=slice(500, None))
    assert right.sizes["pick"] == 2
    assert (right.position_x >= 500).all()
    assert right.cryosam.sel(y=slice(300, 600), z=slice(None, 180)).sizes["pick"] == 1
    nearest = picks.cryosam.sel(z=180, y=440, x=240)
    assert abs(float(nearest.position_y[0]) - 440) < 20
    assert nearest.position_y.attrs["units"] == "angstrom"
    with pytest.raises(InputError, match="give z, y and x"):
        picks.cryosam.sel(z=3)
    with pytest.raises(InputError, match="these are no picks"):
        tree["scale0"].to_dataset().cryosam.sel(z=slice(0, 3))


def test_arrays_are_looked_at_where_the_picks_are(tree: Any) -> None:
    picks, labels = tree["picks/particle"].to_dataset(), tree["labels/particle/scale0"]["labels"]
    assert (labels.cryosam.sel_picks(picks).values == picks.instance.values).all()
    around = tree["scale0"]["tomogram"].transpose("x", "y", "z").cryosam.sel_picks(picks, size=120)
    assert around.dims == ("pick", *AXES)
    assert around.shape == (4, 13, 13, 13)
    assert around.chunks is not None
    assert (float(around.z[0]), around.z.attrs["units"]) == (-60, "angstrom")
    assert float(around.sel(z=0, y=0, x=0).mean()) > 2
    wide = tree["scale0"]["tomogram"].cryosam.sel_picks(picks, size=(500, 60, 60))
    assert wide.isel(z=0).isnull().all()
    with pytest.raises(InputError, match="the array has no coordinate z"):
        tree["scale0"]["tomogram"].drop_vars("z").cryosam.sel_picks(picks)


def test_a_tree_tells_likeness(tree: Any) -> None:
    found = tree.cryosam.similarity("particle", 4)
    feature = tree["queries/particle"]["feature"].values
    expected = cs.FeatureVolume.open(tree.encoding["source"]).similarity(feature, 4)
    xr.testing.assert_identical(found.compute(), expected.compute())
    with pytest.raises(InputError, match="no query called 'nobody'; there are particle"):
        tree.cryosam.similarity("nobody")
    with pytest.raises(InputError, match="was not opened by"):
        xr.DataTree().cryosam.similarity(feature)


@pytest.mark.parametrize(
    "order",
    [
        "xarray, cryosam_dask",
        "cryosam_dask, importlib.util; importlib.util.find_spec('xarray'); import xarray",
        "cryosam_dask.accessors, xarray",
    ],
)
def test_accessors_are_there_whichever_is_imported_first(order: str) -> None:
    """And the package alone imports neither xarray nor Dask."""
    code = f"import {order}; print(type(xarray.DataArray([1]).cryosam).__name__)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "ArrayAccessor", done.stderr
    code = "import cryosam_dask, sys; print({'xarray', 'dask', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
