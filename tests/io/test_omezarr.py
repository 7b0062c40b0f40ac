"""OME-Zarr input: versions 0.4 and 0.5, units, transformations, and what is no tomogram."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from cryosam_dask.errors import InputError
from cryosam_dask.io import TomogramSource, open_tomogram

ALL = (slice(None), slice(None), slice(None))


def refusal(path: str | Path, **options) -> str:
    with pytest.raises(InputError) as error:
        open_tomogram(path, **options)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("place", ["local", "memory"])
def test_both_versions_local_and_by_url(write_zarr, volume, version, place):
    url = f"memory://both{version}/tomo.zarr" if place == "memory" else None
    source = open_tomogram(write_zarr(volume, version=version, url=url))
    assert isinstance(source, TomogramSource)
    assert (source.shape, source.dtype, source.voxel_size) == ((5, 7, 11), np.dtype("i2"), (2.0, 3.0, 4.5))
    assert source.origin == (0.0, 0.0, 0.0)
    travelled = pickle.dumps(source)
    assert len(travelled) < 2000
    block = pickle.loads(travelled).read((slice(1, 5), slice(0, 6), slice(3, None)))
    assert block.flags.c_contiguous
    np.testing.assert_array_equal(block, volume[1:5, :6, 3:])


@pytest.mark.parametrize("dtype", ["u1", "i1", ">u2", "i4", "f2", ">f4", "f8"])
def test_real_types_in_any_byte_order(write_zarr, volume, dtype):
    source = open_tomogram(write_zarr(volume.astype(dtype), version=2))
    assert source.dtype == np.dtype(dtype).newbyteorder("=")
    assert source.read(ALL).dtype == source.dtype
    np.testing.assert_array_equal(source.read(ALL), volume)


@pytest.mark.parametrize(
    ("unit", "factor"), [("angstrom", 1), ("nanometer", 10), ("micrometer", 1e4), ("Angstrom", 1), ("picometer", 0.01)]
)
def test_units(write_zarr, volume, unit, factor):
    scale = [size / factor for size in (2.0, 3.0, 4.5)]
    assert open_tomogram(write_zarr(volume, unit=unit, scale=scale)).voxel_size == (2.0, 3.0, 4.5)


def test_leading_axes_of_one(write_zarr, volume):
    source = open_tomogram(write_zarr(volume[None, None], axes="tczyx", scale=(1, 1, 2.0, 3.0, 4.5)))
    assert (source.shape, source.voxel_size) == ((5, 7, 11), (2.0, 3.0, 4.5))
    np.testing.assert_array_equal(source.read((slice(2, 4), slice(None), slice(1, 9))), volume[2:4, :, 1:9])


def test_spatial_axes_in_another_order(write_zarr, volume):
    source = open_tomogram(write_zarr(volume.transpose(2, 0, 1), axes="xzy", scale=(4.5, 2.0, 3.0)))
    assert (source.shape, source.voxel_size) == ((5, 7, 11), (2.0, 3.0, 4.5))
    np.testing.assert_array_equal(source.read((slice(2, 4), slice(0, 5), slice(1, 9))), volume[2:4, :5, 1:9])


def test_transformations_are_applied_in_order(write_zarr, volume):
    """Level: scale then shift; image: scale then shift. Origin = image scale · level shift + image shift."""
    url = write_zarr(volume, unit="nanometer", scale=(1, 2, 3))
    group = zarr.open_group(url)
    ome = dict(group.attrs["ome"])
    image = ome["multiscales"][0]
    image["datasets"][0]["coordinateTransformations"].append({"type": "translation", "translation": [1, 1, 1]})
    image["coordinateTransformations"] = [
        {"type": "identity"},
        {"type": "scale", "scale": [0.5, 0.5, 2]},
        {"type": "translation", "translation": [10, 0, -1]},
    ]
    group.attrs["ome"] = ome
    source = open_tomogram(url)
    assert source.voxel_size == (5.0, 10.0, 60.0)
    assert source.origin == (105.0, 5.0, 10.0)
    assert open_tomogram(url, voxel_size=7).origin == source.origin


@pytest.mark.parametrize("options", [{"unit": None}, {"scale": None}, {"unit": "parsec"}, {"scale": (0, 1, 1)}])
def test_voxel_size_is_asked_for(write_zarr, volume, options):
    url = write_zarr(volume, **options)
    assert "--voxel-size" in refusal(url)
    assert open_tomogram(url, voxel_size=(1, 2, 3)).voxel_size == (1.0, 2.0, 3.0)


def test_translation_without_unit_is_kept_in_voxels(write_zarr, volume):
    steps = [{"type": "scale", "scale": [2, 2, 2]}, {"type": "translation", "translation": [4, 0, -6]}]
    image = {"axes": list("zyx"), "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    url = write_zarr(volume, attrs={"ome": {"multiscales": [image]}})
    assert open_tomogram(url, voxel_size=10).origin == (20.0, 0.0, -30.0)


def test_a_level_by_its_path(write_zarr, volume):
    url = write_zarr(volume)
    group = zarr.open_group(url)
    group.create_array("s/1", shape=(3, 4, 6), dtype="i2")[...] = volume[::2, ::2, ::2]
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"].append(
        {"path": "s/1", "coordinateTransformations": [{"type": "scale", "scale": [4.0, 6.0, 9.0]}]}
    )
    group.attrs["ome"] = ome
    assert open_tomogram(f"{url}/0") == open_tomogram(url) == open_tomogram(f"{url}/")
    coarse = open_tomogram(f"{url}/s/1")
    assert (coarse.shape, coarse.voxel_size) == ((3, 4, 6), (4.0, 6.0, 9.0))
    np.testing.assert_array_equal(coarse.read(ALL), volume[::2, ::2, ::2])
    assert coarse.identity != open_tomogram(url).identity


def test_what_is_no_tomogram(write_zarr, volume, tmp_path):
    assert "no Zarr group or array" in refusal(tmp_path)
    assert "no Zarr group or array" in refusal("memory://nothing-here.zarr")
    assert "not 3D: axes y, x" in refusal_of(write_zarr(volume[0], axes="yx", scale=(1, 1)))
    assert "not 3D: one voxel along z" in refusal_of(write_zarr(volume[:1]))
    assert "2 entries along axis 'c'" in refusal_of(write_zarr(np.stack([volume] * 2), axes="czyx", scale=(1, 1, 1, 1)))
    assert "no 'multiscales' among its attributes (colour)" in refusal(write_zarr(volume, attrs={"colour": 1}))
    assert "labels image" in refusal(write_zarr(volume, attrs={"ome": {"image-label": {}, "multiscales": []}}))
    assert "collection of labels" in refusal(write_zarr(volume, attrs={"labels": ["a"]}, version=2))
    assert "bare Zarr array" in refusal(write_zarr(volume, attrs={}) + "/0")
    assert "type complex64" in refusal_of(write_zarr(volume.astype("c8")))


def refusal_of(url: str) -> str:
    """The message names the level as well as the image."""
    message = refusal(url)
    assert message.startswith(f"{url}/0: ")
    return message


@pytest.mark.parametrize(
    "image",
    [
        {"datasets": []},
        {"datasets": [{"name": "0"}]},
        {"axes": list("zyx"), "datasets": "0"},
        {"axes": list("zyx"), "datasets": [{"path": "9"}]},
        {"axes": list("yx"), "datasets": [{"path": "0"}]},
        {"axes": "zyx", "datasets": [{"path": "0"}]},
        {"axes": list("zyx"), "datasets": [{"path": "0", "coordinateTransformations": [{"type": "affine"}]}]},
        {"axes": list("zyx"), "datasets": [{"path": "0", "coordinateTransformations": ["scale"]}]},
        {
            "axes": list("zyx"),
            "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1]}]}],
        },
        {"axes": [1, 2, 3], "datasets": [{"path": "0"}]},
        {"coordinateSystems": [{"axes": [{"name": name} for name in "zyx"]}], "datasets": [{"path": "0"}]},
        {},
        "image",
    ],
)
def test_damaged_metadata(write_zarr, volume, image):
    refusal(write_zarr(volume, attrs={"ome": {"multiscales": [image]}}), voxel_size=1.0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"zarr_format": 3, "node_type": "group", "attributes": 7}'])
def test_damaged_metadata_file(write_zarr, volume, text):
    url = write_zarr(volume)
    Path(url, "zarr.json").write_text(text)
    refusal(url)


def test_damaged_array_metadata(write_zarr, volume):
    url = write_zarr(volume)
    path = Path(url, "0", "zarr.json")
    for change in ({"shape": [-1, 7, 11]}, {"data_type": "float99"}, {"codecs": [{"name": "nope"}]}):
        original = path.read_text()
        path.write_text(json.dumps({**json.loads(original), **change}))
        refusal_of(url)
        path.write_text(original)


def test_damaged_chunk_is_placed(write_zarr, volume):
    url = write_zarr(volume)
    chunk = Path(url, "0", "c", "0", "0", "1")
    chunk.write_bytes(chunk.read_bytes()[:5])
    message = refusal_of(url)
    assert "damaged at z 0:5, y 0:7, x 0:11" in message


def test_gone_after_opening(write_zarr, volume):
    url = write_zarr(volume)
    source = open_tomogram(url)
    shutil.rmtree(url)
    with pytest.raises(InputError, match="no Zarr"):
        source.read(ALL)


@pytest.mark.parametrize(
    "change", ["shorter", "longer", "of another type", "flat", "of four axes", "turned", "an array"]
)
def test_another_image_in_its_place_is_not_read(write_zarr, volume, change):
    """The voxels of a smaller image would be spread over the block, those of another type cast."""
    url = write_zarr(volume)
    source = open_tomogram(url)
    others = {"shorter": volume[:, :, :5], "longer": np.concatenate([volume] * 2), "flat": volume[0]}
    others |= {"of another type": volume + np.float32(0.5), "turned": volume.transpose(2, 1, 0)}
    others |= {"of four axes": np.stack([volume] * 2, -1)}
    if change == "an array":
        shutil.rmtree(url)
        zarr.create_array(url, data=volume)
    else:
        write_zarr(others[change], attrs={})
    with pytest.raises(InputError, match=r"can't be read any more: .* when opened, now ") as error:
        source.read(ALL)
    assert str(error.value).startswith(url)


def test_which_of_several_images_is_read_is_said(write_zarr, volume):
    url = write_zarr(volume)
    group = zarr.open_group(url)
    group.attrs["ome"] = {"multiscales": [*group.attrs["ome"]["multiscales"]] * 2}
    assert open_tomogram(url).notes == ("2 multiscale images in it; the first is read",)
    collection = write_zarr(volume, attrs={"ome": {"version": "0.5", "bioformats2raw.layout": 3}})
    assert refusal(collection).endswith(f"it holds several, give one as {collection}/0")


def test_one_angstrom_is_noted_as_a_size_that_nobody_set(write_zarr, volume):
    url = write_zarr(volume, scale=(1, 1, 1))
    assert "know no voxel size" in open_tomogram(url).notes[0]
    assert open_tomogram(url, voxel_size=1).notes == ()


def test_identity_follows_content_not_place(write_zarr, volume, tmp_path):
    url = write_zarr(volume)
    identity = open_tomogram(url).identity
    json.dumps(identity)
    copy = tmp_path / "elsewhere" / "tomo.zarr"
    shutil.copytree(url, copy)
    assert open_tomogram(copy).identity == identity
    zarr.open_array(f"{copy}/0", mode="r+")[4, 6, 10] += 1
    assert open_tomogram(copy).identity != identity


def test_identity_samples_a_large_image_to_its_end(write_zarr):
    url = write_zarr(np.zeros((40, 70, 36), "u1"))
    identities = [open_tomogram(url).identity["sha256_sampled"]]
    array = zarr.open_array(f"{url}/0", mode="r+")
    for place in ((0, 0, 0), (20, 35, 18), (39, 69, 35)):
        array[place] = 1
        identities.append(open_tomogram(url).identity["sha256_sampled"])
    assert len(set(identities)) == 4


def test_addresses_that_lead_nowhere(monkeypatch):
    assert "Protocol not known" in refusal("nosuchprotocol://x/tomo.zarr")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert "another package" in refusal("gs://bucket/tomo.zarr")


def test_unsigned_is_refused(write_zarr, volume):
    assert "MRC files only" in refusal(write_zarr(volume), unsigned=True)


def test_slash_at_the_end_of_a_url(write_zarr, volume):
    url = write_zarr(volume, url="memory://slash/tomo.zarr")
    assert open_tomogram(f"{url}/") == open_tomogram(url)
    assert open_tomogram(url).identity["name"] == "tomo.zarr"


def test_file_url(write_zarr, volume, tmp_path):
    url = write_zarr(volume, url=str(tmp_path / "a b.zarr"))
    assert open_tomogram("file://" + url.replace(" ", "%20")) == open_tomogram(url)
