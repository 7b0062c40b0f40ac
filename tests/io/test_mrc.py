"""MRC input: every readable mode and byte order is read right, everything else ends in one clear line."""

from __future__ import annotations

import gzip
import itertools
import os
import pickle
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cryosam_dask.errors import InputError
from cryosam_dask.io import TomogramSource, describe, open_tomogram

ALL = (slice(None), slice(None), slice(None))


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("mode", "dtype"), [(0, "i1"), (1, "i2"), (2, "f4"), (6, "u2"), (12, "f2")])
def test_every_mode_and_byte_order(write_mrc, volume, mode, dtype, order):
    source = open_tomogram(write_mrc(volume, mode, order=order, nsymbt=333))
    assert isinstance(source, TomogramSource)
    assert (source.shape, source.dtype, source.voxel_size) == ((5, 7, 11), np.dtype(dtype), (2.0, 3.0, 4.5))
    block = source.read(ALL)
    assert block.dtype == np.dtype(dtype)
    assert type(block) is np.ndarray
    np.testing.assert_array_equal(block, volume)
    assert source.notes == ()


def test_blocks_are_slices_of_the_volume(write_mrc, volume):
    source = open_tomogram(write_mrc(volume, 1))
    block = source.read((slice(1, 4), slice(3, None), slice(2, 100)))
    assert block.flags.c_contiguous
    assert block.flags.owndata
    np.testing.assert_array_equal(block, volume[1:4, 3:, 2:])
    with pytest.raises(ValueError, match="steps"):
        source.read((slice(0, 4, 2), slice(None), slice(None)))


@pytest.mark.parametrize(
    ("imod", "unsigned", "dtype"),
    [(None, None, "i1"), (1, None, "i1"), (0, None, "u1"), (4, None, "u1"), (0, False, "i1"), (None, True, "u1")],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_sign_of_bytes(write_mrc, imod, unsigned, dtype, order):
    values = np.arange(256).reshape(4, 8, 8)
    source = open_tomogram(write_mrc(values, 0, imod=imod, order=order), unsigned=unsigned)
    assert source.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(source.read(ALL), values.astype(np.uint8).view(dtype))


@pytest.mark.parametrize(
    ("bounds", "dtype"),
    [((0, 255), "u1"), ((3, 128), "u1"), ((0, 127), "i1"), ((-128, 127), "i1"), ((0, -1), "i1"), ((0, 3000), "i1")],
)
def test_bytes_beyond_the_signed_range_by_the_header_are_unsigned(write_mrc, bounds, dtype):
    """Cameras and old IMOD write unsigned bytes without a flag. IMOD's flag counts more, and the option most."""
    low, high = bounds
    values = np.arange(256).reshape(4, 8, 8)
    source = open_tomogram(write_mrc(values, 0, dmin=low, dmax=high))
    assert source.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(source.read(ALL), values.astype(np.uint8).view(dtype))
    assert any("read as unsigned; --signed overrules that" in note for note in source.notes) == (dtype == "u1")
    assert open_tomogram(write_mrc(values, 0, dmin=low, dmax=high, imod=1)).dtype == np.int8
    given = open_tomogram(write_mrc(values, 0, dmin=low, dmax=high), unsigned=False)
    assert (given.dtype, given.notes) == (np.int8, ())


def test_unsigned_is_for_bytes_only(write_mrc, volume):
    with pytest.raises(InputError, match="mode 0 only, found mode 1"):
        open_tomogram(write_mrc(volume, 1), unsigned=True)


@pytest.mark.parametrize(
    ("mode", "imod", "words"),
    [
        (3, None, "complex int16"),
        (4, None, "complex float32"),
        (101, None, "4-bit"),
        (0, 17, "4-bit"),
        (77, None, "unk"),
    ],
)
def test_unreadable_modes_are_named(write_mrc, volume, mode, imod, words):
    with pytest.raises(InputError, match=words) as error:
        open_tomogram(write_mrc(volume, mode, imod=imod))
    assert f"mode {101 if mode == 0 else mode}" in one_line(error)
    assert "12 (float16)" in str(error.value)


@pytest.mark.parametrize("axes", list(itertools.permutations((1, 2, 3))))
def test_axes_in_any_order(write_mrc, volume, axes):
    """`mapc, mapr, maps` say which axis the columns, rows and sections run along; voxels come out as z, y, x."""
    mapc, mapr, maps = axes
    # File axes (sections, rows, columns) take the volume's axes: 3 is z, its axis 0.
    stored = volume.transpose([3 - maps, 3 - mapr, 3 - mapc])
    fields = {"mapc": mapc, "mapr": mapr, "maps": maps, "mz": 5, "my": 7, "mx": 11}
    fields["nzstart"], fields["nystart"], fields["nxstart"] = (10 * axis for axis in (maps, mapr, mapc))
    path = write_mrc(stored, 1, **fields, cella=(11 * 4.5, 7 * 3.0, 5 * 2.0))
    source = open_tomogram(path)
    assert source.shape == (5, 7, 11)
    assert source.voxel_size == (2.0, 3.0, 4.5)
    assert source.origin == (30 * 2.0, 20 * 3.0, 10 * 4.5)
    np.testing.assert_array_equal(source.read(ALL), volume)
    np.testing.assert_array_equal(source.read((slice(1, 3), slice(2, 7), slice(0, 5))), volume[1:3, 2:7, 0:5])


def test_axes_unset_or_damaged(write_mrc, volume):
    unset = open_tomogram(write_mrc(volume, 1, mapc=0, mapr=0, maps=0))
    np.testing.assert_array_equal(unset.read(ALL), volume)
    with pytest.raises(InputError, match=r"mapc, mapr, maps = \(1, 2, 2\)"):
        open_tomogram(write_mrc(volume, 1, maps=2))


def test_origin_is_kept_and_start_used_without_it(write_mrc, volume):
    assert open_tomogram(write_mrc(volume, 1, origin=(1.5, -2.5, 30.0))).origin == (30.0, -2.5, 1.5)
    assert open_tomogram(write_mrc(volume, 1, nxstart=-4, nystart=2, nzstart=1)).origin == (2.0, 6.0, -18.0)
    assert open_tomogram(write_mrc(volume, 1, nxstart=-4, nystart=111)).origin == (0.0, 0.0, 0.0)
    for nonsense in (np.nan, np.inf, -1e30):
        assert open_tomogram(write_mrc(volume, 1, origin=(nonsense, 0, 0))).origin == (0.0, 0.0, 0.0)
    as_in_imod = open_tomogram(write_mrc(volume, 1, imod=0, origin=(1.5, -2.5, 30.0)))
    assert as_in_imod.origin == (30.0, -2.5, 1.5)


@pytest.mark.parametrize("fields", [{"cella": (0, 0, 0)}, {"cella": (9, 9, 0)}, {"cella": (9, np.nan, 9)}, {"mx": 0}])
def test_voxel_size_is_asked_for(write_mrc, volume, fields):
    path = write_mrc(volume, 1, **fields)
    with pytest.raises(InputError, match="--voxel-size") as error:
        open_tomogram(path)
    one_line(error)
    assert open_tomogram(path, voxel_size=7.5).voxel_size == (7.5, 7.5, 7.5)
    assert open_tomogram(path, voxel_size=(1, 2, 3)).voxel_size == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("size", [0, -1, float("nan"), (1, 2), "ten", 1e9])
def test_bad_voxel_size_option(write_mrc, volume, size):
    with pytest.raises(InputError, match="voxel size"):
        open_tomogram(write_mrc(volume, 1), voxel_size=size)


def test_voxel_size_is_what_was_meant(write_mrc, volume):
    """10.52 Å through float32 cells comes back as 10.52, not 10.5200004."""
    assert open_tomogram(write_mrc(volume, 1, voxel=(10.52, 1.37, 0.8))).voxel_size == (10.52, 1.37, 0.8)


def test_odd_voxels_are_noted(write_mrc, volume):
    """A sampling of 1 along z, left by some programs, makes the cell's whole depth one voxel."""
    source = open_tomogram(write_mrc(volume, 1, voxel=(8, 8, 8), mz=1, cella=(88, 56, 400)))
    assert source.voxel_size == (400.0, 8.0, 8.0)
    assert "400 x 8 x 8 Å" in source.notes[0]
    assert "--voxel-size" in source.notes[0]
    assert open_tomogram(write_mrc(volume, 1), voxel_size=(400, 8, 8)).notes == ()


def test_one_angstrom_is_noted_as_a_size_that_nobody_set(write_mrc, volume):
    path = write_mrc(volume, 1, mx=1, my=1, mz=1, cella=(1, 1, 1))
    source = open_tomogram(path)
    assert source.voxel_size == (1.0, 1.0, 1.0)
    assert "know no voxel size; if it is another, give it with --voxel-size" in source.notes[0]
    assert open_tomogram(path, voxel_size=1).notes == ()


def test_kinds_that_are_no_volume(write_mrc, volume):
    with pytest.raises(InputError, match="stack of volumes"):
        open_tomogram(write_mrc(volume, 1, ispg=401))
    with pytest.raises(InputError, match="stack of 5 images"):
        open_tomogram(write_mrc(volume, 1, ispg=0, mz=1))
    with pytest.raises(InputError, match="not 3D: one voxel along z"):
        open_tomogram(write_mrc(volume[:1], 1, ispg=0))
    # Many programs leave the space group of a tomogram at 0.
    assert open_tomogram(write_mrc(volume, 1, ispg=0)).shape == (5, 7, 11)


def test_remedy_for_an_image_stack_works(write_mrc, volume):
    path = write_mrc(volume, 1, ispg=0, mz=1, cella=(11 * 4.5, 7 * 3.0, 5 * 2.0))
    with mrcfile.mmap(path, "r+") as mrc:
        mrc.set_volume()
    np.testing.assert_array_equal(open_tomogram(path).read(ALL), volume)


def test_missing_empty_and_foreign_files(tmp_path, volume):
    def message(name: str, content: bytes | None) -> str:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as error:
            open_tomogram(tmp_path / name)
        assert name in str(error.value)
        return one_line(error)

    assert "no such file" in message("a.mrc", None)
    assert "empty" in message("b.mrc", b"")
    assert "expected a header of 1024 bytes, found 1023" in message("c.mrc", bytes(1023))
    assert "not an MRC" in message("d.mrc", bytes(5000))
    assert "not an MRC" in message("e.mrc", b"z,y,x\n1,2,3\n" * 200)
    assert "gunzip" in message("f.mrc", gzip.compress(np.random.default_rng(0).bytes(5000)))
    assert "TIFF" in message("g.mrc", b"II*\x00" + bytes(5000))


def test_truncated_at_every_interesting_byte(write_mrc, volume):
    path = write_mrc(volume, 2, nsymbt=100)
    whole = path.read_bytes()
    assert len(whole) == 1024 + 100 + volume.size * 4
    for size in (1, 4, 223, 1023, 1024, 1025, 1100, 1123, 1124, 1125, 1128, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=rf"found {size}\b") as error:
            open_tomogram(path)
        if size >= 1024:
            assert f"truncated: expected {len(whole)} bytes" in one_line(error)


def test_sizes_are_checked_before_anything_is_allocated(write_mrc, volume):
    biggest = 2**31 - 1
    for fields in ({"nx": biggest, "ny": biggest, "nz": biggest}, {"nsymbt": 0}):
        path = write_mrc(volume, 1, **fields)
        if "nsymbt" in fields:  # an extended header of 2 GiB that is not there
            raw = bytearray(path.read_bytes())
            raw[92:96] = biggest.to_bytes(4, "little")
            path.write_bytes(raw)
        with pytest.raises(InputError, match="truncated"):
            open_tomogram(path)


def test_longer_file_is_read_with_a_note(write_mrc, volume):
    path = write_mrc(volume, 1)
    path.write_bytes(path.read_bytes() + bytes(12))
    source = open_tomogram(path)
    assert source.notes == ("the file is 12 bytes longer than its header says",)
    np.testing.assert_array_equal(source.read(ALL), volume)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("stamp", [(0, 0, 0, 0), (0x11, 0x11, 0, 0), (0x44, 0x44, 0, 0), (0x44, 0x41, 0, 0)])
@pytest.mark.parametrize("map_id", [b"MAP ", b"\0\0\0\0"])
def test_wrong_stamps_are_seen_through(write_mrc, volume, order, stamp, map_id):
    source = open_tomogram(write_mrc(volume, 1, order=order, machst=stamp, map=map_id))
    np.testing.assert_array_equal(source.read(ALL), volume)
    assert source.voxel_size == (2.0, 3.0, 4.5)
    right = {"<": 0x44, ">": 0x11}[order] == stamp[0]
    assert len(source.notes) == (not right) + (map_id != b"MAP ")


def test_a_source_travels_small_and_reads_where_it_arrives(write_mrc):
    path = write_mrc(np.zeros((40, 50, 60)), 2)
    source = open_tomogram(path)
    travelled = pickle.dumps(source)
    assert len(travelled) < 2000
    np.testing.assert_array_equal(pickle.loads(travelled).read(ALL), source.read(ALL))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="can't be read any more"):
        pickle.loads(travelled).read(ALL)


def test_a_relative_path_is_kept_whole(write_mrc, volume, monkeypatch):
    path = write_mrc(volume, 1)
    monkeypatch.chdir(path.parent)
    source = open_tomogram("tomo.mrc")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(source.read(ALL), volume)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_no_handle_and_no_map_stay_open(write_mrc, volume):
    path = write_mrc(volume, 2)
    source = open_tomogram(path)
    block = source.read(ALL)
    assert path not in {file.resolve() for file in Path("/proc/self/fd").iterdir()}
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert block.base is None


def test_identity_follows_content_not_place(write_mrc, volume, tmp_path):
    path = write_mrc(volume, 2)
    same = tmp_path / "elsewhere" / "tomo.mrc"
    same.parent.mkdir()
    same.write_bytes(path.read_bytes())
    os.utime(same, (1, 1))
    identity = open_tomogram(path).identity
    assert open_tomogram(same).identity == identity
    assert open_tomogram(same, voxel_size=9).identity != identity
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    same.write_bytes(raw)
    assert open_tomogram(same).identity != identity


def test_identity_samples_a_large_file_to_its_end(write_mrc):
    path = write_mrc(np.zeros((40, 50, 60)), 2)
    identities = [open_tomogram(path).identity]
    raw = path.read_bytes()
    for place in (1024, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:place] + b"\1" + raw[place + 1 :])
        identities.append(open_tomogram(path).identity)
    assert len({identity["sha256_sampled"] for identity in identities}) == 4


def test_identity_tells_the_sign_of_bytes(write_mrc, volume):
    path = write_mrc(volume, 0)
    assert open_tomogram(path).identity != open_tomogram(path, unsigned=True).identity


def test_describe(write_mrc, volume):
    assert describe(open_tomogram(write_mrc(volume, 12))) == "5 x 7 x 11 voxels (z, y, x), float16, 2 x 3 x 4.5 Å"
    assert describe(open_tomogram(write_mrc(volume, 1, voxel=(8, 8, 8)))).endswith("int16, 8 Å")


def test_a_compressed_remote_mrc_is_refused_with_a_remedy():
    with pytest.raises(InputError, match=r"s3://bucket/tomo\.mrc\.gz: gzipped MRC is .* download it first"):
        open_tomogram("s3://bucket/tomo.mrc.gz")


SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Words of the header that decide how the file is read: sizes, mode, starts, samplings, axes, space group, extended
# header, IMOD's words, stamps.
WORDS = [*range(0, 40, 4), *range(64, 76, 4), 88, 92, 152, 156, 208, 212]


@SETTINGS
@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from(WORDS), st.integers(0, 1020)),
            st.one_of(
                st.binary(min_size=4, max_size=4),
                st.integers(-3, 20).map(lambda n: n.to_bytes(4, "little", signed=True)),
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([0, 1, 2, 6, 12]),
    st.integers(-800, 40),
)
@example([(212, b"\x11\x11\0\0"), (208, b"junk")], 12, 0)
@example([(4, (-5).to_bytes(4, "little", signed=True))], 2, 0)
def test_damage_ends_in_one_line_or_a_right_read(write_mrc, volume, damage, mode, change):
    """Whatever the header says: a clear error, or exactly what mrcfile reads from the same bytes."""
    path = write_mrc(volume, mode)
    raw = bytearray(path.read_bytes())
    for place, word in damage:
        raw[place : place + 4] = word
    raw = raw[:change] if change < 0 else raw + bytes(change)
    path.write_bytes(raw)
    try:
        source = open_tomogram(path, voxel_size=5.0)
    except InputError as error:
        if "\n" in str(error):
            pytest.fail(f"more than one line: {error}")
        return
    block = source.read(ALL)
    assert block.shape == source.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mrcfile.open(path, permissive=True) as mrc:
            # mrcfile ignores IMOD's sign of bytes and the order of the axes, and prefers the stamp's byte order.
            if source.notes or source.order != (0, 1, 2) or mrc.data is None:
                return
            expected = np.asarray(mrc.data)
    assert block.shape == expected.shape
    assert block.tobytes() == expected.astype(expected.dtype.newbyteorder("=")).tobytes()
