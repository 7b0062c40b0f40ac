"""MRC headers that can mean two things, or state what is not there: read as they are meant, and a word is said."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from cryosam_dask.errors import InputError
from cryosam_dask.io import TomogramSource, open_tomogram

ALL = (slice(None), slice(None), slice(None))
PLACES = ("disk", "gzipped", "remote")
RANDOM = np.random.default_rng(3)
UNSIGNED = np.clip(RANDOM.normal(125, 30, (40, 50, 60)), 0, 255).astype(np.uint8)
SIGNED = np.clip(RANDOM.normal(-3, 30, (40, 50, 60)), -128, 127).astype(np.int8)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., TomogramSource]:
    """Open the file of these bytes on a disk, gzipped, or behind a URL."""

    def open_there(raw: bytes, place: str, **options: Any) -> TomogramSource:
        path = tmp_path / "tomo.mrc"
        if place == "remote":
            url = f"memory://{tmp_path.name}/tomo.mrc"
            fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/tomo.mrc", raw)
            return open_tomogram(url, **options)
        if place == "gzipped":
            path = tmp_path / "tomo.mrc.gz"
        path.write_bytes(gzip.compress(raw, 1) if place == "gzipped" else raw)
        return open_tomogram(path, **options)

    return open_there


# The sign of bytes ----------------------------------------------------------------------------------------------------

NO_RANGE = [(0, 0), (0, -1), (5, -5), (7, 7), (np.nan, np.nan), (-3, 200), (0, 3000), (-1e30, 1e30)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, -1)])
def test_bytes_of_an_untold_sign_are_signed_and_it_is_said(opened, mrc_content, place, low, high):
    source = opened(mrc_content(SIGNED, 0, dmin=low, dmax=high), place)
    assert source.dtype == np.int8
    np.testing.assert_array_equal(source.read(ALL), SIGNED)
    assert source.notes == (
        "8-bit voxels of which nothing in the header says whether they are signed: read as signed (MRC2014); if they "
        "are not, --unsigned (--signed leaves this note out)",
    )


@pytest.mark.parametrize(("low", "high"), NO_RANGE)
@pytest.mark.parametrize("values", [SIGNED, UNSIGNED])
def test_every_unusable_range_is_one(opened, mrc_content, low, high, values):
    source = opened(mrc_content(values, 0, dmin=low, dmax=high), "disk")
    assert source.dtype == np.int8
    assert ["--unsigned" in note for note in source.notes] == [True]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("range_", [(0, 0), (-128, 127)])
def test_a_torn_histogram_is_said_strongly(opened, mrc_content, place, range_):
    """Unsigned values about 125, read as signed: both ends are full and the middle is empty. (-128, 127) is the range
    that a program puts in the header which took them for signed."""
    raw = mrc_content(UNSIGNED, 0, dmin=range_[0], dmax=range_[1])
    source = opened(raw, place)
    assert source.dtype == np.int8
    assert len(source.notes) == 1
    assert source.notes[0].startswith("8-bit voxels that look unsigned")
    assert "most likely --unsigned is right" in source.notes[0]
    right = opened(raw, place, unsigned=True)
    assert (right.dtype, right.notes) == (np.uint8, ())
    np.testing.assert_array_equal(right.read(ALL), UNSIGNED)
    assert opened(raw, place, unsigned=False).notes == ()


def test_borders_filled_with_zero_don_t_hide_it(opened, mrc_content):
    values = UNSIGNED.copy()
    values[:, :10] = 0
    values[:, -5:] = 255
    assert "look unsigned" in opened(mrc_content(values, 0), "disk").notes[0]


@pytest.mark.parametrize(
    "values",
    [
        SIGNED,
        np.clip(RANDOM.normal(-60, 20, SIGNED.shape), -128, 127),
        np.clip(RANDOM.normal(0, 80, SIGNED.shape), -128, 127),
        np.where(RANDOM.random(SIGNED.shape) < 0.5, -128, 127),
        RANDOM.integers(-128, 128, SIGNED.shape),
    ],
)
def test_other_histograms_tell_nothing(opened, mrc_content, values):
    source = opened(mrc_content(values.astype(np.int8), 0), "disk")
    looks = ["look unsigned" in note for note in source.notes]
    assert looks == [set(np.unique(values)) == {-128, 127}]  # a mask of 127 and 128 it may well be


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_said_where_both_readings_are_the_same(opened, mrc_content, place):
    values = RANDOM.integers(0, 128, (40, 50, 60))
    assert opened(mrc_content(values, 0), place).notes == ()


@pytest.mark.parametrize("place", PLACES)
def test_a_large_file_is_looked_at_in_places(opened, mrc_content, place):
    """Without a byte above 127 in what was looked at, the rest is not known, unless the header's range says it."""
    values = RANDOM.integers(0, 100, (40, 200, 300)).astype(np.int8)
    assert "whether they are signed" in opened(mrc_content(values, 0), place).notes[0]
    assert opened(mrc_content(values, 0, dmin=0, dmax=99), place).notes == ()
    values[20:] = RANDOM.integers(-100, 100, (20, 200, 300))
    said = opened(mrc_content(values, 0, dmin=0, dmax=99), place).notes
    assert ("whether they are signed" in "".join(said)) == (place != "gzipped")  # of which the beginning is seen


@pytest.mark.parametrize("flag", [0, 1])
def test_imods_flag_counts_as_told(opened, mrc_content, flag):
    assert opened(mrc_content(UNSIGNED, 0, imod=flag), "disk").notes == ()


def test_identity_does_not_depend_on_what_is_said(opened, mrc_content):
    """A run goes on with the same command, whatever notes this version has."""
    raw = mrc_content(UNSIGNED, 0)
    noted, quiet = opened(raw, "disk"), opened(raw, "disk", unsigned=False)
    assert noted.notes
    assert not quiet.notes
    assert noted.identity == quiet.identity


def test_little_is_read_to_tell_the_sign(opened, mrc_content, monkeypatch):
    """What identifies a file is read anyway; a packed one is decoded up to a MiB of voxels."""
    from cryosam_dask.io import flat, mrc

    asked: list[int] = []
    real = flat._sample
    monkeypatch.setattr(flat, "_sample", lambda file, start: asked.append(start) or real(file, start))
    raw = mrc_content(np.zeros((40, 200, 300), np.int8), 0)
    opened(raw, "disk")
    assert len(asked) == 16
    decoded: list[int] = []
    real_into = mrc.Inflated.readinto
    monkeypatch.setattr(
        mrc.Inflated, "readinto", lambda self, buffer: decoded.append(len(buffer)) or real_into(self, buffer)
    )
    opened(raw, "gzipped")
    assert sum(decoded) <= 1024 + (1 << 20)


# An extended header that is not there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", [0, 2])
@pytest.mark.parametrize("stated", [1, 100, 1024, 131072])
def test_an_extended_header_that_is_not_there_is_left_out(opened, mrc_content, volume, place, mode, stated):
    raw = mrc_content(volume, mode, nsymbt=stated)
    raw = raw[:1024] + raw[1024 + stated :]
    source = opened(raw, place)
    np.testing.assert_array_equal(source.read(ALL), volume)
    assert source.notes == (
        f"its extended header, {stated} bytes by nsymbt, is not there: the file is as long as a header of 1024 bytes "
        "and the voxels, and read so",
    )


@pytest.mark.parametrize("place", PLACES)
def test_a_truncated_file_with_an_extended_header_says_what_is_expected(opened, mrc_content, volume, place):
    raw = mrc_content(volume, 1, nsymbt=100)
    for size in (1024 + 100 + 770 - 1, 1024 + 770 + 1, 1024 + 770 - 1, 1030):
        with pytest.raises(InputError) as error:
            opened(raw[:size], place)
        assert (
            "truncated: expected 1894 bytes (a header of 1024, an extended header of 100 by nsymbt, and 5 x 7 x 11 "
            f"voxels of 2 bytes; 1794 without the extended header), found {size}"
        ) in str(error.value)


def test_gzip_members_are_counted_to_see_that_it_is_not_there(mrc_content, volume, tmp_path):
    raw = mrc_content(volume, 1, nsymbt=100)
    raw = raw[:1024] + raw[1124:]
    path = tmp_path / "tomo.mrc.gz"
    path.write_bytes(gzip.compress(raw[:900]) + gzip.compress(raw[900:]))
    source = open_tomogram(path)
    np.testing.assert_array_equal(source.read(ALL), volume)
    assert any("is not there" in note for note in source.notes)


def test_a_last_member_as_long_as_the_voxels_does_not_deceive(mrc_content, volume, tmp_path):
    raw = mrc_content(volume, 1, nsymbt=100)
    path = tmp_path / "tomo.mrc.gz"
    path.write_bytes(gzip.compress(raw[:100]) + gzip.compress(raw[100:]))
    assert len(raw[100:]) == 1024 + volume.size * 2
    source = open_tomogram(path)
    np.testing.assert_array_equal(source.read(ALL), volume)
    assert not [note for note in source.notes if "is not there" in note]


def test_an_extended_header_that_is_there_is_skipped(opened, mrc_content, volume):
    for place in PLACES:
        source = opened(mrc_content(volume, 1, nsymbt=100), place)
        assert source.notes == ()
        np.testing.assert_array_equal(source.read(ALL), volume)


# Permuted axes --------------------------------------------------------------------------------------------------------

PERMUTATIONS = [axes for axes in itertools.permutations((1, 2, 3)) if axes != (1, 2, 3)]
SIDES = {1: 11, 2: 7, 3: 5}  # along x, y, z


def permuted(volume: np.ndarray, axes: tuple[int, int, int], size: Any, what: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The volume as stored with these mapc, mapr, maps, and the header's fields; `what` of the sampling (m) and the
    cell (c) is in the order of columns, rows, sections instead of x, y, z."""
    mapc, mapr, maps = axes
    stored = volume.transpose([3 - maps, 3 - mapr, 3 - mapc])
    sizes = dict(zip((3, 2, 1), np.broadcast_to(size, 3), strict=True))
    of_file = axes if "m" in what else (1, 2, 3)
    cell_of = axes if "c" in what else (1, 2, 3)
    fields = dict(zip(("mx", "my", "mz"), (SIDES[axis] for axis in of_file), strict=True))
    fields |= {"mapc": mapc, "mapr": mapr, "maps": maps}
    fields["cella"] = tuple(SIDES[axis] * sizes[axis] for axis in cell_of)
    return stored, fields


@pytest.mark.parametrize("axes", PERMUTATIONS)
@pytest.mark.parametrize("what", ["", "m", "c", "mc"])
@pytest.mark.parametrize("place", ["disk", "remote"])
def test_equal_voxels_of_permuted_axes(opened, mrc_content, volume, axes, what, place):
    stored, fields = permuted(volume, axes, 10.0, what)
    source = opened(mrc_content(stored, 1, **fields), place)
    assert source.voxel_size == (10.0, 10.0, 10.0)
    np.testing.assert_array_equal(source.read(ALL), volume)
    expected = {"m": "sampling (mx, my, mz) is in the file's order", "c": "cell is in the file's order"}.get(what)
    assert len(source.notes) == (expected is not None)
    if expected:
        assert expected in source.notes[0]
        assert f"(mapc, mapr, maps = {axes[0]}, {axes[1]}, {axes[2]})" in source.notes[0]
        assert "by the standard they would be" in source.notes[0]


def test_the_size_that_the_standard_would_give_is_named(opened, mrc_content):
    values = np.zeros((4, 6, 8), np.int16)  # sections, rows, columns; rows run along z, sections along y
    fields = {"mapc": 1, "mapr": 3, "maps": 2, "mx": 8, "my": 6, "mz": 4, "cella": (80, 40, 60)}
    source = opened(mrc_content(values, 1, **fields), "disk")
    assert (source.shape, source.voxel_size) == ((6, 4, 8), (10.0, 10.0, 10.0))
    assert "voxels of 10 Å; by the standard they would be 15 x 6.66667 x 10 Å (z, y, x)" in source.notes[0]


@pytest.mark.parametrize("axes", PERMUTATIONS)
def test_unequal_voxels_are_read_by_the_standard(opened, mrc_content, volume, axes):
    """No reading gives equal ones: the standard's is taken, with a note where the sampling is not as it has it."""
    stored, fields = permuted(volume, axes, (20.0, 3.0, 4.5), "")
    source = opened(mrc_content(stored, 1, **fields), "disk")
    assert (source.voxel_size, source.notes) == ((20.0, 3.0, 4.5), ())
    stored, fields = permuted(volume, axes, (20.0, 3.0, 4.5), "m")
    source = opened(mrc_content(stored, 1, **fields), "disk")
    assert source.voxel_size != (20.0, 3.0, 4.5)
    assert "by which they would be 20 x 3 x 4.5 Å" in source.notes[0]
    given = opened(mrc_content(stored, 1, **fields), "disk", voxel_size=(20, 3, 4.5))
    assert (given.voxel_size, given.notes) == ((20.0, 3.0, 4.5), ())


def test_equal_is_to_a_thousandth(opened, mrc_content, volume):
    for size, equal in ((10.009, True), (10.011, False)):
        stored, fields = permuted(volume, (2, 1, 3), (10.0, size, 10.0), "m")
        source = opened(mrc_content(stored, 1, **fields), "disk")
        assert (max(source.voxel_size) < 11) == equal
        assert len(source.notes) == 1


def test_a_cell_in_the_usual_order_is_not_turned(opened, mrc_content, volume):
    """Only a header with permuted axes can have these in another order."""
    source = opened(mrc_content(volume, 1, mx=7, my=11, mz=5, cella=(110, 70, 50)), "disk")
    assert source.voxel_size == (10.0, 6.36364, 15.7143)
