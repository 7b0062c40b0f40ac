"""Labels as MRC: exact ids, whole files or none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple

import mrcfile
import numpy as np
import pytest

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.io import export as module
from cryosam_dask.io import open_tomogram, write_mrc_labels

SHAPE = (5, 7, 11)
FRAME = {"voxel_size": (2.0, 3.0, 4.5), "origin": (-1.5, 20.0, 3.0)}


def blocks(labels, size=3):
    for z in range(0, labels.shape[0], size):
        for x in range(0, labels.shape[2], size):
            part = (slice(z, min(z + size, labels.shape[0])), slice(0, labels.shape[1]), slice(x, x + size))
            yield part, labels[part]


@pytest.mark.parametrize(
    ("max_id", "mode"), [(0, 1), (7, 1), (32767, 1), (32768, 6), (65535, 6), (65536, 2), (2**24, 2)]
)
def test_ids_are_exact_in_the_smallest_mode(tmp_path, max_id, mode):
    labels = np.random.default_rng(0).integers(0, max_id + 1, SHAPE).astype(np.uint32)
    labels[-1, -1, -1] = max_id
    path = tmp_path / "labels.mrc"
    write_mrc_labels(path, SHAPE, blocks(labels), max_id=max_id, **FRAME)
    with mrcfile.open(path) as mrc:
        assert int(mrc.header.mode) == mode
        assert mrc.is_volume()
        np.testing.assert_array_equal(mrc.data, labels)
        values = labels.astype(np.float64)
        for found, expected in (("dmin", 0), ("dmax", max_id), ("dmean", values.mean()), ("rms", values.std())):
            expected = values.min() if found == "dmin" else expected
            assert float(mrc.header[found]) == pytest.approx(expected, rel=1e-5)
    assert mrcfile.validate(path)
    source = open_tomogram(path)
    assert (source.voxel_size, source.origin, source.notes) == (FRAME["voxel_size"], FRAME["origin"], ())
    np.testing.assert_array_equal(source.read((slice(None),) * 3), labels)
    assert list(tmp_path.iterdir()) == [path]


def test_voxels_in_no_block_are_background(tmp_path):
    part = (slice(1, 3), slice(2, 4), slice(5, 9))
    write_mrc_labels(tmp_path / "l.mrc", SHAPE, [(part, np.full((2, 2, 4), 6))], max_id=6, **FRAME)
    expected = np.zeros(SHAPE)
    expected[part] = 6
    with mrcfile.open(tmp_path / "l.mrc") as mrc:
        np.testing.assert_array_equal(mrc.data, expected)
        assert (float(mrc.header.dmin), float(mrc.header.dmax)) == (0, 6)
        assert float(mrc.header.dmean) == pytest.approx(expected.mean())
        assert float(mrc.header.rms) == pytest.approx(expected.std())


def test_no_block_at_all(tmp_path):
    path = tmp_path / "l.mrc"
    write_mrc_labels(path, (50, 60, 70), [], max_id=0, **FRAME)
    assert not open_tomogram(path).read((slice(None),) * 3).any()
    if hasattr(os, "posix_fallocate"):
        # The disk's blocks are taken before voxels are written through a map, where a full disk would kill.
        assert path.stat().st_blocks * 512 >= path.stat().st_size


def test_too_many_ids(tmp_path):
    with pytest.raises(InputError, match="16777216"):
        write_mrc_labels(tmp_path / "l.mrc", SHAPE, [], max_id=2**24 + 1, **FRAME)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [np.full((1, 7, 11), 9), np.full((1, 7, 11), -1), np.zeros((2, 7, 11), int)])
def test_failing_midway_leaves_the_old_file_and_nothing_else(tmp_path, bad):
    path = tmp_path / "l.mrc"
    path.write_bytes(b"old")
    good = (slice(0, 1), slice(0, 7), slice(0, 11))
    with pytest.raises(ValueError, match=r"labels from|block of shape"):
        write_mrc_labels(path, SHAPE, [(good, np.ones((1, 7, 11), int)), (good, bad)], max_id=5, **FRAME)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_leaves_nothing(tmp_path):
    def stopped():
        yield (slice(0, 1), slice(0, 7), slice(0, 11)), np.ones((1, 7, 11), int)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mrc_labels(tmp_path / "l.mrc", SHAPE, stopped(), max_id=5, **FRAME)
    assert not list(tmp_path.iterdir())


def test_disk_full_is_told_before_writing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: usage(10**6, 10**6 - 100, 100))
    with pytest.raises(StoreError, match=r"need 1794 bytes, 100 are free"):
        write_mrc_labels(tmp_path / "l.mrc", SHAPE, [], max_id=5, **FRAME)
    assert not list(tmp_path.iterdir())


def test_no_room_while_writing_is_one_line(tmp_path):
    """A real limit on the size of files, in a process of its own: no signal, no traceback of ours, nothing left."""
    code = """
import resource, sys
from cryosam_dask.errors import StoreError
from cryosam_dask.io import write_mrc_labels
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_mrc_labels(sys.argv[1], (64, 64, 64), [], max_id=5, voxel_size=(1.0, 1.0, 1.0))
except StoreError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "l.mrc")], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.startswith(f"{tmp_path}/l.mrc: can't be written: ")
    assert done.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_folder_that_is_not_there_or_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "l.mrc", tmp_path / "file" / "l.mrc"):
        with pytest.raises(StoreError, match="can't be written"):
            write_mrc_labels(path, SHAPE, [], max_id=1, **FRAME)


def test_memory_stays_at_a_block(tmp_path):
    """A volume of 67 MB in slabs of 1 MB: the process grows by a few slabs, not by the volume."""
    code = """
import sys, resource, numpy as np
from cryosam_dask.io import write_mrc_labels
shape = (256, 256, 512)
slab = np.ones((4, 256, 512), np.uint16)
def blocks():
    for z in range(0, 256, 4):
        yield (slice(z, z + 4), slice(0, 256), slice(0, 512)), slab
def once():
    write_mrc_labels(sys.argv[1], (4, 256, 512), [next(blocks())], max_id=1, voxel_size=(1.0, 1.0, 1.0))
once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_mrc_labels(sys.argv[1], shape, blocks(), max_id=1, voxel_size=(1.0, 1.0, 1.0))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "l.mrc")], capture_output=True, text=True, check=True, timeout=300
    )
    assert int(done.stdout) * 1024 < 20e6
