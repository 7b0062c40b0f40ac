"""A store made by somebody else: nothing in it is run, and nothing outside of it is written or removed."""

from __future__ import annotations

import base64
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

import cryosam_dask as cs
from cryosam_dask.errors import StoreError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.pipeline import Driver, integrity, settings_for
from cryosam_dask.stages import segment
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.store.views import query_names

INFO = {
    "shape": [8, 9, 10],
    "voxel_size": [10.0, 10.0, 10.0],
    "origin": [0.0, 0.0, 0.0],
    "input": {"path": "x.mrc"},
    "statistics": {"mean": 0.0, "std": 1.0, "low": -1.0, "high": 1.0},
}


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(tmp_path / "run.zarr", INFO)


@pytest.fixture
def bomb(tmp_path: Path) -> Path:
    path = tmp_path / "bang"
    pickle.loads(pickle.dumps(Bomb(path)))
    path.unlink()  # it does what it is for
    return path


def version_2(folder: Path, bomb: Path) -> None:
    """An array of zarr's second format whose chunks are pickles."""
    folder.mkdir(parents=True)
    described = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "fill_value": None,
        "order": "C",
        "compressor": None,
        "filters": [{"id": "pickle", "protocol": 5}],
    }
    (folder / ".zarray").write_text(json.dumps(described))
    (folder / "0").write_bytes(numcodecs.Pickle().encode(np.array([Bomb(bomb)], object)))


def version_3(folder: Path, bomb: Path, codecs: list[dict[str, Any]], kind: Any = "uint8") -> None:
    """The same in the third format, as far as it can be said there."""
    (folder / "c").mkdir(parents=True)
    described = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [8],
        "data_type": kind,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
    }
    (folder / "zarr.json").write_text(json.dumps(described))
    (folder / "c" / "0").write_bytes(pickle.dumps(Bomb(bomb)))


CODECS: list[list[dict[str, Any]]] = [
    [{"name": "numcodecs.pickle", "configuration": {"protocol": 5}}],
    [{"name": "pickle"}],
    [{"name": "bytes"}, {"name": "numcodecs.pickle"}],
    [{"name": "bytes"}, {"name": "numcodecs.zlib", "configuration": {"level": 1}}],
    [{"name": "vlen-bytes"}],
]


def use_all(url: Path) -> list[str]:
    """Whatever reads a store; the errors, which must be lines for users."""
    said = []
    for use in (
        lambda: RunStore.open(url).read("picks/ball/z"),
        lambda: picks.read(RunStore.open(url), "ball"),
        lambda: cs.FeatureVolume.open(url).mean,
        lambda: integrity.verify(url).in_words(),
        lambda: Driver(url, SerialExecutor()).match("ball"),
        lambda: Driver(url, SerialExecutor()).query("ball", [[1, 1, 1]], settings_for("texture+random-walker")),
        lambda: cs.export(url, url.parent / "p.csv"),
    ):
        try:
            said.append(str(use()))
        except cs.CryosamError as error:
            said.append(str(error))
    return said


def test_a_store_of_zarrs_second_format_is_no_run(tmp_path: Path, bomb: Path) -> None:
    url = tmp_path / "run.zarr"
    zarr.create_group(url, zarr_format=2, attributes={"cryosam": {"format": layout.FORMAT, **INFO}})
    version_2(url / "picks/ball/z", bomb)
    assert not RunStore.exists(url)
    use_all(url)
    with pytest.raises(StoreError, match="no run found"):
        RunStore.open(url)
    assert not bomb.exists()


def test_arrays_of_the_second_format_in_a_run_are_not_read(store: RunStore, bomb: Path) -> None:
    store.group("picks/ball")
    version_2(Path(store.url) / "picks/ball/z", bomb)
    use_all(Path(store.url))
    with pytest.raises(StoreError):
        store.read("picks/ball/z")
    assert not bomb.exists()


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.parametrize("codecs", CODECS, ids=lambda codecs: "+".join(c["name"] for c in codecs))
def test_only_codecs_that_the_program_writes_are_read(
    store: RunStore, bomb: Path, codecs: list[dict[str, Any]]
) -> None:
    store.group("picks/ball")
    for path in ("picks/ball/z", "features/sums/z", "marks/query/ball"):
        version_3(Path(store.url) / path, bomb, codecs)
    with pytest.raises(StoreError, match=r"which this program does not write|zarr\.json is damaged") as caught:
        store.read("picks/ball/z")
    assert "\n" not in str(caught.value)
    use_all(Path(store.url))
    assert not bomb.exists()


@pytest.mark.parametrize(
    "kind", ["string", "variable_length_bytes", {"name": "fixed_length_utf32", "configuration": {}}]
)
def test_only_numbers_are_read(store: RunStore, bomb: Path, kind: Any) -> None:
    version_3(Path(store.url) / "a", bomb, [{"name": "vlen-utf8" if kind == "string" else "vlen-bytes"}], kind)
    with pytest.raises(StoreError):
        store.read("a")
    assert not bomb.exists()


def test_a_state_that_is_a_pickle_is_refused(store: RunStore, bomb: Path) -> None:
    """What a waiting group left is read as arrays alone."""
    store.put("queries/ball/state00000", np.frombuffer(pickle.dumps(Bomb(bomb)), np.uint8), ("byte",))
    with pytest.raises(ValueError, match=r"pickle|allow_pickle"):
        segment._read_state(store, "queries/ball/state00000")
    assert not bomb.exists()
    assert base64.b64encode(store.read("queries/ball/state00000").tobytes())


PLACES = ["../../x", "/etc", "a/../../../b", "a//b", ".", "..", "a/./b", "a\0b", "a\\..\\b", ""]


@pytest.mark.parametrize("place", PLACES)
def test_no_path_leads_out_of_the_store(store: RunStore, tmp_path: Path, place: str) -> None:
    (tmp_path / "x").mkdir()
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    for use in (
        lambda: store.delete(place),
        lambda: store.put(place, np.zeros(3), ("i",)),
        lambda: store.group(place),
    ):
        with pytest.raises(StoreError, match="is no place in a store"):
            use()
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a\0b", "x" * 300, "..", "a/b", "queries/../../x"])
def test_no_name_of_a_query_leads_out_of_the_store(store: RunStore, tmp_path: Path, name: str) -> None:
    driver = Driver(store.url, SerialExecutor(), overwrite=True)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    for use in (
        lambda: driver.query(name, [[1, 1, 1]], settings_for("texture+random-walker")),
        lambda: driver.match(name),
        lambda: driver.segment(name),
    ):
        with pytest.raises(StoreError, match="can't be used"):
            use()
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody's, that a store has links to."""
    folder = tmp_path / "precious"
    (folder / "ball").mkdir(parents=True)
    (folder / "ball" / "thesis.txt").write_text("…")
    return folder


def test_links_are_removed_and_not_followed(store: RunStore, outside: Path) -> None:
    root = Path(store.url)
    store.group("labels/kept")
    (root / "labels" / "ball").symlink_to(outside / "ball", target_is_directory=True)
    (root / "picks").symlink_to(outside, target_is_directory=True)
    (root / "file").symlink_to(outside / "ball" / "thesis.txt")
    store.delete("labels/ball")
    store.delete("file")
    with pytest.raises(StoreError, match="picks is a link, of which a run has none"):
        store.delete("picks/ball")
    with pytest.raises(StoreError, match="picks is a link"):
        store.put("picks/ball/z", np.zeros(3), ("i",))
    with pytest.raises(StoreError, match="picks is a link"):
        store.group("picks/other")
    assert not os.path.lexists(root / "labels" / "ball")
    store.put("labels/ball/a", np.zeros(3), ("i",))
    assert [p.name for p in outside.rglob("*")] == ["ball", "thesis.txt"]
    integrity.verify(root)


def test_overwriting_a_run_leaves_what_it_links_to(store: RunStore, outside: Path) -> None:
    root = Path(store.url)
    store.group("queries")
    (root / "queries" / "evil").symlink_to(outside, target_is_directory=True)
    (root / "features").symlink_to(outside, target_is_directory=True)
    assert query_names(store) == []
    RunStore.remove(root)
    assert not root.exists()
    assert [p.name for p in outside.rglob("*")] == ["ball", "thesis.txt"]


def test_a_run_behind_a_link_is_emptied_and_the_link_stays(store: RunStore, tmp_path: Path) -> None:
    """People keep runs on a scratch disk and link to them."""
    link = tmp_path / "link.zarr"
    link.symlink_to(store.url, target_is_directory=True)
    RunStore.remove(link)
    assert link.is_symlink()
    assert list(Path(store.url).iterdir()) == []
    RunStore.create(link, INFO)
    assert RunStore.open(store.url).shape == (8, 9, 10)
