"""Surfaces of instances: closed, the right way round, where and as large as the instance is; and their files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cryosam_dask import outputs
from cryosam_dask.errors import InputError
from cryosam_dask.io import mesh as module
from cryosam_dask.io.mesh import surface_of

FRAME = {"voxel_size": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "label": 1, "score": 0.5}


def as_mesh(surface):
    return trimesh.Trimesh(surface.vertices, surface.faces, process=False)


def ball(radius, shape=(21, 23, 25), centre=(10, 11, 12)):
    return sum((i - c) ** 2 for i, c in zip(np.indices(shape), centre, strict=True)) <= radius**2


def whole(mask):
    return tuple((0, n) for n in mask.shape)


@pytest.mark.parametrize("smooth", [0, 1, 2])
@pytest.mark.parametrize("radius", [4, 7.3, 9])
def test_a_ball_is_where_and_as_large_as_it_is(radius, smooth):
    mask = ball(radius)
    box = ((3, 24), (-2, 21), (100, 125))
    size, origin = (2.0, 3.0, 4.5), (-7.0, 0.5, 1000.0)
    found = as_mesh(surface_of(mask, box, size, origin, label=1, score=0.5, smooth=smooth))
    assert found.is_watertight
    # positive: normals point outwards
    # unsmoothed, corners are cut
    assert found.volume == pytest.approx(mask.sum() * 27, rel=0.015 if smooth else 0.04)
    centre = [(10 + 3) * 2 - 7, (11 - 2) * 3 + 0.5, (12 + 100) * 4.5 + 1000]
    assert found.center_mass[::-1] == pytest.approx(np.array(centre), abs=0.01)


def test_smoothing_takes_the_steps_away():
    mask = ball(9)
    angles = []
    for smooth in (0, 1):
        mesh = as_mesh(surface_of(mask, whole(mask), **FRAME, smooth=smooth))
        angles.append(np.abs(mesh.face_adjacency_angles).mean())
    assert angles[1] < 0.5 * angles[0]


def test_one_voxel_is_an_octahedron_around_its_centre():
    surface = surface_of(np.ones((1, 1, 1), bool), ((4, 5), (5, 6), (6, 7)), **FRAME)
    corners = {(6.5, 5, 4), (5.5, 5, 4), (6, 5.5, 4), (6, 4.5, 4), (6, 5, 4.5), (6, 5, 3.5)}
    assert {tuple(vertex) for vertex in surface.vertices.tolist()} == corners


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)), st.sampled_from([0, 0.6, 1.5]))
def test_any_mask_gives_a_closed_surface_the_same_in_slabs(mask, smooth):
    if not mask.any():
        mask[0, 0, 0] = True
    found = as_mesh(surface_of(mask, whole(mask), **FRAME, smooth=smooth))
    assert found.is_watertight
    assert found.is_winding_consistent
    assert found.volume > 0
    kept, module._PIECE = module._PIECE, 1
    try:
        again = as_mesh(surface_of(mask, whole(mask), **FRAME, smooth=smooth))
    finally:
        module._PIECE = kept
    assert again.is_watertight
    assert len(again.vertices) == len(found.vertices)
    assert again.volume == pytest.approx(found.volume, rel=1e-4)  # corners are rounded as float32 where they are found


def test_a_scene_has_a_node_for_each_instance_with_its_score(finished, tmp_path):
    outputs.export(finished.url, tmp_path / "m.glb")
    scene = trimesh.load_scene(tmp_path / "m.glb")
    assert sorted(scene.geometry) == ["instance_00001", "instance_00002", "instance_00003"]
    data = (tmp_path / "m.glb").read_bytes()
    header = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    assert {node["name"] for node in header["nodes"]} >= set(scene.geometry)
    assert header["meshes"][1]["extras"] == {"instance": 2, "score": 0.7}
    for name, place, size in zip(
        sorted(scene.geometry), finished.table[["x", "y", "z"]].to_numpy(), finished.table["size"], strict=True
    ):
        mesh = scene.geometry[name]
        assert mesh.volume == pytest.approx(size * 8**3, rel=0.06)
        if name != "instance_00003":
            # ångström, with the origin of the tomogram's header, as other programs draw the map
            assert mesh.center_mass == pytest.approx(place * 8 + finished.store.origin[::-1], abs=0.05)
        else:
            # cut by the border, half a voxel beyond the last one's centre
            assert mesh.is_watertight
            assert mesh.bounds[1][0] == pytest.approx(299.5 * 8 + finished.store.origin[2])
    colors = {tuple(scene.geometry[name].visual.vertex_colors[0]) for name in scene.geometry}
    assert len(colors) == 3


def test_one_ply_knows_the_instance_of_each_vertex(finished, tmp_path):
    outputs.export(finished.url, tmp_path / "m.ply")
    found = trimesh.load_mesh(tmp_path / "m.ply", process=False)
    values = found.metadata["_ply_raw"]["vertex"]["data"]
    assert sorted(set(values["instance"].ravel().tolist())) == [1, 2, 3]
    assert values["score"][values["instance"] == 2] == pytest.approx(0.7)
    assert found.is_watertight
    assert found.volume == pytest.approx(finished.table["size"].sum() * 8**3, rel=0.06)


def test_a_folder_has_a_ply_for_each_instance(finished, tmp_path):
    for _ in range(2):
        outputs.export(finished.url, tmp_path / "m", what="meshes", overwrite=True, smooth=1.0)
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [f"instance_0000{i}.ply" for i in (1, 2, 3)]
    with pytest.raises(InputError, match="m: is there already; give --overwrite"):
        outputs.export(finished.url, tmp_path / "m", what="meshes")
    (tmp_path / "m" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        outputs.export(finished.url, tmp_path / "m", what="meshes", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize("smooth", [-1, 9, float("nan")])
def test_smoothing_that_is_none_is_refused(finished, tmp_path, smooth):
    with pytest.raises(InputError, match=r"--smooth .*: expected voxels from 0 to 8"):
        outputs.export(finished.url, tmp_path / "m.glb", smooth=smooth)
    assert not list(tmp_path.iterdir())
