"""copick itself reads what we write, and we read what it writes; in a folder of its own, for it needs Zarr before 3."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cryosam_dask import outputs
from cryosam_dask.io import copick_project, open_tomogram, read_points

PACKAGES = ["copick>=1.20", "zarr<3", "numcodecs<0.16", "ome-zarr<0.12"]
PACKAGES += ["asciitree", "fasteners", "deprecated", "distinctipy"]
EVERYTHING = ("picks", "segmentation", "multilabel", "meshes", "tomogram")

READ = """
import json, sys
import numpy as np
# what copick.from_file takes for such a project; that would load the data portal's client, too
from copick.impl.filesystem import CopickRootFSSpec
config, out = sys.argv[1:]
root = CopickRootFSSpec.from_file(config)
run = root.get_run("TS_01")
(picks,) = run.get_picks("a-b", user_id="cryosam", session_id="0")
places, transforms = picks.numpy()
(one,) = run.get_segmentations(name="a-b", is_multilabel=False)
(many,) = run.get_segmentations(name="a-b", is_multilabel=True)
(spacing,) = run.voxel_spacings
(tomogram,) = spacing.tomograms
(mesh,) = run.get_meshes("a-b")
np.savez(out, places=places, one=one.numpy(), many=many.numpy(), tomogram=tomogram.numpy(), half=one.numpy("1"))
about = root.get_object("a-b")
print(json.dumps({
    "zarr": __import__("zarr").__version__, "objects": [o.name for o in root.pickable_objects], "label": about.label,
    "radius": about.radius, "type": tomogram.tomo_type, "spacing": spacing.voxel_size, "size": one.voxel_size,
    "scores": [p.score for p in picks.points], "ids": [p.instance_id for p in picks.points],
    "identity": bool(np.all(transforms == np.eye(4))), "trusted": picks.trust_orientation,
    "centres": {k: list(map(float, v.center_mass)) for k, v in mesh.mesh.geometry.items()},
}))
"""

WRITE = """
import json, sys
import numpy as np
from copick.impl.filesystem import CopickRootFSSpec
from copick.models import CopickLocation, CopickPoint
folder, array = sys.argv[1:]
objects = [{"name": n, "is_particle": True, "label": l, "color": [1, 2, 3, 255]} for n, l in (("ribo", 3), ("apo", 7))]
config = {"config_type": "filesystem", "name": "p", "description": "", "version": "0.5.0", "pickable_objects": objects,
          "user_id": "ann", "overlay_root": "local://" + folder, "overlay_fs_args": {"auto_mkdir": True}}
json.dump(config, open(folder + "/filesystem.json", "w"))
root = CopickRootFSSpec.from_file(folder + "/filesystem.json")
for name in ("TS_2", "TS_10"):
    run = root.new_run(name)
    spacing = run.new_voxel_spacing(13.48)
    for kind in ("wbp", "denoised"):
        spacing.new_tomogram(kind).from_numpy(np.load(array), levels=1)
    picks = run.new_picks("ribo", "1", "ann")
    places = ((1, 2, 3), (4.5, 0, 6.25))
    locations = [CopickLocation(x=x * 13.48, y=y * 13.48, z=z * 13.48) for z, y, x in places]
    picks.points = [CopickPoint(location=location, score=0.5, instance_id=4) for location in locations]
    picks.store()
print("0")
"""


@pytest.fixture(scope="module")
def real(installed):
    return installed(*PACKAGES)


def test_copick_reads_what_was_exported(real, finished, tmp_path):
    project = tmp_path / "project"
    outputs.export(finished.url, project, format="copick", copick=outputs.CopickChoice(contents=EVERYTHING))
    found = real(READ, project / "config.json", tmp_path / "out.npz")
    assert found["zarr"].startswith("2.")
    with np.load(tmp_path / "out.npz") as saved:
        arrays = dict(saved)
    places = finished.table[["x", "y", "z"]].to_numpy() * 8
    assert arrays["places"] == pytest.approx(places)
    assert np.array_equal(arrays["one"], finished.labels > 0)
    assert np.array_equal(arrays["many"], (finished.labels > 0) * found["label"])
    assert np.array_equal(arrays["tomogram"], finished.tomogram)
    assert np.array_equal(arrays["half"], finished.labels[::2, ::2, ::2] > 0)
    assert (found["objects"], found["type"], found["spacing"], found["size"]) == (["a-b"], "tomogram", 8.0, 8.0)
    assert (found["scores"], found["ids"]) == ([0.9, 0.7, 0.5], [1, 2, 3])
    assert (found["identity"], found["trusted"]) == (True, False)
    assert found["radius"] == pytest.approx(5.6 * 8, rel=0.1)
    # a ball's middle is where its pick is, in the same frame; the one at the border is not whole
    for name, place in zip(("instance_00001", "instance_00002"), places, strict=False):
        assert found["centres"][name] == pytest.approx(place, abs=0.02)


def test_what_copick_wrote_is_read_and_added_to(real, finished, tmp_path):
    volume = np.random.default_rng(1).normal(size=(9, 11, 14)).astype(np.float32)
    np.save(tmp_path / "volume.npy", volume)
    folder = tmp_path / "project"
    folder.mkdir()
    real(WRITE, folder, tmp_path / "volume.npy")
    config = folder / "filesystem.json"
    source = open_tomogram(f"{config}#TS_2/wbp@13.48")
    assert source.voxel_size == pytest.approx((13.48,) * 3)
    assert np.array_equal(source.read((slice(None),) * 3), volume)
    assert copick_project.addresses(f"{config}#denoised@13.48") == [
        f"{config}#TS_10/denoised@13.48",
        f"{config}#TS_2/denoised@13.48",
    ]
    points = read_points(f"{config}#TS_2/ribo:ann", voxel_size=13.48)
    assert points[["z", "y", "x"]].to_numpy() == pytest.approx(np.array([[1, 2, 3], [4.5, 0, 6.25]]))
    # into the same project, under a run's name of its own
    before = json.loads(config.read_text())
    choice = outputs.CopickChoice(object="apo", contents=EVERYTHING)
    outputs.export(finished.url, folder, format="copick", copick=choice)
    assert json.loads(config.read_text()) == before
    outputs.export(finished.url, config, format="copick", copick=outputs.CopickChoice(contents=EVERYTHING[:4]))
    found = real(READ, config, tmp_path / "out.npz")
    assert (found["objects"], found["label"]) == (["ribo", "apo", "a-b"], 8)
