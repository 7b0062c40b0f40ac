"""copick projects without copick: what is refused, what is left alone, and which tomograms an address stands for."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from cryosam_dask import outputs
from cryosam_dask.errors import InputError
from cryosam_dask.io import copick_out, copick_project, open_tomogram, read_points
from cryosam_dask.io.listing import find_tomograms, is_many, run_names
from cryosam_dask.stages import label
from cryosam_dask.store import layout, marks, picks

Choice = outputs.CopickChoice


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two roots: TS_1 with wbp in the static one and denoised in the overlay, TS_10 with wbp in both."""
    places = {"static": ["TS_1/wbp", "TS_10/wbp", ".hidden/wbp"], "overlay": ["TS_1/denoised", "TS_10/wbp"]}
    for number, (root, tomograms) in enumerate(places.items()):
        for place in tomograms:
            run, kind = place.split("/")
            folder = tmp_path / root / "ExperimentRuns" / run / "VoxelSpacing10.012"
            group = zarr.create_group(str(folder / f"{kind}.zarr"), zarr_format=2)
            axes = [{"name": a, "type": "space", "unit": "angstrom"} for a in "zyx"]
            scale = [{"type": "scale", "scale": [10.012] * 3}]
            datasets = [{"path": "0", "coordinateTransformations": scale}]
            group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
            group.create_array("0", shape=(4, 5, 6), dtype="f4", chunks=(4, 5, 6))[...] = number + len(run)
    (tmp_path / "static/ExperimentRuns/TS_1/VoxelSpacing10.012/wbp_sobel_features.zarr").mkdir()
    picked = tmp_path / "overlay/ExperimentRuns/TS_1/Picks"
    picked.mkdir()
    for name in ("ann_1_ribo", "ann_2_ribo", "bob_1_ribo", "bob_1_apo", "no"):
        (picked / f"{name}.json").write_text("{}")
    config = tmp_path / "c.json"
    roots = {"overlay_root": f"local://{tmp_path}/overlay/", "static_root": f"{tmp_path}/static"}
    config.write_text(json.dumps({"config_type": "filesystem", "pickable_objects": [], **roots}))
    return config


def test_an_address_is_one_tomogram(project):
    source = open_tomogram(f"{project}#TS_1/wbp@10.012")
    assert (source.shape, source.voxel_size) == ((4, 5, 6), pytest.approx((10.012,) * 3))
    assert (source.read((slice(None),) * 3) == 4).all()
    # where both roots have it, the overlay's
    assert (open_tomogram(f"{project}#TS_10").read((slice(None),) * 3) == 6).all()
    assert open_tomogram(f"{project}#TS_?/denoised").identity["name"] == "denoised.zarr"


def test_a_voxel_size_that_is_not_the_folders_is_noted(project):
    assert open_tomogram(f"{project}#TS_10").notes == ()
    assert open_tomogram(f"{project}#TS_10", voxel_size=10.013).notes == ()
    (note,) = open_tomogram(f"{project}#TS_10", voxel_size=(10.012, 10.012, 20)).notes
    assert note.startswith("voxels of 10.012 x 10.012 x 20 Å in the project's folder for 10.012 Å")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("#TS_1", r"2 tomograms; say which one: TS_1/denoised@10.012, TS_1/wbp@10.012"),
        ("", r"3 tomograms; say which one"),
        ("#TS_2/wbp@10", r"no tomograms of such a run in the project; runs: TS_1, TS_10"),
        ("#TS_1/wbp@10", r"no such tomogram in the project; there are: TS_1/denoised@10.012, TS_1/wbp@10.012"),
        ("#TS_1/wbp@ten", r"'ten' after the @, expected a voxel spacing"),
        ("#TS_1/wbp@-1", r"expected a voxel spacing"),
        ("#a/TS_1/wbp@10", r"expected CONFIG.json#RUN/TYPE@SPACING"),
        ("#../../etc/wbp@10", r"expected CONFIG.json#RUN/TYPE@SPACING"),
    ],
)
def test_an_address_that_is_none_says_what_there_is(project, uri, message):
    with pytest.raises(InputError, match=message) as caught:
        open_tomogram(f"{project}{uri}")
    assert "\n" not in str(caught.value)


def test_a_project_is_many_tomograms_called_by_their_runs(project):
    where = f"{project}#wbp@10.012"
    assert is_many([where])
    found = find_tomograms([where])
    assert found == [f"{project}#TS_1/wbp@10.012", f"{project}#TS_10/wbp@10.012"]
    assert run_names(found) == ["TS_1", "TS_10"]
    assert not is_many([found[0]])
    with pytest.raises(InputError, match=r"several tomograms of a run; say which with #TYPE@SPACING: denoised@10.012,"):
        find_tomograms([str(project)])
    listed = project.with_name("list.txt")
    listed.write_text("c.json#TS_1/denoised\nc.json#*/wbp\n")
    assert [name.partition("#")[2] for name in find_tomograms([listed])] == [
        "TS_1/denoised@10.012",
        "TS_1/wbp@10.012",
        "TS_10/wbp@10.012",
    ]


def test_a_project_behind_a_url_is_read_as_one_on_a_disk(project, monkeypatch):
    from s3_server import BUCKET, Storage, client, environment

    from cryosam_dask.storage import filesystem

    storage = Storage()
    for name, value in environment(storage.url).items():
        monkeypatch.setenv(name, value)
    s3 = client(storage.url)
    s3.create_bucket(Bucket=BUCKET)
    folder = project.parent
    for file in (path for path in folder.rglob("*") if path.is_file()):
        s3.upload_file(str(file), BUCKET, f"p/{file.relative_to(folder)}")
    roots = {"overlay_root": f"s3://{BUCKET}/p/overlay", "static_root": f"s3://{BUCKET}/p/static"}
    content = json.dumps({"pickable_objects": [], **roots}).encode()
    s3.put_object(Bucket=BUCKET, Key="p/far.json", Body=content)
    filesystem.forget()
    try:
        config = f"s3://{BUCKET}/p/far.json"
        assert (open_tomogram(f"{config}#TS_1/wbp").read((slice(None),) * 3) == 4).all()
        assert run_names(find_tomograms([f"{config}#wbp@10.012"])) == ["TS_1", "TS_10"]
        with pytest.raises(InputError, match=r"none\.json: no such file"):
            open_tomogram(f"s3://{BUCKET}/p/none.json#TS_1")
    finally:
        filesystem.forget()
        storage.close()


def test_picks_are_found_by_copicks_notation(project):
    def names(uri):
        return [Path(path).name for path in copick_project.picks_of(f"{project}#{uri}")]

    assert names("TS_1/ribo") == ["ann_1_ribo.json", "ann_2_ribo.json", "bob_1_ribo.json"]
    assert names("TS_*/ribo:ann/2") == ["ann_2_ribo.json"]
    assert names("TS_1/*:bob") == ["bob_1_apo.json", "bob_1_ribo.json"]
    assert copick_project.picks_path(f"{project}#TS_1/apo").name == "bob_1_apo.json"
    with pytest.raises(InputError, match=r"2 files of picks; say which .*: ann_1_ribo\.json, ann_2_ribo\.json"):
        read_points(f"{project}#TS_1/ribo:ann", voxel_size=8)
    with pytest.raises(InputError, match="no such picks in the project"):
        names("TS_10/ribo")
    with pytest.raises(InputError, match=r"expected CONFIG\.json#RUN/OBJECT:USER/SESSION"):
        names("ribo")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "no list 'pickable_objects'"),
        ('{"pickable_objects": [1]}', "no list 'pickable_objects'"),
        ('{"pickable_objects": []}', "expected 'filesystem' with an overlay_root"),
        ('{"pickable_objects": [], "overlay_root": 3}', "expected 'filesystem' with an overlay_root"),
        ('{"pickable_objects": [], "config_type": "cryoet_data_portal", "overlay_root": "x"}', "cryoet_data_portal"),
        ('{"pickable_objects": [], "overlay_root": "/nowhere"}', "there are: none"),
        ('{"pickable_objects": [], "overlay_root": "s3://key:secret@bucket"}', "holds a password or a key"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(tmp_path, content, message):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        open_tomogram(path)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_configuration_that_is_not_there_or_huge(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        open_tomogram(tmp_path / "none.json")
    monkeypatch.setattr(copick_project, "_MOST_BYTES", 10)
    (tmp_path / "c.json").write_text(" " * 11)
    with pytest.raises(InputError, match="11 bytes, no configuration"):
        open_tomogram(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"object": "a_b"}, "object 'a_b' can't be used"),
        ({"object": "../x"}, "object '../x' can't be used"),
        ({"user": "ann b"}, "user 'ann b' can't be used"),
        ({"session": ""}, "session '' can't be used"),
        ({"run": "a/b"}, "run 'ab?/?b' can't be used|run 'a/b' can't be used"),
        ({"run": ".."}, "can't be used"),
        ({"contents": ("picks", "pixels")}, "--contents picks,pixels: expected some of picks, segmentation"),
        ({"contents": ()}, "expected some of"),
        ({"contents": ("tomogram",), "tomogram": "w_b"}, "tomogram type 'w_b' can't be used"),
    ],
)
def test_names_that_copick_can_not_have_are_refused_before_anything_is_written(finished, tmp_path, choice, message):
    with pytest.raises(InputError, match=message):
        outputs.export_copick(finished.url, tmp_path / "p", choice=Choice(**choice))
    assert not list(tmp_path.iterdir())


def test_objects_that_are_added_at_once_are_all_there(tmp_path):
    """As by jobs that export into one project."""
    names = [f"kind-{i}" for i in range(12)]
    together = threading.Barrier(len(names), timeout=300)

    def add(name: str) -> int:
        together.wait()
        options = {"run": "TS-1", "user": "a", "session": "1", "voxel_size": (10.0,) * 3}
        return copick_out.open_target(tmp_path / "p", object_name=name, **options).label

    with ThreadPoolExecutor(len(names)) as pool:
        labels = dict(zip(names, pool.map(add, names), strict=True))
    objects = json.loads((tmp_path / "p/config.json").read_text())["pickable_objects"]
    assert {entry["name"]: entry["label"] for entry in objects} == labels
    assert sorted(labels.values()) == list(range(1, 13))


def test_two_queries_are_not_one_object(make_run, tmp_path):
    """Copick's names have no underscores: the second would replace the first."""
    run = make_run(tmp_path / "r.zarr")
    picks.write(run.store, "a-b", run.table, {})
    with pytest.raises(InputError, match="a-b and a_b would both be copick's object a-b"):
        outputs.export_copick(run.url, tmp_path / "p", choice=Choice(contents=("picks",)))
    assert not (tmp_path / "p").exists()
    outputs.export_copick(run.url, tmp_path / "p", name="a-b", choice=Choice(contents=("picks",)))


def test_the_tomogram_that_a_run_was_made_of_stays(project, make_run, tmp_path):
    run = make_run(tmp_path / "r.zarr", source=f"{project}#TS_1/denoised")
    run.store.root.attrs["cryosam"] = {**run.store.info, "voxel_size": [10.012] * 3}
    both = Choice(contents=("picks", "tomogram"), tomogram="denoised")
    with pytest.raises(InputError, match=r"denoised\.zarr: the run's own tomogram, which no export replaces"):
        outputs.export_copick(run.url, project, choice=both, overwrite=True)
    assert not list(tmp_path.rglob("cryosam_*.json"))
    assert (open_tomogram(f"{project}#TS_1/denoised").read((slice(None),) * 3) == 5).all()


def test_voxels_that_are_no_cubes_are_refused(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(type(finished.store), "voxel_size", (8.0, 8.0, 8.1))
    with pytest.raises(InputError, match=r"voxels of 8 x 8 x 8\.1 Å: copick's voxels are cubes"):
        outputs.export_copick(finished.url, tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_what_others_made_stays(finished, tmp_path):
    folder = tmp_path / "p"
    both = Choice(contents=("picks", "tomogram"))
    written = outputs.export_copick(finished.url, folder, choice=both)
    assert [path.name for path in written] == ["cryosam_0_a-b.json", "tomogram.zarr"]
    config = folder / "config.json"
    data = json.loads(config.read_text())
    data["pickable_objects"][0] |= {"label": 7, "color": [1, 2, 3, 4], "pdb_id": "3J9I"}
    data["mine"] = {"kept": True}
    config.write_text(json.dumps(data))
    other = written[0].with_name("ann_1_a-b.json")
    other.write_text("{}")
    before = written[0].read_text()
    with pytest.raises(InputError, match=r"tomogram\.zarr: is there already; give --overwrite"):
        outputs.export_copick(finished.url, folder, choice=both)
    outputs.export_copick(finished.url, folder, choice=both, overwrite=True)
    outputs.export_copick(finished.url, config, choice=Choice(object="other"))
    found = json.loads(config.read_text())
    assert found["mine"] == {"kept": True}
    assert found["pickable_objects"][0] == data["pickable_objects"][0]
    assert [entry["label"] for entry in found["pickable_objects"]] == [7, 8]
    assert (other.read_text(), written[0].read_text()) == ("{}", before)
    assert not [p for p in folder.rglob("*") if p.name.startswith(".") and ".tmp" in p.name]


@pytest.mark.parametrize("label", [0, -3, "seven", 2**40, 1.5])
def test_labels_of_objects_that_are_none(finished, tmp_path, label):
    config = tmp_path / "c.json"
    objects = [{"name": "a-b", "is_particle": True, "label": label}]
    config.write_text(json.dumps({"pickable_objects": objects, "overlay_root": str(tmp_path)}))
    with pytest.raises(InputError, match=r"c\.json: the object a-b has the label .*, expected 1, 2"):
        outputs.export_copick(finished.url, config)
    assert list(tmp_path.iterdir()) == [config]


def test_a_folder_that_is_no_project_is_left_alone(finished, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="thesis: no copick project"):
        outputs.export_copick(finished.url, tmp_path / "thesis")
    with pytest.raises(InputError, match="file: a file, expected the folder of a copick project"):
        outputs.export_copick(finished.url, tmp_path / "file")
    (tmp_path / "p").mkdir()
    for name in ("a.json", "b.json"):
        (tmp_path / "p" / name).write_text('{"pickable_objects": [], "overlay_root": "x"}')
    with pytest.raises(InputError, match=r"p: several configurations; give one of them: a\.json, b\.json"):
        outputs.export_copick(finished.url, tmp_path / "p")
    (tmp_path / "far.json").write_text('{"pickable_objects": [], "overlay_root": "s3://bucket/p"}')
    with pytest.raises(InputError, match="its overlay is s3://bucket/p; expected a folder on a disk"):
        outputs.export_copick(finished.url, tmp_path / "far.json")


def test_a_file_of_picks_is_no_project(finished, tmp_path):
    outputs.export(finished.url, tmp_path / "picks.json", format="copick")
    assert list(tmp_path.iterdir()) == [tmp_path / "picks.json"]
    assert not copick_out.is_config(tmp_path / "picks.json")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/p/config.json#TS_7/wbp@8", "TS_7"),
        ("/data/my tomo_8.5 (1).mrc", "my-tomo_8.5-(1)"),
        ("s3://b/t.zarr", "t"),
    ],
)
def test_the_run_is_called_as_the_tomogram_is(tmp_path, make_run, source, name):
    run = make_run(tmp_path / "r.zarr", source=source)
    (path,) = outputs.export_copick(run.url, tmp_path / "p", choice=Choice(contents=("picks",)))
    assert path.parent.parent.name == name
    assert json.loads(path.read_text())["run_name"] == name


def test_kinds_become_one_segmentation_with_their_objects_labels(tmp_path, make_run):
    run = make_run(tmp_path / "r.zarr", name="a")
    store = run.store
    for name in ("a", "b"):
        picks.write(store, name, run.table, {"kinds": ["b", "a"]})
    label.prepare(store, layout.KINDS, ("b", "a"))
    values = (run.labels % 3).astype(np.uint8)
    for level in (0, 1):
        store.array(layout.labels(layout.KINDS, level))[...] = values[
            tuple(slice(None, None, 1 << level) for _ in "zyx")
        ]
    picks.write(store, "c", run.table, {})
    label.prepare(store, "c")
    for level in (0, 1):
        array = store.array(layout.labels(layout.semantic_name("c"), level))
        array[...] = np.ones(array.shape, np.uint8)
    for name in ("b", "c", layout.KINDS):
        marks.begin(store, label.stage_name(name), fingerprint="f", settings={}, count=1)
        marks.mark(store, label.stage_name(name), 0)
    choice = Choice(contents=("multilabel",))
    path, other = outputs.export_copick(run.url, tmp_path / "p", choice=choice)
    assert path.name == "8.000_cryosam_0_kinds-multilabel.zarr"
    assert other.name == "8.000_cryosam_0_c-multilabel.zarr"
    objects = {
        entry["name"]: entry["label"]
        for entry in copick_project.read_config(str(tmp_path / "p/config.json"))["pickable_objects"]
    }
    found = zarr.open_array(str(path / "0"), mode="r")[:]
    assert np.array_equal(found, np.array([0, objects["b"], objects["a"]])[values])
    assert (zarr.open_array(str(other / "0"), mode="r")[:] == objects["c"]).all()
    outputs.export(run.url, tmp_path / "k.zarr", what="kinds")
    about = zarr.open_group(str(tmp_path / "k.zarr"), mode="r").attrs["ome"]["image-label"]
    assert [(entry["label-value"], entry["name"]) for entry in about["properties"]] == [(1, "b"), (2, "a")]
