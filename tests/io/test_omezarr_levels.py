"""The finest level of an OME-Zarr is read, wherever it is listed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.io import open_tomogram
from cryosam_dask.io.omezarr_open import level_array

ALL = (slice(None), slice(None), slice(None))
VOLUME = np.random.default_rng(0).integers(0, 100, (18, 20, 30)).astype(np.int16)
SCALES: dict[str, Any] = {"0": (10,) * 3, "1": (20,) * 3, "2": (40,) * 3}
STEPS = {"0": 1, "1": 2, "2": 4}


def write(url: str, order: str, version: int = 3, scales: dict[str, Any] = SCALES, shapes: str = "012") -> str:
    """An image whose levels are listed in this order; `shapes`: which step each of levels 0, 1, 2 is made with."""
    group = zarr.open_group(url, mode="w", zarr_format=version)  # type: ignore[arg-type]
    datasets = []
    for name in order:
        step = STEPS[shapes[int(name)]]
        data = VOLUME[::step, ::step, ::step]
        group.create_array(name, shape=data.shape, chunks=data.shape, dtype=data.dtype)[...] = data
        dataset: dict[str, Any] = {"path": name}
        if name in scales:
            dataset["coordinateTransformations"] = [{"type": "scale", "scale": list(scales[name])}]
        datasets.append(dataset)
    axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    image = {"version": "0.4" if version == 2 else "0.5", "axes": axes, "datasets": datasets}
    group.attrs.update({"multiscales": [image]} if version == 2 else {"ome": {"multiscales": [image]}})
    return url


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[Callable[[str, str], str]]:
    """The address of a folder on a disk, in memory, or behind a web server."""
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def at(url: str, place: str) -> str:
        return f"http://127.0.0.1:{served.server_address[1]}/{Path(url).name}" if place == "http" else url

    yield at
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("place", "order"),
    [
        ("disk", "012"),
        ("disk", "210"),
        ("disk", "102"),
        ("disk", "120"),
        ("memory", "120"),
        ("http", "012"),
        ("http", "210"),
    ],
)
def test_the_finest_is_read(
    address: Callable[[str, str], str], version: int, place: str, order: str, tmp_path: Path
) -> None:
    url = f"memory://{tmp_path.name}/tomo.zarr" if place == "memory" else str(tmp_path / "tomo.zarr")
    where = address(write(url, order, version), place)
    source = open_tomogram(where)
    assert (source.shape, source.voxel_size) == (VOLUME.shape, (10.0, 10.0, 10.0))
    np.testing.assert_array_equal(source.read(ALL), VOLUME)
    note = "its levels are not listed from fine to coarse; the finest, '0' (18 x 20 x 30), is read"
    assert source.notes == (() if order[0] == "0" else (note,))
    named = open_tomogram(f"{where}/1")
    assert (named.shape, named.voxel_size, named.notes) == ((9, 10, 15), (20.0, 20.0, 20.0), ())


def test_without_scales_the_shape_tells(tmp_path: Path) -> None:
    url = write(str(tmp_path / "tomo.zarr"), "210", scales={})
    source = open_tomogram(url, voxel_size=10)
    np.testing.assert_array_equal(source.read(ALL), VOLUME)
    assert source.notes == ("its levels are not listed from fine to coarse; the finest, '0' (18 x 20 x 30), is read",)


def test_of_levels_of_one_shape_the_scale_tells(tmp_path: Path) -> None:
    url = write(str(tmp_path / "tomo.zarr"), "10", shapes="000")
    assert open_tomogram(url).voxel_size == (10.0, 10.0, 10.0)


@pytest.mark.parametrize("order", ["012", "210"])
def test_scales_that_contradict_the_shapes_are_refused(order: str, tmp_path: Path) -> None:
    """Scales are listed from fine to coarse and arrays are not, or the other way round: no voxel size is known."""
    url = write(str(tmp_path / "tomo.zarr"), order, scales={"0": SCALES["2"], "1": SCALES["1"], "2": SCALES["0"]})
    with pytest.raises(InputError) as error:
        open_tomogram(url)
    message = str(error.value)
    assert "its levels contradict each other: '0' has more voxels than" in message
    assert f"as {url}/0 --voxel-size" in message
    assert "\n" not in message
    for where in (url, f"{url}/0"):
        source = open_tomogram(where, voxel_size=10)
        np.testing.assert_array_equal(source.read(ALL), VOLUME)
        assert source.voxel_size == (10.0, 10.0, 10.0)


@pytest.mark.parametrize("order", ["012", "210"])
def test_one_scale_for_all_levels_is_noted(order: str, tmp_path: Path) -> None:
    url = write(str(tmp_path / "tomo.zarr"), order, scales=dict.fromkeys("012", (10, 10, 10)))
    source = open_tomogram(url)
    assert (source.shape, source.voxel_size) == (VOLUME.shape, (10.0, 10.0, 10.0))
    assert "its levels' scales don't fit their shapes (10 x 10 x 10 of '0'" in source.notes[-1]
    assert not [note for note in open_tomogram(url, voxel_size=10).notes if "scales" in note]


def test_levels_that_are_not_halved_along_all_axes_are_sound(tmp_path: Path) -> None:
    """Odd sides are cut or rounded up, thin ones stay."""
    url = str(tmp_path / "tomo.zarr")
    group = zarr.open_group(url, mode="w")
    datasets = []
    shapes = [(3, 17, 33), (3, 9, 17), (3, 4, 8), (3, 2, 4), (3, 1, 2)]
    for level, shape in enumerate(shapes):
        group.create_array(str(level), shape=shape, chunks=shape, dtype="u1")[...] = 1
        scale = [10, 10 * 2**level, 10 * 2**level]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    group.attrs["ome"] = {"multiscales": [{"axes": axes, "datasets": datasets}]}
    assert open_tomogram(url).notes == ()


def test_a_coarse_level_that_is_lost_is_not_missed(tmp_path: Path) -> None:
    url = write(str(tmp_path / "tomo.zarr"), "012")
    shutil.rmtree(f"{url}/2")
    np.testing.assert_array_equal(open_tomogram(url).read(ALL), VOLUME)


@pytest.mark.parametrize("order", ["012", "210"])
def test_the_finest_level_is_never_replaced_by_another(order: str, tmp_path: Path) -> None:
    url = write(str(tmp_path / "tomo.zarr"), order)
    shutil.rmtree(f"{url}/0")
    with pytest.raises(InputError, match="its metadata lists the array '0', which is not there"):
        open_tomogram(url)


def test_a_storage_that_fails_is_not_taken_for_a_lost_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = write(str(tmp_path / "tomo.zarr"), "210")

    def failing(group: Any, where: str, level: str) -> Any:
        if level == "0":
            raise StoreError("the storage does not answer")
        return level_array(group, where, level)

    monkeypatch.setattr("cryosam_dask.io.omezarr_levels.level_array", failing)
    with pytest.raises(StoreError, match="does not answer"):
        open_tomogram(url)


def test_no_end_of_levels_is_looked_through(tmp_path: Path) -> None:
    url = write(str(tmp_path / "tomo.zarr"), "0")
    path = Path(url, "zarr.json")
    about = json.loads(path.read_text())
    image = about["attributes"]["ome"]["multiscales"][0]
    image["datasets"] = [{**image["datasets"][0], "path": str(level)} for level in range(1000)]
    path.write_text(json.dumps(about))
    with pytest.raises(InputError, match="1000 levels, expected 32 at most"):
        open_tomogram(url)
    np.testing.assert_array_equal(open_tomogram(f"{url}/0").read(ALL), VOLUME)
