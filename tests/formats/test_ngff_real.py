"""Label images as the field's own packages take them: ome-zarr-models' rules, and what ome-zarr-py finds."""

from __future__ import annotations

import pytest

from cryosam_dask import outputs

# what works together: not pydantic-zarr with pydantic 2.14; ome-zarr after 0.12 wants more packages
MODELS = ["ome-zarr-models==1.7", "pydantic-zarr==0.9.2", "pydantic==2.12.5", "pydantic-core==2.41.5"]
PACKAGES = [*MODELS, "typing-inspection", "ome-zarr==0.12.2", "deprecated"]

VALIDATE = """
import json, sys
import zarr
from ome_zarr_models import open_ome_zarr
from ome_zarr_models.v05.image import ImageAttrs
from ome_zarr_models.v05.labels import LabelsAttrs
run, *others = sys.argv[1:]
root = zarr.open_group(run, mode="r")
# the attributes alone: the models look arrays of an image with labels up by one name, and a run's levels are groups
ImageAttrs.model_validate(root.attrs["ome"])
LabelsAttrs.model_validate(root["labels"].attrs["ome"])
groups = [root["labels"][name] for name in root["labels"].attrs["ome"]["labels"]]
groups += [zarr.open_group(path, mode="r") for path in others]
found = [open_ome_zarr(group) for group in groups]
print(json.dumps([[type(one).__name__, one.ome_zarr_version] for one in found]))
"""

READ = """
import json, sys
from ome_zarr.io import parse_url
from ome_zarr.reader import Label, Reader
found = {}
for path in sys.argv[1:]:
    for node in Reader(parse_url(path))():
        if node.data:
            found[node.zarr.basename()] = {
                "label": any(isinstance(spec, Label) for spec in node.specs),
                "shapes": [list(level.shape) for level in node.data],
                "most": float(node.data[0].max().compute()),
                "properties": node.metadata.get("properties"),
                "colors": sorted(node.metadata.get("color") or {}),
                "scale": node.metadata["coordinateTransformations"][0][0]["scale"],
            }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def real(installed):
    return installed(*PACKAGES)


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    outputs.export(finished.url, folder / "new.zarr")
    outputs.export(finished.url, folder / "old.zarr", format="ome-zarr-0.4")
    return folder


def test_metadata_is_what_the_specification_asks_for(real, finished, exported):
    found = real(VALIDATE, finished.url, exported / "new.zarr", exported / "old.zarr")
    assert found == [["ImageLabel", "0.5"]] * 3 + [["ImageLabel", "0.4"]]


def test_labels_are_found_beside_their_image_and_alone(real, finished, exported):
    found = real(READ, finished.url, exported / "new.zarr", exported / "old.zarr")
    both = [[20, 24, 300], [10, 12, 150]]
    assert {name: (one["label"], one["shapes"]) for name, one in found.items()} == {
        "run.zarr": (False, both),
        "a_b": (True, both),
        "a_b_semantic": (True, both),
        "new.zarr": (True, both),
        "old.zarr": (True, both),
    }
    for name in ("new.zarr", "old.zarr"):
        assert found[name]["most"] == 3
        assert found[name]["colors"] == [1, 2, 3]
        assert found[name]["scale"] == [8, 8, 8]
        assert found[name]["properties"]["2"] == {"score": 0.7, "size": int(finished.table["size"][1])}
