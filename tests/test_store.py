"""The store: opening and making it, its arrays, done marks, and the shapes of its chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosam_dask import geometry
from cryosam_dask.errors import StoreError
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore, check_name

INFO = {"shape": [5, 6, 7], "voxel_size": [1.5, 2.0, 2.5], "origin": [0.0, -1.0, 3.0], "notes": []}
sides = st.integers(1, 3000)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "run.zarr", INFO)


def test_what_a_store_is_made_with_is_read_back(store: RunStore) -> None:
    again = RunStore.open(store.url)
    assert {key: again.info[key] for key in INFO} == INFO
    assert again.shape == (5, 6, 7)
    assert again.voxel_size == (1.5, 2.0, 2.5)
    assert again.origin == (0.0, -1.0, 3.0)
    assert RunStore.exists(store.url)
    store.update_info(statistics={"mean": 1.0})
    assert RunStore.open(store.url).info == again.info | {"statistics": {"mean": 1.0}}


def test_an_fsspec_url_is_a_place_like_any_other() -> None:
    url = "memory://run-of-test-store.zarr"
    assert not RunStore.exists(url)
    store = RunStore.create(url, INFO)
    store.put("queries/a/feature", np.arange(3.0), ("channel",))
    marks.begin(store, "ingest", fingerprint="f", settings={}, count=3)
    marks.mark(store, "ingest", 2)
    again = RunStore.open(url)
    assert again.read("queries/a/feature").tolist() == [0, 1, 2]
    assert marks.done(again, "ingest").tolist() == [False, False, True]
    with pytest.raises(StoreError, match="run-of-test-store"):
        RunStore.create(url, INFO)


def no_group(path: Path) -> None:
    pass


def foreign_group(path: Path) -> None:
    zarr.create_group(path, attributes={"ome": {"version": "0.5"}})


def an_array(path: Path) -> None:
    zarr.create_array(path, shape=(2,), dtype="f4")


def a_file(path: Path) -> None:
    path.write_text("hello")


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("…")


def broken_metadata(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_ty')


def other_version(path: Path) -> None:
    RunStore.create(path, INFO).update_info(format=99)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_group, "no run found here; make one with"),
        (foreign_group, "not a run of cryosam_dask"),
        (an_array, "can't be opened as a zarr group|no run found"),
        (a_file, "can't be opened as a zarr group|no run found"),
        (a_folder, "no run found"),
        (broken_metadata, "can't be opened as a zarr group"),
        (other_version, "store format 99, this version reads 1"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "run.zarr")
    with pytest.raises(StoreError, match=message) as caught:
        RunStore.open(tmp_path / "run.zarr")
    assert str(tmp_path / "run.zarr") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert RunStore.exists(tmp_path / "run.zarr") == (make is other_version)


@pytest.mark.parametrize("make", [foreign_group, an_array, a_file, a_folder, broken_metadata, other_version])
def test_a_store_is_never_made_over_something_else(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "run.zarr"
    make(path)
    before = {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}
    with pytest.raises(StoreError, match=str(path)):
        RunStore.create(path, INFO)
    assert {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()} == before


def test_an_empty_folder_may_become_a_store(tmp_path: Path) -> None:
    (tmp_path / "run.zarr").mkdir()
    assert RunStore.create(tmp_path / "run.zarr", INFO).shape == (5, 6, 7)


@pytest.mark.parametrize("name", ["a", "80S-ribosome_v1.2", "0", "x" * 64])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "-a", "_a", "a b", "é", "a\n", "x" * 65, "a_semantic", "a\0"]
)
def test_names_that_would_leave_or_mix_up_folders_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="can't be used"):
        check_name(name)


def test_an_array_has_the_chunks_dimensions_and_attributes_asked_for(store: RunStore) -> None:
    store.new_array("a/b/c", shape=(5, 9, 0), dtype="f4", chunks=(2, 64, 4), dims=("z", "y", "x"), attributes={"k": 1})
    found = RunStore.open(store.url).array("a/b/c")
    assert found.chunks == (2, 9, 1)
    assert found.metadata.dimension_names == ("z", "y", "x")  # type: ignore[union-attr]
    assert dict(found.attrs) == {"k": 1}
    with xr.open_zarr(store.url, group="a/b", consolidated=False, zarr_format=3, chunks=None) as dataset:
        assert dataset["c"].dims == ("z", "y", "x")


def chunk_files(store: RunStore, path: str) -> list[Path]:
    return sorted(p for p in (Path(store.url) / path / "c").rglob("*") if p.is_file())


def test_a_chunk_that_changed_on_disk_is_noticed(store: RunStore) -> None:
    values = np.random.default_rng(0).normal(size=(64, 8))
    store.new_array("a", shape=(64, 8), dtype="f8", chunks=(32, 8), dims=("i", "j"))[...] = values
    assert (RunStore.open(store.url).read("a") == values).all()
    file = chunk_files(store, "a")[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"chunk 0/0 of a is damaged \(its checksum differs\).* verify .* --repair"):
        RunStore.open(store.url).read("a")


def test_empty_chunks_are_written(store: RunStore) -> None:
    store.new_array("a", shape=(6,), dtype="u1", chunks=(2,), dims=("i",))[...] = 0
    assert len(chunk_files(store, "a")) == 3


def test_a_new_array_replaces_the_old_one_and_its_data(store: RunStore) -> None:
    store.put("a", np.arange(10), ("i",))
    store.array("a")
    store.put("a", np.arange(3.0), ("j",))
    assert store.read("a").tolist() == [0, 1, 2]
    assert RunStore.open(store.url).read("a").tolist() == [0, 1, 2]


@pytest.mark.parametrize("shape", [(0,), (0, 6), (3, 0)])
def test_tables_without_rows_are_kept_as_such(store: RunStore, shape: tuple[int, ...]) -> None:
    store.put("empty", np.zeros(shape, np.int64), tuple("ij"[: len(shape)]))
    found = RunStore.open(store.url).read("empty")
    assert found.shape == shape
    assert found.dtype == np.int64


def test_an_array_that_is_not_there_is_said_to_be_missing(store: RunStore) -> None:
    store.group("a")
    for path in ("a", "a/b", "none"):
        with pytest.raises(StoreError, match=f"no array '{path}'; the stage that makes it has not run"):
            store.array(path)


def test_deleted_is_gone_for_this_store_and_others_and_may_be_repeated(store: RunStore) -> None:
    store.put("a/b", np.arange(3), ("i",))
    store.array("a/b")
    store.delete("a")
    store.delete("a")
    assert "a/b" not in store
    assert not (Path(store.url) / "a").exists()
    with pytest.raises(StoreError, match="no array"):
        store.array("a/b")


def test_a_store_opened_to_read_refuses_to_write(store: RunStore) -> None:
    store.put("a", np.arange(3), ("i",))
    reading = RunStore.open(store.url)
    with pytest.raises(ValueError, match=r"read.?only"):
        reading.array("a")[0] = 5
    assert store.read("a").tolist() == [0, 1, 2]


def test_marks_are_new_once_then_continued(store: RunStore) -> None:
    stage = "match/ribosome/r16"
    assert marks.found_stage(store, stage) is None
    assert marks.begin(store, stage, fingerprint="f", settings={"a": 1}, count=5) is True
    assert not marks.done(store, stage).any()
    marks.mark(store, stage, 3)
    marks.mark(store, stage, 0)
    again = RunStore.open(store.url, "r+")
    assert marks.begin(again, stage, fingerprint="f", settings={"a": 1}, count=5) is False
    assert marks.done(again, stage).tolist() == [True, False, False, True, False]
    assert marks.found_stage(again, stage) == {"fingerprint": "f", "settings": {"a": 1}}


def test_each_mark_is_a_file_of_its_own(store: RunStore) -> None:
    """Two workers that mark at the same time must not write the same chunk."""
    marks.begin(store, "s", fingerprint="f", settings={}, count=40)
    for index in (0, 7, 39):
        marks.mark(store, "s", index)
    assert {p.name for p in chunk_files(store, layout.marks("s"))} == {"0", "7", "39"}
    assert np.flatnonzero(marks.done(store, "s")).tolist() == [0, 7, 39]


def test_a_stage_of_other_settings_is_refused_by_their_names(store: RunStore) -> None:
    old = {"features": {"thickness": 5, "encoder": "texture"}, "points": "x"}
    marks.begin(store, "features", fingerprint="f", settings=old, count=2)
    marks.mark(store, "features", 1)
    new = {"features": {"thickness": 7, "encoder": "texture"}, "points": "x"}
    with pytest.raises(StoreError, match=r"features was made with .* \(features\.thickness: 5 → 7\).*--overwrite"):
        marks.begin(store, "features", fingerprint="g", settings=new, count=2)
    with pytest.raises(StoreError, match=r"\(what it was made from\)"):
        marks.begin(store, "features", fingerprint="g", settings=old, count=2)
    assert marks.done(store, "features").tolist() == [False, True]


def test_differences_are_named_by_their_whole_path() -> None:
    old = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "gone": 0, "same": [1, 2]}
    new = {"a": 1.5, "b": {"c": 2, "d": {"e": 4}}, "new": True, "same": [1, 2]}
    assert marks.differences(old, new) == ["a: 1 → 1.5", "b.d.e: 3 → 4", "gone: 0 → None", "new: None → True"]
    assert marks.differences(old, old) == []
    assert marks.differences({"points": "0a" * 32}, {"points": "0b" * 32}) == ["other points"]


@given(sides, sides, sides)
def test_a_slab_of_the_ingest_is_whole_chunks_on_every_level(z: int, y: int, x: int) -> None:
    shape = (z, y, x)
    levels = layout.level_count(shape)
    assert levels >= 1
    assert max(layout.level_shape(shape, levels - 1)) <= 256 or layout.INGEST_SLAB >> levels == 0
    assert levels == 1 or max(layout.level_shape(shape, levels - 2)) > 256
    for level in range(levels):
        depth = layout.level_chunks(level)[0]
        assert depth >= 1
        assert depth << level == layout.INGEST_SLAB
        stops = [-(-stop // (1 << level)) for _, stop in geometry.slabs(z, layout.INGEST_SLAB)]
        assert stops[-1] == layout.level_shape(shape, level)[0]
        assert all(stop % depth == 0 for stop in stops[:-1])


@settings(max_examples=200)
@given(st.sampled_from([16, 8, 4, 2, 1]), st.integers(1, 400), st.integers(1, 400), st.sampled_from([8, 64, 384, 4096]))
def test_latent_chunks_are_one_slab_all_channels_and_of_bounded_size(
    slices: int, rows: int, columns: int, channels: int
) -> None:
    chunk = layout.latent_chunks(slices, (rows, columns), channels)
    assert chunk[0] == slices
    assert chunk[3] == channels
    assert 1 <= chunk[1] <= rows
    assert 1 <= chunk[2] <= columns
    assert 2 * np.prod(chunk) <= max(layout.CHUNK_BYTES, 2 * 64 * slices * channels)
    assert chunk[1] in (rows, chunk[2]) or chunk[2] == columns
    assert chunk[1] >= min(rows, 8)
