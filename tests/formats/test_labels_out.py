"""Labels as files: what is in them, what must not be lost, and what a failure leaves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import zarr

from cryosam_dask import outputs
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.io import omezarr_out
from cryosam_dask.io.omezarr_out import Level, write_omezarr
from cryosam_dask.store import layout, ome


def volumes(path):
    group = zarr.open_group(str(path), mode="r")
    about = dict(group.attrs).get("ome", dict(group.attrs))
    return about, [group[entry["path"]] for entry in about["multiscales"][0]["datasets"]]


def test_a_runs_labels_are_listed_and_have_the_images_levels(finished):
    root = zarr.open_group(finished.url, mode="r")
    image = root.attrs["ome"]["multiscales"][0]
    listed = root["labels"].attrs["ome"]["labels"]
    assert sorted(listed) == sorted(root["labels"].group_keys()) == ["a_b", "a_b_semantic"]
    for name in listed:
        about, levels = volumes(f"{finished.url}/labels/{name}")
        assert about["image-label"]["source"] == {"image": "../../"}
        assert [array.dtype.kind for array in levels] == ["u"] * len(image["datasets"])
        assert [array.shape for array in levels] == [layout.level_shape(finished.store.shape, i) for i in (0, 1)]
        first = about["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        assert first == image["datasets"][0]["coordinateTransformations"]


@pytest.mark.parametrize(("format", "version"), [(None, "0.5"), ("ome-zarr", "0.5"), ("ome-zarr-0.4", "0.4")])
def test_labels_are_written_with_levels_places_and_figures(finished, tmp_path, format, version):
    outputs.export(finished.url, tmp_path / "l.zarr", format=format)
    about, levels = volumes(tmp_path / "l.zarr")
    scale = about["multiscales"][0]
    assert about.get("version", scale.get("version")) == about["image-label"]["version"] == version
    assert (levels[0].metadata.zarr_format == 2) == (version == "0.4")
    assert np.array_equal(levels[0][:], finished.labels)
    assert np.array_equal(levels[1][:], finished.labels[::2, ::2, ::2])
    # a level's voxel is every other voxel: it has that one's place, half a voxel from where a mean would lie
    shifts = [entry["coordinateTransformations"][1]["translation"] for entry in scale["datasets"]]
    assert shifts == [list(finished.store.origin)] * 2
    assert [p["score"] for p in about["image-label"]["properties"]] == [0.9, 0.7, 0.5]
    assert "source" not in about["image-label"]


def test_semantic_labels_are_zero_and_one(finished, tmp_path):
    outputs.export(finished.url, tmp_path / "s.zarr", what="semantic")
    about, levels = volumes(tmp_path / "s.zarr")
    assert levels[0].dtype == np.uint8
    assert np.array_equal(levels[0][:], finished.labels > 0)
    assert about["image-label"]["properties"] == [{"label-value": 1, "name": "a_b"}]


def test_many_instances_do_not_fill_the_metadata():
    some = {i: {"score": 0.1234, "size": 123456} for i in range(1, ome.DESCRIBED + 1)}
    entry = ome.image_label(some)
    assert len(entry["colors"]) == len(entry["properties"]) == ome.DESCRIBED
    assert len({tuple(color["rgba"]) for color in entry["colors"]}) > 900
    assert len(json.dumps(entry, indent=2)) < 400_000
    # all or none: napari hides labels that have no colour where others have
    assert set(ome.image_label({**some, 0: {}})) == {"version", "source"}
    assert set(ome.image_label({})) == {"version", "source"}


def test_a_tiff_has_a_page_for_each_section_and_the_voxel_size(finished, tmp_path):
    outputs.export(finished.url, tmp_path / "l.tif")
    outputs.export(finished.url, tmp_path / "s.tiff", what="semantic")
    with tifffile.TiffFile(tmp_path / "l.tif") as file:
        assert (file.is_bigtiff, file.is_ome, len(file.pages)) == (True, True, 20)
        assert file.series[0].axes == "ZYX"
        assert np.array_equal(file.asarray(), finished.labels)
        assert 'PhysicalSizeZ="8.0"' in file.ome_metadata
        assert 'PhysicalSizeZUnit="Å"' in file.ome_metadata
    assert np.array_equal(tifffile.imread(tmp_path / "s.tiff"), finished.labels > 0)
    assert (tmp_path / "l.tif").stat().st_size < finished.labels.size / 8


def level(values, fail_at=None):
    def read(block):
        if fail_at is not None and block[0].start >= fail_at:
            raise KeyboardInterrupt
        return values[block]

    return Level(values.shape, read)


def test_only_blocks_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(omezarr_out, "BOX", (4, 4, 8))
    monkeypatch.setattr(omezarr_out, "CHUNK", (4, 4, 4))
    values = np.arange(9 * 5 * 17).reshape(9, 5, 17)
    asked = []

    def read(block):
        asked.append(tuple(part.stop - part.start for part in block))
        return values[block]

    write_omezarr(tmp_path / "a.zarr", [Level(values.shape, read)], dtype="u2", voxel_size=(1.0, 1.0, 1.0))
    assert np.array_equal(zarr.open_array(str(tmp_path / "a.zarr/0"), mode="r")[:], values)
    assert max(asked) <= (4, 4, 8)


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.zarr"
    size = {"dtype": "u1", "voxel_size": (1.0, 1.0, 1.0)}
    with pytest.raises(KeyboardInterrupt):
        write_omezarr(path, [level(np.ones((300, 2, 2), "u1"), fail_at=128)], **size)
    assert not list(tmp_path.iterdir())
    write_omezarr(path, [level(np.ones((3, 2, 2), "u1"))], **size)
    with pytest.raises(InputError, match=r"a\.zarr: is there already; give --overwrite"):
        write_omezarr(path, [level(np.zeros((3, 2, 2), "u1"))], **size)
    with pytest.raises(KeyboardInterrupt):
        write_omezarr(path, [level(np.zeros((300, 2, 2), "u1"), fail_at=0)], **size, overwrite=True)
    assert zarr.open_array(str(path / "0"), mode="r")[:].all()
    write_omezarr(path, [level(np.zeros((3, 2, 2), "u1"))], **size, overwrite=True)
    assert not zarr.open_array(str(path / "0"), mode="r")[:].any()
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_export_of_ours_is_never_replaced(finished, tmp_path):
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr" / "thesis.tex").write_text("")
    (tmp_path / "file.zarr").write_text("")
    (tmp_path / "link.zarr").symlink_to(finished.url)
    for name in ("folder.zarr", "file.zarr", "link.zarr"):
        with pytest.raises(InputError, match="choose another name"):
            outputs.export(finished.url, tmp_path / name, overwrite=True)
    with pytest.raises(InputError, match="a run, which no export replaces"):
        outputs.export(finished.url, finished.url, overwrite=True, format="ome-zarr")
    with pytest.raises(StoreError, match=r"none/l\.zarr: can't be written"):
        outputs.export(finished.url, tmp_path / "none" / "l.zarr")
    assert len(list(tmp_path.iterdir())) == 3
