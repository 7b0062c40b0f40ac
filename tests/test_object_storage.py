"""Runs and tomograms on object storage: equal to local ones, through faults, and without a word of secrets."""

from __future__ import annotations

import contextlib
import http.server
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import mrcfile
import numpy as np
import pytest
import zarr
from s3_server import BUCKET, TRANSIENT, Storage, after, client, environment, every
from view_server_support import ask, chunk_of

import cryosam_dask as cs
from cryosam_dask import cli, outputs
from cryosam_dask.errors import CryosamError, InputError, StoreError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.io import mrc_remote
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.stages import standardize
from cryosam_dask.storage import errors, filesystem
from cryosam_dask.storage.address import check_address, check_store, public, scrub
from cryosam_dask.store import layout, marks
from cryosam_dask.store.reviews import Decision, ReviewLog
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.viewer import session

SECRET, KEY, TOKEN = "s3cr3t/that+nobody0may1read", "AKIAKNOWNTOTHESETEST", "session-token-4711-of-the-test"
CLICK = [11.0, 11.0, 11.0]
SETTINGS = settings_for("texture+random-walker", {"match.ratios": [4], "match.rank": "similarity", "match.count": 2})


@pytest.fixture(scope="session")
def storage() -> Iterator[Storage]:
    made = Storage()
    client(made.url).create_bucket(Bucket=BUCKET)
    yield made
    made.close()


@pytest.fixture
def s3(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """The server, in the environment as users have it, with no connection open."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name, value in environment(storage.url, SECRET, KEY).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setattr(filesystem, "_FIRST_PAUSE", 0.01)  # this server needs no time to recover
    filesystem.forget()
    yield storage
    filesystem.forget()


@pytest.fixture(scope="session")
def specks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MRC of 24 × 32 × 36 voxels of 10 Å: two bright balls of radius 5 in noise."""
    z, y, x = np.indices((24, 32, 36))
    values = np.random.default_rng(0).normal(size=z.shape)
    for a, b, c in ((11, 11, 11), (12, 20, 26)):
        values += 3.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 25)
    path = tmp_path_factory.mktemp("specks") / "specks.mrc"
    with mrcfile.new(path, values.astype(np.float32)) as file:
        file.voxel_size = 10
    return path


@pytest.fixture(scope="session")
def local(specks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole job on a local disk, undisturbed."""
    out = tmp_path_factory.mktemp("local") / "run.zarr"
    cs.run(specks, [CLICK], out, settings=SETTINGS, workers=0)
    return out


def labels_of(run: str | Path) -> np.ndarray[Any, Any]:
    return RunStore.open(run).read(layout.labels("particle"))


def objects(storage: Storage, prefix: str) -> dict[str, bytes]:
    """All objects under a prefix, by a client that is not the program's."""
    s3 = client(storage.url)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {key: s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def upload(storage: Storage, path: Path, key: str) -> str:
    s3 = client(storage.url)
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        s3.upload_file(str(file), BUCKET, key if file == path else f"{key}/{file.relative_to(path)}")
    return f"s3://{BUCKET}/{key}"


def as_omezarr(specks: Path, folder: Path) -> Path:
    """The tomogram as an OME-Zarr image."""
    with mrcfile.open(specks) as file:
        group = zarr.create_group(folder / "specks.zarr")
        group.create_array("0", data=file.data, chunks=(16, 16, 16))
    axes = [{"name": name, "type": "space", "unit": "angstrom"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [10.0, 10.0, 10.0]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return folder / "specks.zarr"


def no_secret_in(text: str | bytes) -> None:
    for secret in (SECRET, KEY, TOKEN):
        assert (secret.encode() if isinstance(text, bytes) else secret) not in text


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_a_whole_run_through_faults_is_equal_and_usable(
    s3: Storage, specks: Path, local: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    """Tomogram and store on s3; every 23rd request goes wrong, in all ways in turn."""
    caplog.set_level(logging.DEBUG, "cryosam_dask")
    tomogram = upload(s3, as_omezarr(specks, tmp_path), "in/specks.zarr")
    run = f"s3://{BUCKET}/through-faults/run.zarr"
    with s3.failing(every(23)) as injected:
        cs.run(tomogram, [CLICK], run, settings=SETTINGS, workers=0)
    assert all(injected[kind] >= 5 for kind in TRANSIENT), injected
    expected = labels_of(local)
    assert expected.max() >= 1
    assert labels_of(run).tobytes() == expected.tobytes()
    # nothing lost, nothing left: chunk by chunk what a local run has
    found = {key.partition("run.zarr/")[2]: data for key, data in objects(s3, "through-faults/run.zarr/").items()}
    chunks = {str(p.relative_to(local)): p.read_bytes() for p in local.rglob("*") if p.is_file() and "c" in p.parts}
    assert {path: data for path, data in found.items() if "/c/" in path} == chunks
    again = cs.run(tomogram, [CLICK], run, settings=SETTINGS, workers=0)
    assert sum(map(len, again.timings.values())) == 0

    _is_usable(run, local, tmp_path, capsys)
    for data in found.values():
        no_secret_in(data)
    no_secret_in(caplog.text)
    assert "trying again" in caplog.text


def _is_usable(run: str, local: Path, folder: Path, capsys: Any) -> None:
    """What users do with a finished run."""
    for what in ("picks.csv", "picks.star", "labels.mrc"):
        outputs.export(run, folder / f"remote-{what}")
        outputs.export(local, folder / f"local-{what}")
    assert (folder / "remote-picks.csv").read_bytes() == (folder / "local-picks.csv").read_bytes()
    with mrcfile.open(folder / "remote-labels.mrc") as one, mrcfile.open(folder / "local-labels.mrc") as other:
        assert (one.data == other.data).all()
    figures = outputs.evaluate(run, folder / "local-picks.csv", 2.0)
    assert figures["f1"] == 1.0
    tree = cs.open_run(run)
    assert tree["labels/particle/scale0/labels"].chunks is not None
    assert (tree["labels/particle/scale0/labels"].compute().to_numpy() == labels_of(local)).all()
    one, other = cs.FeatureVolume.open(run), cs.FeatureVolume.open(local)
    assert (one.dense(16).compute().to_numpy() == other.dense(16).compute().to_numpy()).all()
    out, _ = command(capsys, "info", run)
    assert run in out
    assert f"s3://{BUCKET}/in/specks.zarr" in out


def command(capsys: Any, *words: str) -> tuple[str, str]:
    """The command line in this process: what it prints, and its errors' line."""
    before = sys.argv
    sys.argv = ["cryosam", *words]
    try:
        with contextlib.suppress(SystemExit):
            cli.main()
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    no_secret_in(out + err)
    return out, err


def test_stopped_by_expired_credentials_and_an_outage_it_goes_on_with_workers(
    s3: Storage, specks: Path, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tomogram, run = upload(s3, specks, "in/specks.mrc"), f"s3://{BUCKET}/stopped/run.zarr"

    def go(workers: int = 0) -> Driver:
        return cs.run(tomogram, [CLICK], run, settings=SETTINGS, workers=workers)

    began = time.monotonic()
    with s3.failing(after(150, "expired")) as injected, pytest.raises(StoreError) as denied:
        go()
    assert re.search(r"access denied: .*token has expired.* ExpiredToken.*same command again", str(denied.value))
    assert "\n" not in str(denied.value)
    assert 0 < injected["expired"] < 30
    assert time.monotonic() - began < filesystem.PATIENCE
    filesystem.forget()  # a new process
    monkeypatch.setenv("CRYOSAM_STORAGE_PATIENCE", "1")
    with s3.failing(after(250, "slow down")) as injected, pytest.raises(StoreError) as outage:
        go()
    assert re.search(r"for \d+ s: .*reduce your request rate.*503 SlowDown.*finished units are kept", str(outage.value))
    assert injected["slow down"] > 2
    monkeypatch.delenv("CRYOSAM_STORAGE_PATIENCE")
    filesystem.forget()
    with s3.failing(every(37)) as injected:
        driver = go(workers=2)
    assert injected.total() > 5
    assert labels_of(run).tobytes() == labels_of(local).tobytes()
    # slices of the standardization are parts of units
    done = sum(len(timings) for stage, timings in driver.timings.items() if stage != standardize.NAME)
    assert 0 < done < sum(int(marks.done(RunStore.open(run), name).sum()) for name in stages(run))
    assert not driver.timings.get("ingest")


def stages(run: str) -> list[str]:
    from cryosam_dask.stages import chain

    return list(chain.progress(RunStore.open(run)))


def test_a_second_query_and_overwrite(s3: Storage, specks: Path, local: Path) -> None:
    """On a copy of the local run, which is as good as one made there."""
    run = upload(s3, local, "copied/run.zarr")
    neighbour = upload(s3, specks, "copied/run.zarr.2/keep.mrc")
    other = settings_for("texture+random-walker", {"match.ratios": [4], "match.rank": "similarity", "match.count": 1})
    with pytest.raises(StoreError, match=r"match\.count: 2 → 1"):
        cs.run(specks, [CLICK], run, settings=other, workers=0)
    Driver(run, SerialExecutor()).query("second", [CLICK], other)
    one, two = (RunStore.open(run).read(f"{layout.query(name)}/feature") for name in ("particle", "second"))
    assert (one == two).all()
    assert labels_of(run).tobytes() == labels_of(local).tobytes()
    before = set(objects(s3, "copied/run.zarr/"))
    Driver(run, SerialExecutor(), overwrite=True).ingest(specks, voxel_size=12.0)
    left = set(objects(s3, "copied/run.zarr/"))
    assert not any(key.startswith(("copied/run.zarr/labels", "copied/run.zarr/features")) for key in left)
    assert len(left) < len(before) / 3
    assert RunStore.open(run).voxel_size == (12.0, 12.0, 12.0)
    assert neighbour.partition(f"{BUCKET}/")[2] in objects(s3, "copied/run.zarr.2/")


# --- the connection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRANSIENT)
def test_each_fault_is_tried_again(s3: Storage, kind: str) -> None:
    files, path = filesystem.filesystem(f"s3://{BUCKET}/each/{kind}")
    files.pipe_file(f"{path}/a", b"before")
    with s3.failing(every(5, [kind])) as injected:  # an operation takes up to four
        for index in range(8):
            files.pipe_file(f"{path}/{index}", bytes([index]) * 1000)
            assert files.cat_file(f"{path}/{index}") == bytes([index]) * 1000
        assert len(files.ls(path, detail=False)) == 9
        assert files.exists(f"{path}/7")
        assert not files.exists(f"{path}/8")
        files.rm(path, recursive=True)
    assert injected[kind] >= 3
    assert objects(s3, f"each/{kind}/") == {}


def test_silence_ends_by_a_timeout(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 0.5}})
    files, path = filesystem.filesystem(f"s3://{BUCKET}/silent")
    with s3.failing(lambda number, method, where: "silent" if number == 1 else None) as injected:
        files.pipe_file(path, b"said")
    assert injected["silent"] == 1
    assert files.cat_file(path) == b"said"


def test_an_upload_that_is_cut_leaves_nothing(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYOSAM_STORAGE_PATIENCE", "0")
    files, path = filesystem.filesystem(f"s3://{BUCKET}/cut/object")
    files.exists(path)
    with s3.failing(after(0, "cut")) as injected, pytest.raises(StoreError, match=r"cut/object: can't write it"):
        files.pipe_file(path, bytes(1 << 20))
    assert injected["cut"] > 0
    assert objects(s3, "cut/") == {}


def test_a_deletion_that_was_not_done_is_done(s3: Storage) -> None:
    store = RunStore.create(f"s3://{BUCKET}/forgetful.zarr", {"shape": [1, 1, 1]})
    store.put("queries/a/feature", np.arange(5.0), ("n",))
    store.put("queries/ab/feature", np.arange(5.0), ("n",))
    turns = iter([True])

    def first_deletion(number: int, method: str, path: str) -> str | None:
        return "forgetful" if method == "POST" and "delete" in path and next(turns, False) else None

    with s3.failing(first_deletion) as injected:
        store.delete("queries/a")
    assert injected["forgetful"] == 1
    assert objects(s3, "forgetful.zarr/queries/a/") == {}
    assert len(objects(s3, "forgetful.zarr/queries/ab/")) == 3
    assert "queries/ab" in store
    assert "queries/a" not in store


def test_what_others_write_is_seen_at_once(s3: Storage) -> None:
    store = RunStore.create(f"s3://{BUCKET}/listed.zarr", {})
    marks.begin(store, "stage", fingerprint="f", settings={}, count=5)
    assert not marks.done(store, "stage").any()
    marks.mark(store, "stage", 1)
    mark = objects(s3, "listed.zarr/marks/stage/c/1")["listed.zarr/marks/stage/c/1"]
    client(s3.url).put_object(Bucket=BUCKET, Key="listed.zarr/marks/stage/c/4", Body=mark)
    assert marks.done(store, "stage").tolist() == [False, True, False, False, True]
    client(s3.url).delete_object(Bucket=BUCKET, Key="listed.zarr/marks/stage/c/1")
    assert marks.done(store, "stage").tolist() == [False, False, False, False, True]


def test_a_write_that_must_be_the_first_is_known_as_ours_when_its_answer_was_lost(s3: Storage) -> None:
    files, path = filesystem.filesystem(f"s3://{BUCKET}/lease/lock")
    with s3.failing(lambda number, method, where: "lost" if number == 1 else None) as injected:
        files.pipe_file(path, b"mine", mode="create")
    assert injected["lost"] == 1
    with pytest.raises(FileExistsError):
        files.pipe_file(path, b"theirs", mode="create")
    assert files.cat_file(path) == b"mine"


def test_an_array_takes_few_requests(s3: Storage) -> None:
    """Each is a way to the storage and back: 30 ms, with a provider far away."""
    store = RunStore.create(f"s3://{BUCKET}/few.zarr", {})
    store.put("instances/p/group0/box", np.arange(6), ("n",))

    def requests(action: Callable[[], Any]) -> int:
        before = s3.requests
        action()
        return sum("few.zarr" in path for path in s3.asked[before:])  # others may still be trying

    assert requests(lambda: store.put("instances/p/group0/bits", np.arange(6), ("n",))) <= 4
    assert requests(lambda: RunStore.open(store.url).read("instances/p/group0/bits")) <= 3
    assert store.read("instances/p/group0/bits").tolist() == list(range(6))


@pytest.mark.parametrize(
    ("kind", "message", "most"),
    [
        ("denied", r"can't read it: access denied: Access Denied \(403 AccessDenied\); check the credentials", 1),
        ("expired", r"access denied: .*\(403 ExpiredToken\)", 1),
        ("error", r"can't read it for \d+ s: .*internal error.*500 InternalError.*finished units are kept", 40),
    ],
)
def test_it_ends_in_words(s3: Storage, monkeypatch: pytest.MonkeyPatch, kind: str, message: str, most: int) -> None:
    monkeypatch.setenv("CRYOSAM_STORAGE_PATIENCE", "1.5")
    files, path = filesystem.filesystem(f"s3://{BUCKET}/words/object")
    with s3.failing(after(0, kind)) as injected, pytest.raises(StoreError, match=message) as caught:
        files.cat_file(path)
    assert 1 <= injected[kind] <= most
    assert "\n" not in str(caught.value)
    assert "s3://tomograms/words/object" in str(caught.value)


# --- what goes wrong before anything begins --------------------------------------------------------------------------


def test_no_such_bucket(s3: Storage, capsys: Any) -> None:
    with pytest.raises(StoreError, match=r"s3://nowhere/run\.zarr: can't be written \(.*bucket does not exist"):
        RunStore.create("s3://nowhere/run.zarr", {})
    with pytest.raises(StoreError, match=r"s3://nowhere/run\.zarr: no run found here"):
        RunStore.open("s3://nowhere/run.zarr")
    with pytest.raises(InputError, match=r"s3://nowhere/t\.mrc: no such file"):
        open_tomogram("s3://nowhere/t.mrc")
    with pytest.raises(InputError, match=r"s3://nowhere/t\.zarr: no Zarr group or array there"):
        open_tomogram("s3://nowhere/t.zarr")
    assert command(capsys, "info", "s3://nowhere/run.zarr")[1].count("\n") == 1


@pytest.mark.parametrize("address", ["s3://tomograms/run.zarr", "s3://tomograms/t.mrc", "s3://tomograms/t.zarr"])
def test_nobody_there(
    s3: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    caplog.set_level(logging.DEBUG, "cryosam_dask")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"no answer: .*127\.0\.0\.1:9.*check the address, AWS_ENDPOINT_URL") as caught:
        RunStore.exists(address) if address.endswith("run.zarr") else open_tomogram(address)
    assert time.monotonic() - began < filesystem.PATIENCE
    assert "\n" not in str(caught.value)
    no_secret_in(str(caught.value) + caplog.text)


def test_a_worker_waits_for_storage_that_its_driver_has_used(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("CRYOSAM_STORAGE_PATIENCE", "5")
    filesystem.expect(f"s3://{BUCKET}/run.zarr")
    began = time.monotonic()
    with pytest.raises(StoreError, match="no answer"):
        RunStore.exists(f"s3://{BUCKET}/run.zarr")
    assert 3.5 < time.monotonic() - began < filesystem.PATIENCE


def test_no_credentials(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match=r"no usable credentials: .*AWS_PROFILE"):
        RunStore.exists(f"s3://{BUCKET}/run.zarr")
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    filesystem.forget()
    with pytest.raises(StoreError, match=r"no usable credentials: .*not-there"):
        RunStore.exists(f"s3://{BUCKET}/run.zarr")


def test_a_profile_in_the_users_files_is_used(s3: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile lab]\nendpoint_url = {s3.url}\nregion = us-east-1\n")
    (tmp_path / "keys").write_text(f"[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert not RunStore.exists(f"s3://{BUCKET}/nothing-here.zarr")
    assert RunStore.create(f"s3://{BUCKET}/by-profile.zarr", {}).url in f"s3://{BUCKET}/by-profile.zarr"


def test_the_page_shows_a_run_in_storage(s3: Storage, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = upload(s3, local, "viewed/run.zarr")
    here = RunStore.open(local)
    with cs.view(run, workers=0) as page:
        state = ask(page.url, "api/state").json
        assert state["run"]["ingested"]
        kind, version = state["kinds"][0], state["tomogram"]["version"]
        chunk = chunk_of(ask(page.url, f"data/tomogram-v{version}/0/0-36_0-32_8-16"), (8, 32, 36))
        low, high = state["tomogram"]["range"]
        expected = np.clip(here.read(layout.tomogram())[8:16], low, high)
        np.testing.assert_allclose(low + chunk / 255 * (high - low), expected, atol=(high - low) / 500)
        labels = f"data/labels-particle-{kind['picks']['version']}"
        shown = chunk_of(ask(page.url, f"{labels}/0/0-36_0-32_8-16"), (8, 32, 36), "<u4")
        np.testing.assert_array_equal(shown, here.read(layout.labels("particle"))[8:16])
        assert len(ask(page.url, f"{labels}/mesh/1.all").body) > 1000
        with s3.failing(after(0, "denied")):
            refused = ask(page.url, f"{labels}/0/0-36_0-32_16-24")
        assert refused.status == 500
        assert "access denied" in refused.error
        no_secret_in(refused.body + str(state).encode())
    _is_idle_until_others_write(run, s3, monkeypatch)


def _is_idle_until_others_write(run: str, s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "POLL", 0.05)
    with contextlib.closing(session.Session(run)) as opened:
        while opened._others_wrote():  # what has just been opened asks once more
            pass
        asked = s3.requests
        assert not opened._others_wrote()
        assert 0 < s3.requests - asked <= session.REMOTE_POLL, "one request a second at most"
        monkeypatch.setattr(session, "REMOTE_POLL", 0.05)
        told = threading.Event()
        opened.subscribe(told.set)
        table = opened.picks("particle")
        place = (float(v) for v in table["positions"][0])
        ReviewLog(RunStore.open(run, "r+"), "particle").write([Decision(1, tuple(place), "accepted")])
        assert told.wait(30)
        assert opened.snapshot()["kinds"][0]["decided"]["accepted"] == 1


def test_s3fs_is_not_installed(s3: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(StoreError, match=r"s3://tomograms/run\.zarr: .*needs another package: .*pip install.*s3fs"):
        RunStore.exists(f"s3://{BUCKET}/run.zarr")
    with pytest.raises(StoreError, match=r"can't reach it: .*nosuch"):
        RunStore.exists("nosuch://there/run.zarr")


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        f"s3://{KEY}:{SECRET}@tomograms/run.zarr",
        f"s3://{KEY}:{SECRET}@tomograms/t.mrc",
        f"s3://{KEY}@tomograms/run.zarr",
        f"s3://tomograms/run.zarr?key={KEY}&secret={SECRET}",
        f"https://user:{TOKEN}@host/t.mrc",
        f"https://{TOKEN}@host/t.zarr",
        f"simplecache::s3://{KEY}:{SECRET}@tomograms/t.mrc",
        f"sftp://me:{TOKEN}@host/run.zarr",
    ],
)
def test_keys_in_an_address_are_refused_and_not_repeated(capsys: Any, tmp_path: Path, address: str) -> None:
    for check in (
        lambda: open_tomogram(address),
        lambda: RunStore.create(address, {}),
        lambda: RunStore.exists(address),
    ):
        with pytest.raises(CryosamError) as caught:
            check()
        no_secret_in(str(caught.value))
        assert "\n" not in str(caught.value)
    for words in (["info", address], ["ingest", address, "--out", str(tmp_path / "r.zarr"), "--workers", "0"]):
        assert command(capsys, *words)[1].startswith("cryosam: error: ")
    assert not (tmp_path / "r.zarr").exists()


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/a@b/run.zarr",
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine/run.zarr",
        "abfs://container@account.dfs.core.windows.net/run.zarr",
        "sftp://me@host/run.zarr",
        "https://host:8080/a@b/t.mrc",
        "https://host/t.mrc?X-Amz-Signature=abc",
        "/data/a:b@c/run.zarr",
    ],
)
def test_addresses_without_secrets_are_taken(address: str) -> None:
    check_address(address)


def test_stores_need_more_than_http() -> None:
    with pytest.raises(StoreError, match="can't be written or listed over http"):
        check_store("https://host/run.zarr")
    with pytest.raises(StoreError, match="ends before"):
        check_store("s3://bucket/run.zarr?versionId=7")


def test_a_signed_link_is_used_and_nowhere_written(
    s3: Storage, specks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    caplog.set_level(logging.DEBUG, "cryosam_dask")
    upload(s3, specks, "in/signed.mrc")
    link = client(s3.url).generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "in/signed.mrc"})
    query = link.partition("?")[2]
    assert "Signature=" in query
    out, err = command(capsys, "-v", "ingest", link, "--out", str(tmp_path / "run.zarr"), "--workers", "0")
    assert err.count("error") == 0, err
    store = RunStore.open(tmp_path / "run.zarr")
    assert store.info["input"]["path"] == f"{s3.url}/{BUCKET}/in/signed.mrc"
    assert store.info["input"]["name"] == "signed.mrc"
    with mrcfile.open(specks) as file:
        assert (store.read(layout.tomogram()) == file.data).all()
    with (
        s3.failing(after(0, "denied")),
        pytest.raises(StoreError, match=r"signed\.mrc: can't read it: access denied") as no,
    ):
        open_tomogram(link)
    missing = re.sub(r"signed\.mrc", "missing.mrc", link)
    with pytest.raises(InputError, match=r"missing\.mrc: no such file") as none:
        open_tomogram(missing)
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    texts = written, (out + err + caplog.text + str(no.value) + str(none.value) + repr(open_tomogram(link))).encode()
    for value in [part.partition("=")[2] for part in query.split("&")]:
        assert not any(value.encode() in text for text in texts), value


def test_messages_of_others_are_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    text = (
        f"403, url='https://me:{TOKEN}@host/t.mrc?sig=abc%3D&se=1'\n of {SECRET}, {TOKEN}: see https://docs/page#part"
    )
    assert scrub(text) == "403, url='https://host/t.mrc' of …, …: see https://docs/page"
    assert public("https://host/t.mrc?sig=abc#d") == "https://host/t.mrc"
    assert public("/data/what?.mrc") == "/data/what?.mrc"


def test_errors_of_packages_are_understood_by_name() -> None:
    class HttpError(OSError):
        def __init__(self, code: int) -> None:
            self.code = code
            super().__init__("told")

    assert errors.classify(HttpError(503)).transient
    assert not errors.classify(HttpError(400)).transient
    assert "access denied" in errors.classify(HttpError(403)).reason
    assert errors.classify(ConnectionResetError()).transient
    assert errors.classify(ConnectionRefusedError()).unreachable
    assert errors.classify(TimeoutError()).transient
    assert errors.classify(FileNotFoundError("x")).missing is not None
    hidden = FileNotFoundError("x")
    hidden.__cause__ = HttpError(503)
    assert errors.classify(hidden).transient


# --- MRC by ranges ---------------------------------------------------------------------------------------------------


def remote_copy(path: Path) -> str:
    """A copy on fsspec's memory filesystem."""
    url = f"memory://mrc/{path.parent.name}/{path.name}"
    fsspec.filesystem("memory").pipe_file(f"/mrc/{path.parent.name}/{path.name}", path.read_bytes())
    return url


@pytest.mark.parametrize("mode", [0, 1, 2, 6, 12])
@pytest.mark.parametrize(("axes", "order"), [((1, 2, 3), "<"), ((1, 2, 3), ">"), ((3, 1, 2), "<")])
def test_a_remote_mrc_reads_as_the_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, axes: tuple[int, int, int], order: str
) -> None:
    path = tmp_path / "t.mrc"
    dtype = np.dtype({0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}[mode])
    values = np.random.default_rng(mode).integers(0, 100, (7, 9, 11)).astype(dtype)
    with mrcfile.new(path) as file:
        file.set_data(values)
        file.voxel_size = 3
        file.set_extended_header(np.zeros(40, "V1"))
        file.header.mapc, file.header.mapr, file.header.maps = axes
    if order == ">":
        raw = bytearray(path.read_bytes())
        words = np.frombuffer(raw[:1024], "<u4").byteswap()
        texts = {52, 53, *range(56, 256)}  # the stamps and the labels are bytes
        kept = [i for i in range(256) if i not in texts]
        header = np.frombuffer(bytes(raw[:1024]), "<u4").copy()
        header[kept] = words[kept]
        new = bytearray(header.tobytes())
        new[212:214] = b"\x11\x11"
        path.write_bytes(bytes(new) + raw[1024:1064] + values.astype(dtype.newbyteorder(">")).tobytes())
    url = remote_copy(path)
    one, other = open_tomogram(path), open_tomogram(url)
    for name in ("shape", "dtype", "voxel_size", "origin", "identity", "notes", "offset", "stored", "order"):
        assert getattr(one, name) == getattr(other, name), name
    rng = np.random.default_rng(1)
    for piece, gap in ((1 << 22, 1 << 16), (64, 1 << 16), (64, 4), (1 << 22, 4)):
        monkeypatch.setattr(mrc_remote, "_PIECE", piece)
        monkeypatch.setattr(mrc_remote, "_GAP", gap)
        for _ in range(6):
            block = tuple(slice(*sorted(rng.integers(0, n + 1, 2))) for n in one.shape)
            for part in (block, (slice(None), slice(None), slice(None)), (slice(1, 3), slice(None), slice(2, 9))):
                found = other.read(part)  # type: ignore[arg-type]
                expected = one.read(part)  # type: ignore[arg-type]
                assert found.dtype == expected.dtype
                assert found.shape == expected.shape
                assert found.tobytes() == expected.tobytes()
                assert found.flags.c_contiguous
                assert found.flags.owndata or found.base is not None


def test_only_what_is_asked_for_is_read(s3: Storage, tmp_path: Path) -> None:
    path = tmp_path / "large.mrc"
    with mrcfile.new(path, np.random.default_rng(0).normal(size=(64, 128, 128)).astype(np.float32)) as file:
        file.voxel_size = 10
    url = upload(s3, path, "in/large.mrc")
    asked: list[tuple[int, int]] = []
    files, _ = filesystem.filesystem(url)
    cat = type(files)._cat_file

    async def spy(self: Any, where: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> Any:
        if where.endswith("large.mrc"):
            assert start is not None
            assert end is not None
            asked.append((start, end))
        return await cat(self, where, start, end, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(files), "_cat_file", spy)
        filesystem.forget()
        source = open_tomogram(url)
        opened = sum(b - a for a, b in asked)
        assert opened <= 1024 + 16 * (1 << 16)
        asked.clear()
        block = (slice(8, 16), slice(0, 128), slice(0, 128))
        voxels = source.read(block)
        assert sum(b - a for a, b in asked) == voxels.nbytes
        assert len(asked) == 1
        asked.clear()
        open_tomogram(url)
        assert sum(b - a for a, b in asked) <= 1024  # the samples of this version are known
    assert voxels.tobytes() == open_tomogram(path).read(block).tobytes()


def test_a_changed_or_cut_object_is_noticed(s3: Storage, specks: Path) -> None:
    url = upload(s3, specks, "in/changing.mrc")
    source = open_tomogram(url)
    data = bytearray(specks.read_bytes())
    data[-1] ^= 1
    client(s3.url).put_object(Bucket=BUCKET, Key="in/changing.mrc", Body=bytes(data))
    changed = open_tomogram(url)
    assert changed.identity["sha256_sampled"] != source.identity["sha256_sampled"]
    client(s3.url).put_object(Bucket=BUCKET, Key="in/changing.mrc", Body=bytes(data[:-100]))
    with pytest.raises(InputError, match=r"changing\.mrc: truncated: expected \d+ bytes .* found \d+"):
        open_tomogram(url)
    with pytest.raises(
        InputError, match=r"changing\.mrc: expected \d+ bytes from \d+, found \d+; it was cut or replaced"
    ):
        source.read((slice(None), slice(None), slice(None)))
    client(s3.url).put_object(Bucket=BUCKET, Key="in/changing.mrc", Body=b"")
    with pytest.raises(InputError, match=r"changing\.mrc: empty"):
        open_tomogram(url)
    client(s3.url).delete_object(Bucket=BUCKET, Key="in/changing.mrc")
    with pytest.raises(InputError, match=r"changing\.mrc: can't be read any more"):
        source.read((slice(0, 1), slice(None), slice(None)))


class _NoRanges(http.server.BaseHTTPRequestHandler):
    """A web server that sends files whole, whatever is asked for."""

    sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 30))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(1 << 14):
                self.wfile.write(bytes(1 << 16))
                type(self).sent += 1 << 16

    def log_message(self, *args: Any) -> None:
        """Nothing."""


def test_a_server_without_ranges_is_not_downloaded_from() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NoRanges)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        with pytest.raises(StoreError, match=r"t\.mrc: this server does not serve parts of a file; download it first"):
            open_tomogram(f"http://127.0.0.1:{server.server_port}/t.mrc")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        filesystem.forget()
    assert _NoRanges.sent < 64 << 20
