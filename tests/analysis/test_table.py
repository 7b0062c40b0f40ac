"""The table of instances against what follows from the label image directly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array
import mrcfile
import numpy as np
import pytest
import xarray as xr
from scipy import ndimage

from cryosam_dask import analysis, geometry
from cryosam_dask.analysis import distances, instances, volumes
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore

NM = (1.0, 1.4, 0.8)


@pytest.fixture(scope="module")
def labels(run: RunStore) -> np.ndarray:
    return np.asarray(run.read(layout.labels("a")))


@pytest.fixture(scope="module")
def sheet(run: RunStore) -> np.ndarray:
    return np.asarray(run.read(layout.labels("m")) > 0)


@pytest.fixture(scope="module")
def table(run: RunStore) -> xr.Dataset:
    return analysis.instance_table(run.url, "a", distance_to="m")


def test_sizes_centres_and_extents_are_those_of_the_labels(table: xr.Dataset, labels: np.ndarray) -> None:
    assert table["instance"].values.tolist() == list(range(1, 9))
    for i in range(1, 9):
        row, where = table.sel(instance=i), np.argwhere(labels == i)
        assert row.voxels == len(where)
        assert row.volume == pytest.approx(len(where) * 1.12)
        if not len(where):
            assert math.isnan(row.z)
            assert math.isnan(row.distance_to_m)
            assert not row.touches_border
            continue
        assert [float(row[a]) for a in "zyx"] == pytest.approx(where.mean(0))
        assert float(row.position_z) == pytest.approx(10 * where[:, 0].mean() - 50)
        assert float(row.position_x) == pytest.approx(8 * where[:, 2].mean() + 300)
        assert [float(row[f"extent_{a}"]) for a in "zyx"] == pytest.approx((np.ptp(where, axis=0) + 1) * NM)
        assert bool(row.touches_border) == bool((where == 0).any() or (where == np.array(labels.shape) - 1).any())
    assert int(table.voxels.sel(instance=6)) == 0  # hidden under the third
    assert table.touches_border.values.tolist() == [i == 4 for i in range(1, 9)]


def test_ellipsoids_have_their_axes(table: xr.Dataset) -> None:
    row = table.sel(instance=3)
    axes = [float(row[key]) for key in ("axis_major", "axis_middle", "axis_minor")]
    assert axes == pytest.approx([14.4, 14, 14], rel=0.05)
    assert float(row.sphericity) == pytest.approx(1, abs=0.03)
    long = table.sel(instance=7)
    assert float(long.axis_major) == pytest.approx(19.2, rel=0.05)
    assert float(long.sphericity) < 0.97


def test_similarity_is_the_mean_over_voxels_of_the_finest_map(
    run: RunStore, table: xr.Dataset, labels: np.ndarray
) -> None:
    fine = np.asarray(run.read(layout.similarity("a", 2))).astype(float)
    whole = fine.repeat(2, 0).repeat(2, 1).repeat(2, 2)[: labels.shape[0], : labels.shape[1], : labels.shape[2]]
    for i in (1, 2, 3, 4, 5, 7):
        values = whole[labels == i]
        assert float(table.mean_similarity.sel(instance=i)) == pytest.approx(np.nanmean(values))
        assert float(table.similarity_evaluated.sel(instance=i)) == pytest.approx(np.isfinite(values).mean())
    assert table.attrs["similarity_ratio"] == 2
    assert table.pick_similarity.values == pytest.approx(0.9 - np.arange(8) / 100)
    assert table.prompted.values.tolist() == [True] + [False] * 7


def test_neighbours_and_the_membrane_as_by_a_transform_of_the_whole(
    table: xr.Dataset, labels: np.ndarray, sheet: np.ndarray
) -> None:
    to_sheet = ndimage.distance_transform_edt(~sheet, sampling=NM)
    centres = {i: np.argwhere(labels == i).mean(0) * NM for i in range(1, 9) if (labels == i).any()}
    for i, centre in centres.items():
        others = ndimage.distance_transform_edt((labels == 0) | (labels == i), sampling=NM)
        row = table.sel(instance=i)
        assert float(row.neighbour_surface_distance) == pytest.approx(others[labels == i].min())
        nearest = min(np.linalg.norm(centre - other) for j, other in centres.items() if j != i)
        assert float(row.neighbour_distance) == pytest.approx(nearest)
        assert float(row.distance_to_m) == pytest.approx(to_sheet[labels == i].min())
    assert float(table.neighbour_surface_distance.sel(instance=1)) == pytest.approx(0.8)  # they touch along x
    off = np.argwhere(sheet) * NM - centres[5]
    assert float(table.centre_distance_to_m.sel(instance=5)) == pytest.approx(np.linalg.norm(off, axis=1).min())


def test_a_mask_may_be_a_file_or_any_array(run: RunStore, table: xr.Dataset, sheet: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "sheet.mrc"
    mrcfile.new(path, sheet.astype(np.float32)).close()
    lazy = dask.array.from_array(sheet.astype(np.uint8), chunks=(16, 16, 32))
    turned = xr.DataArray(np.where(sheet, 1.0, np.nan).transpose(2, 0, 1), dims=("x", "z", "y"), name="turned")
    found = analysis.instance_table(
        run.url, "a", surface_neighbours=False,
        distance_to={"file": path, "numpy": sheet, "dask": lazy, "xarray": turned, "label": "m_semantic"},
    )  # fmt: skip
    for key in ("file", "numpy", "dask", "xarray", "label"):
        assert found[f"distance_to_{key}"].values == pytest.approx(table.distance_to_m.values, nan_ok=True)
    assert "neighbour_surface_distance" not in found
    alone = analysis.instance_table(run.url, "a", distance_to=[turned, str(path), lazy], surface_neighbours=False)
    assert {"distance_to_turned", "centre_distance_to_sheet", "distance_to_mask"} <= set(alone.data_vars)
    empty = analysis.instance_table(run.url, "a", distance_to=np.zeros_like(sheet), surface_neighbours=False)
    assert np.isnan(empty.distance_to_mask).all()


def test_long_instances_are_cut_to_pieces_and_nothing_changes(
    run: RunStore, table: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "LONG", 7)
    monkeypatch.setattr(distances, "LONG", 5)
    xr.testing.assert_identical(analysis.instance_table(run.url, "a", distance_to="m"), table)


def test_whole_masks_are_those_that_were_segmented(run: RunStore) -> None:
    found = analysis.instance_table(run.url, "a", masks="whole")
    sizes = run.read(f"{layout.picks('a')}/size")
    assert found.voxels.values.tolist() == sizes.tolist()
    assert found.neighbour_surface_distance.values[[0, 1, 2, 5]].tolist() == [0, 0, 0, 0]  # they share voxels
    assert found.attrs["masks"] == "whole"
    picks = run.read(f"{layout.picks('a')}/y")
    assert found.y.values == pytest.approx(picks)


def test_units_and_meanings_and_a_flat_frame(table: xr.Dataset) -> None:
    frame = table.to_dataframe()
    assert len(frame) == 8
    assert frame.index.name == "instance"
    assert table.volume.attrs["units"] == "nm^3"
    assert all(variable.attrs["long_name"] for variable in table.data_vars.values())
    assert frame["touches_border"].dtype == bool
    assert frame["voxels"].dtype == np.int64
    assert frame["score"].is_monotonic_decreasing


def elsewhere(graph: Any, keys: Any, **_: Any) -> Any:
    """A scheduler that sends tasks through pickle, as one with other processes does."""
    return dask.get(cloudpickle.loads(cloudpickle.dumps(graph)), keys)


@pytest.mark.parametrize("scheduler", ["sync", elsewhere])
def test_any_dask_scheduler_gives_the_same(run: RunStore, table: xr.Dataset, scheduler: Any) -> None:
    with dask.config.set(scheduler=scheduler):
        again = analysis.instance_table(run.url, "a", distance_to="m")
    xr.testing.assert_identical(again, table)


def test_no_read_is_larger_than_a_block_or_an_instance(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "CACHED_BLOCK", (8, 16, 16))
    monkeypatch.setattr(volumes.Cached.__init__, "__defaults__", ((8, 16, 16), 1 << 17))
    seen: list[int] = []
    read = volumes.RunVolume.read

    def spy(self: volumes.RunVolume, box: geometry.Box) -> Any:
        seen.append(math.prod(b - a for a, b in box))
        return read(self, box)

    monkeypatch.setattr(volumes.RunVolume, "read", spy)
    with dask.config.set(scheduler="sync"):
        found = analysis.instance_table(run.url, "a")
    boxes = np.concatenate([run.read(f"instances/a/group0000{g}/box") for g in (0, 1)])
    largest = int(np.prod(boxes[:, 3:] - boxes[:, :3], axis=1).max())
    assert max(seen) <= max(largest, 8 * 16 * 16)
    assert int(found.voxels.sum()) == np.count_nonzero(run.read(layout.labels("a")))


def test_a_run_that_found_nothing_has_an_empty_table(make_store: Any, paint: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path / "run.zarr")
    paint(store, "a", [])
    found = analysis.instance_table(store.url, distance_to=np.ones((40, 70, 90)))
    assert dict(found.sizes) == {"instance": 0}
    assert "distance_to_mask" in found
    assert found.to_dataframe().empty


def test_what_does_not_fit_is_one_line(run: RunStore, make_store: Any, paint: Any, tmp_path: Path) -> None:
    for given, words in [
        ("nothing", "neither labels of .* nor a file"),
        ("a", "the instances themselves"),
        ("a_semantic", "the instances themselves"),
        (np.zeros((3, 3)), "expected a query's name, a file or an array"),
        (np.zeros((3, 3, 3)), r"shape \(3, 3, 3\), the tomogram has \(40, 70, 90\)"),
        (7, "expected a query's name, a file or an array"),
        (["m", "m"], "given twice"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            analysis.instance_table(run.url, "a", distance_to=given)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no results called 'b'; there are: a, m"):
        analysis.instance_table(run.url, "b")
    with pytest.raises(InputError, match="say which results"):
        analysis.instance_table(run.url)
    with pytest.raises(InputError, match="expected 'painted' or 'whole'"):
        analysis.instance_table(run.url, "a", masks="other")  # type: ignore[arg-type]
    store = make_store(tmp_path / "run.zarr")
    paint(store, "a", [np.ones((40, 70, 90), bool)])
    marks.begin(store, "x", fingerprint="f", settings={}, count=1)
    store.delete(layout.marks("label/a"))
    with pytest.raises(StoreError, match="labels of 'a' are not finished"):
        analysis.instance_table(store.url)
    alone = analysis.instance_table(store.url, masks="whole").isel(instance=0)
    assert math.isnan(alone.neighbour_distance)
    assert math.isnan(alone.mean_similarity)
    assert bool(alone.touches_border)
