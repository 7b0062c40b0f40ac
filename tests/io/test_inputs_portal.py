"""Tomograms as the CryoET Data Portal serves them: OME-Zarr 0.4 and MRC over HTTPS and from its public bucket.

One server on loopback stands for both: objects under `/BUCKET/KEY`, ranges, and for what is not there 404 as S3 says
it, or 403, as buckets do whose listing is private.
"""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mrcfile
import numcodecs
import numpy as np
import pytest
import zarr

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.executors.serial import SerialExecutor
from cryosam_dask.io import omezarr, open_tomogram
from cryosam_dask.io.listing import find_tomograms, run_names
from cryosam_dask.pipeline import Driver
from cryosam_dask.storage import filesystem
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore

ALL = (slice(None), slice(None), slice(None))
BUCKET = "cryoet-data-portal-public"
TOMOGRAM = "10445/TS_100_3/Reconstructions/VoxelSpacing10.012/Tomograms/100/TS_100_3"
VOLUME = np.random.default_rng(5).normal(size=(18, 30, 30)).astype(np.float32)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bucket's folder: a tomogram as `.zarr`, of three levels in chunks of Blosc's LZ4, and as `.mrc`."""
    folder = tmp_path_factory.mktemp("portal")
    path = folder / BUCKET / f"{TOMOGRAM}.zarr"
    path.parent.mkdir(parents=True)
    write_image(path, 2)
    write_image(path.with_name("v05.zarr"), 3)
    with mrcfile.new(path.with_suffix(".mrc"), VOLUME) as file:
        file.voxel_size = 10.012
    return folder


def write_image(path: Path, version: int) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=version)  # type: ignore[arg-type]
    datasets = []
    for level in range(3):
        data = VOLUME[:: 1 << level, :: 1 << level, :: 1 << level]
        options: dict[str, Any] = {"shape": data.shape, "dtype": "<f4", "chunks": (8, 16, 16)}
        if version == 2:
            options["compressors"] = numcodecs.Blosc(cname="lz4", clevel=5, shuffle=1)
            options["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
        else:
            options["compressors"] = zarr.codecs.BloscCodec(cname="zstd", clevel=5)
        group.create_array(str(level), **options)[...] = data
        scale = [10.012 * (1 << level)] * 3
        transformations = [{"scale": scale, "type": "scale"}]
        datasets.append({"coordinateTransformations": transformations, "path": str(level)})
    axes = [{"name": name, "type": "space", "unit": "angstrom"} for name in "zyx"]
    image = {"axes": axes, "datasets": datasets, "name": "/"}
    if version == 2:
        group.attrs["multiscales"] = [{**image, "version": "0.4"}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


class Server(http.server.ThreadingHTTPServer):
    """`asked`: method, path and headers of each request; `missing`: the status of what is not there; `denied`: parts of
    paths that are answered with 403."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.missing = root, 404
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.denied: tuple[str, ...] = ()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/")
        path = self.server.root / name
        self.server.asked.append((self.command, name, dict(self.headers)))
        if not path.is_file() or any(part in name for part in self.server.denied):
            status = 403 if path.is_file() else self.server.missing
            code = "NoSuchKey" if status == 404 else "AccessDenied"
            return self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())
        raw, given = path.read_bytes(), self.headers.get("Range")
        if given is None:
            return self.answer(200, raw)
        first, _, last = given.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(raw)) + 1, len(raw))
        return self.answer(206, raw[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(raw)}"})

    do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "ETag": '"one"', **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, nobody's credentials, and no connection open."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    made = Server(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    filesystem.forget()
    yield made
    filesystem.forget()
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize(
    ("protocol", "missing", "name"),
    [
        ("http", 404, f"{TOMOGRAM}.zarr"),
        ("http", 403, f"{TOMOGRAM}.zarr"),
        ("http", 403, f"{Path(TOMOGRAM).parent}/v05.zarr"),
        ("http", 404, f"{TOMOGRAM}.mrc"),
        ("s3", 404, f"{TOMOGRAM}.zarr"),
        ("s3", 403, f"{TOMOGRAM}.zarr"),
        ("s3", 404, f"{TOMOGRAM}.mrc"),
    ],
)
def test_it_is_read_without_credentials(server: Server, protocol: str, missing: int, name: str, bucket: Path) -> None:
    """Buckets answer 404 to those who may list them; web servers in front of them 403 in general."""
    server.missing = missing
    url = f"{server.url}/{BUCKET}/{name}" if protocol == "http" else f"s3://{BUCKET}/{name}"
    source = open_tomogram(url)
    assert source.voxel_size == (10.012,) * 3
    for box in (ALL, (slice(3, 11), slice(14, 17), slice(29, 30))):
        np.testing.assert_array_equal(source.read(box), VOLUME[box])
    local = open_tomogram(bucket / BUCKET / name)
    assert source.identity == local.identity
    assert not [asked for asked in server.asked if "Authorization" in asked[2]]
    assert run_names(find_tomograms([url])) == [Path(name).stem]


def test_coarser_levels(server: Server) -> None:
    source = open_tomogram(f"{server.url}/{BUCKET}/{TOMOGRAM}.zarr/1")
    assert source.voxel_size == (20.024,) * 3
    np.testing.assert_array_equal(source.read(ALL), VOLUME[::2, ::2, ::2])


def test_ingest_fetches_each_chunk_once_besides_what_identifies_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three places identify an image, for the driver and each process, not for each unit; here they are all of it."""
    monkeypatch.setattr(layout, "INGEST_BOX", (32, 16, 32))
    monkeypatch.setattr(layout, "CHUNK", (32, 16, 32))
    driver = Driver(tmp_path / "run.zarr", SerialExecutor())
    driver.ingest(f"{server.url}/{BUCKET}/{TOMOGRAM}.zarr")
    fetched = Counter(name for _, name, _ in server.asked if "/0/" in name and name[-1].isdigit())
    assert len(fetched) == 3 * 2 * 2
    assert set(fetched.values()) == {1 + 2 * 3}
    np.testing.assert_array_equal(RunStore.open(driver.url).read(layout.tomogram()), VOLUME)


def test_what_is_denied_is_never_taken_for_empty(server: Server) -> None:
    """Metadata may be denied where there is none; chunks, or all of it, may not."""
    server.missing = 403
    source = open_tomogram(f"{server.url}/{BUCKET}/{TOMOGRAM}.zarr")
    server.denied = ("/0/1/1/1",)
    with pytest.raises(StoreError, match="access denied"):
        source.read(ALL)
    server.denied = (".zarr",)
    with pytest.raises(StoreError, match="access denied"):
        open_tomogram(f"{server.url}/{BUCKET}/{TOMOGRAM}.zarr")
    server.denied, server.missing = (), 404
    with pytest.raises(InputError, match="no Zarr group or array there"):
        open_tomogram(f"{server.url}/{BUCKET}/none.zarr")


def test_credentials_are_used_where_there_are_any(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOBODY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-the-test")
    open_tomogram(f"s3://{BUCKET}/{TOMOGRAM}.mrc")
    assert all("Authorization" in headers for _, _, headers in server.asked)
    server.asked.clear()
    filesystem.forget()
    monkeypatch.setitem(filesystem.fsspec.config.conf, "s3", {"anon": True})  # as FSSPEC_S3_ANON=true does
    open_tomogram(f"s3://{BUCKET}/{TOMOGRAM}.mrc")
    assert not [headers for _, _, headers in server.asked if "Authorization" in headers]


def test_chunks_are_decoded_few_at_a_time(
    server: Server, monkeypatch: pytest.MonkeyPatch, bucket: Path, tmp_path: Path
) -> None:
    """However many chunks a box touches, zarr is asked for `_AT_ONCE` bytes of them together."""
    path = shutil.copytree(bucket / BUCKET / f"{TOMOGRAM}.zarr", tmp_path / "tomo.zarr")
    source = open_tomogram(path)
    asked: list[tuple[int, ...]] = []
    real = zarr.Array.__getitem__

    def noted(self: Any, selection: Any) -> Any:
        asked.append(
            tuple(-(-part.stop // n) - part.start // n for part, n in zip(selection, self.chunks, strict=True))
        )
        return real(self, selection)

    monkeypatch.setattr(zarr.Array, "__getitem__", noted)
    for most, pieces in ((1, 12), (2 * 8192, 6), (4 * 8192, 3), (1 << 27, 1)):
        monkeypatch.setattr(omezarr, "_AT_ONCE", most)
        asked.clear()
        np.testing.assert_array_equal(source.read(ALL), VOLUME)
        assert len(asked) == pieces
        assert max(map(int, np.prod(asked, axis=1))) <= max(1, most // 8192)
        box = (slice(7, 17), slice(15, 16), slice(3, 30))
        np.testing.assert_array_equal(source.read(box), VOLUME[box])
    assert source.read((slice(8, 8), slice(0, 3), slice(16, 16))).shape == (0, 3, 0)
