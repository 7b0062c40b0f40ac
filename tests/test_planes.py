"""Planes on their way: embedded while others are written, read once for all that pass them, whatever the order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import planes_timeline
from benchmarks.planes_timeline import Device, Sleeping, in_use, segmented, tomogram

from cryosam_dask.errors import StoreError
from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.models.catalog import segmenter_info
from cryosam_dask.stages import embed, segment
from cryosam_dask.stages.base import Context
from cryosam_dask.stages.sampling import Sample
from cryosam_dask.store import layout
from cryosam_dask.store.arrays import Behind
from cryosam_dask.types import AXES

SHAPE = (16, 48, 56)
POINTS = np.array([[8.0, 24, 20], [5, 20, 36], [11, 31, 34]])


def test_a_device_is_in_use_while_planes_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading and writing take longer than embedding here, and go on meanwhile. One after the other, the device would
    be in use for a third of the time."""
    read, write = Sample.__init__, embed._write

    def slow_read(*args: Any) -> None:
        time.sleep(0.08)
        read(*args)

    def slow_write(*args: Any) -> None:
        time.sleep(0.03)
        write(*args)

    monkeypatch.setattr(Sample, "__init__", slow_read)
    monkeypatch.setattr(embed, "_write", slow_write)
    device = Device()
    point = POINTS[:1]
    ran = segmented(tomogram(str(tmp_path / "run.zarr"), SHAPE, point), point, 3, Sleeping(device, 0.05, 0))
    seen = in_use(device, ran)
    # the longest gaps are before the first plane of a wave has been read
    assert seen["in_use"] > 0.5
    assert Counter(what for what, _, _ in device.used)["embed"] > 12


def test_a_plane_is_embedded_while_the_one_before_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one unit, on one thread."""
    store, device, write = tomogram(str(tmp_path / "run.zarr"), SHAPE, POINTS), Device(), embed._write
    written: list[tuple[float, float]] = []

    def slow_write(*args: Any) -> None:
        start = time.perf_counter()
        time.sleep(0.02)
        write(*args)
        written.append((start, time.perf_counter()))

    monkeypatch.setattr(embed, "_write", slow_write)
    segmented(store, POINTS, 1, Sleeping(device, 0.005, 0))
    embedded = [(start, stop) for what, start, stop in device.used if what == "embed"]
    assert len(written) == len(embedded)
    assert any(start < other < stop for start, stop in written for other, _ in embedded)


def test_a_group_reads_a_plane_twice_at_most_once_all_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for those that go up, once for those that go down; and it finds what it finds plane by plane."""
    store, segmenter = tomogram(str(tmp_path / "run.zarr"), SHAPE, POINTS), Sleeping(Device(), 0, 0)
    segmented(store, POINTS, 1, segmenter)  # now every plane is there that is needed
    settings = planes_timeline.settings()
    reads: Counter[str] = Counter()
    read, paths = type(store).read, {layout.embeddings(axis) for axis in AXES}

    def counted(self: Any, path: str, *rest: Any) -> Any:
        reads[f"{path} {rest}"] += path in paths
        return read(self, path, *rest)

    monkeypatch.setattr(type(store), "read", counted)
    points = [(float(z), float(y), float(x)) for z, y, x in POINTS]
    everything = frozenset(range(sum(SHAPE)))
    found, expected = (Propagation.start(points, SHAPE, settings.propagation) for _ in range(2))
    with planes_timeline.using(segmenter):
        waiting = segment._advance(Context(store.url, "cpu", ""), store, settings.propagation, found, everything)
    assert not waiting
    assert 0 < max(reads.values()) <= 2
    once = sum(reads.values())
    while need := expected.needed():
        for axis, plane in sorted(need):
            reads["plain"] += 1
            image = read(store, layout.planes(axis), plane)
            expected.step(segmenter, axis, plane, read(store, layout.embeddings(axis), plane), image)
    assert reads["plain"] > 1.1 * once
    for ours, plain in zip(found.instances(), expected.instances(), strict=True):
        assert ours is not None
        assert plain is not None
        assert (ours.box, ours.score, ours.planes) == (plain.box, plain.score, plain.planes)
        np.testing.assert_array_equal(ours.mask, plain.mask)


def test_planes_that_no_rule_looks_at_are_not_read(tmp_path: Path) -> None:
    segmenter, asked = Sleeping(Device(), 0, 0), []
    for rule in ("plain", "guarded"):
        work = Propagation.start([(8.0, 24.0, 20.0)], SHAPE, planes_timeline.settings(rule=rule).propagation)
        embedding = segmenter.embed(np.zeros((1, *SHAPE[1:]), np.uint8))[0]

        def image(rule: str = rule) -> Any:
            asked.append(rule)
            return np.zeros(SHAPE[1:], np.uint8)

        work.step(segmenter, "z", 8, embedding, image)
        assert [walker.plane for walker in work.walkers if walker.direction] == [7, 9]
    assert asked == ["guarded"]


def test_embeddings_are_compressed_where_that_makes_them_smaller(tmp_path: Path) -> None:
    for name, compressed in (("sam-vitb", False), ("random-walker", True)):
        assert embed.is_compressed(segmenter_info(name)) is compressed
        store = tomogram(str(tmp_path / f"{name}.zarr"), SHAPE, POINTS)
        embed.prepare(store, planes_timeline.settings(segmenter=name).propagation)
        for axis in AXES:
            codecs = [
                {
                    codec["name"]: codec.get("configuration", {})
                    for codec in store.array(path(axis)).metadata.to_dict()["codecs"]
                }
                for path in (layout.planes, layout.embeddings)
            ]
            assert all("crc32c" in names for names in codecs), "a damaged chunk is noticed"
            assert [names["zstd"]["level"] > 0 for names in codecs] == [False, compressed]


def test_what_fails_behind_is_raised_in_front() -> None:
    done: list[str] = []

    def fail() -> None:
        raise StoreError("the disk is full")

    def in_turn(*calls: Callable[[], None]) -> None:
        with Behind() as behind:
            for call in calls:
                behind.do(call)

    with pytest.raises(StoreError, match="the disk is full"):
        in_turn(partial(done.append, "first"), fail, partial(done.append, "never"))
    with pytest.raises(StoreError, match="the disk is full"):
        in_turn(fail)
    assert done == ["first"]
