"""Densities, profiles and pair statistics, each against what is counted by hand or known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dask
import mrcfile
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask.base import is_dask_collection

from cryosam_dask import analysis, geometry
from cryosam_dask.analysis import regions as module
from cryosam_dask.errors import InputError
from cryosam_dask.store import layout, picks
from cryosam_dask.store.run_store import RunStore

VOXEL_UM3 = 1.0 * 1.4 * 0.8 * 1e-9


def centres(run: RunStore, name: str = "a") -> np.ndarray:
    return np.rint(picks.read(run, name)[["z", "y", "x"]].to_numpy()).astype(int)


def test_the_whole_tomogram(run: RunStore) -> None:
    found = analysis.density(run.url, name="a").sel(region="all")
    labels = run.read(layout.labels("a"))
    assert found.number == 8
    assert float(found.region_volume) == pytest.approx(labels.size * VOXEL_UM3)
    assert float(found.number_density) == pytest.approx(8 / (labels.size * VOXEL_UM3))
    assert float(found.number_density_error) == pytest.approx(math.sqrt(8) / (labels.size * VOXEL_UM3))
    assert float(found.volume_fraction) == pytest.approx((labels > 0).mean())
    assert float(found.occupied_volume) == pytest.approx((labels > 0).sum() * VOXEL_UM3)


@pytest.mark.parametrize("margin", [0.0, 3.0, 4.3])
def test_slabs_share_the_tomogram_out(run: RunStore, margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", (8, 32, 32))
    parts = analysis.slabs(run.url, "y", 20)
    assert len(parts) == 5
    assert next(iter(parts)) == "y 0-19.6 nm"
    found = analysis.density(run.url, parts, name="a", margin=margin)
    whole = analysis.density(run.url, name="a", margin=margin)
    for key in ("number", "region_volume", "occupied_volume"):
        assert float(found[key].sum()) == pytest.approx(float(whole[key].sum()))
    inner = [
        slice(math.ceil(margin / s), n - math.ceil(margin / s)) for s, n in zip((1, 1.4, 0.8), run.shape, strict=True)
    ]
    labels = run.read(layout.labels("a"))[tuple(inner)]
    assert float(whole.volume_fraction[0]) == pytest.approx((labels > 0).mean())
    held = np.all([(c >= s.start) & (c < s.stop) for c, s in zip(centres(run).T, inner, strict=True)], axis=0)
    assert int(whole.number[0]) == held.sum()


def test_regions_by_labels(run: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", (16, 32, 64))
    regions = np.zeros(run.shape, np.int32)
    regions[:20], regions[25:, :, 40:] = 3, 70000
    labels, places = run.read(layout.labels("a")), centres(run)
    found = analysis.density(run.url, regions, name="a")
    assert found.region.values.tolist() == [3, 70000]
    for number in (3, 70000):
        row = found.sel(region=number)
        assert float(row.region_volume) == pytest.approx((regions == number).sum() * VOXEL_UM3)
        assert float(row.volume_fraction) == pytest.approx((labels[regions == number] > 0).mean())
        assert int(row.number) == (regions[tuple(places.T)] == number).sum()
    path = tmp_path / "regions.mrc"
    mrcfile.new(path, np.where(regions == 70000, 2, regions).astype(np.float32)).close()
    again = analysis.density(run.url, path, name="a")
    assert again.number.values.tolist() == found.number.values[::-1].tolist()
    monkeypatch.setattr(module, "_COUNTED", 10)
    assert analysis.density(run.url, regions, name="a").equals(found)
    sheet = analysis.density(run.url, "m", name="a")
    assert sheet.region.values.tolist() == [1]
    for wrong, shown in ((regions * 0.7, "2.1"), (np.where(regions == 3, np.inf, 1.0), "inf")):
        with pytest.raises(InputError, match=f"expected whole numbers, one for each region, found {shown}"):
            analysis.density(run.url, wrong, name="a")


def test_regions_that_do_not_fit(run: RunStore) -> None:
    for box, words in [
        (((0, 41), (0, 70), (0, 90)), "not inside the tomogram"),
        (((5, 5), (0, 70), (0, 90)), "not inside the tomogram"),
        (((0, 4), (0, 70)), r"expected \(\(z0, z1\)"),
        (((0, 4.5), (0, 70), (0, 90)), r"expected \(\(z0, z1\)"),
        ("nonsense", r"expected \(\(z0, z1\)"),
    ]:
        with pytest.raises(InputError, match=words):
            analysis.density(run.url, {"one": box}, name="a")
    with pytest.raises(InputError, match="nothing is left"):
        analysis.density(run.url, name="a", margin=20)
    for margin in (-1, math.nan):
        with pytest.raises(InputError, match="from 0 on"):
            analysis.density(run.url, name="a", margin=margin)
    with pytest.raises(InputError, match="axis 'w'"):
        analysis.slabs(run.url, "w")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="thickness"):
        analysis.slabs(run.url, "z", 0)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_similarity_along_an_axis(run: RunStore, axis: Any) -> None:
    values = np.asarray(run.read(layout.similarity("a", 2)), float)
    found = analysis.similarity_profile(run.url, "a", axis, ratio=2, quantiles=(0.25, 0.5))
    assert all(is_dask_collection(found[key]) for key in ("mean", "quantiles", "evaluated"))
    made = found.compute()
    planes = np.moveaxis(values, "zyx".index(axis), 0).reshape(made.sizes[axis], -1)
    assert made["mean"].values == pytest.approx(np.nanmean(planes, axis=1))
    assert made.quantiles.sel(quantile=0.5).values == pytest.approx(np.nanmedian(planes, axis=1))
    assert made.evaluated.values == pytest.approx(np.isfinite(planes).mean(1))
    at = "zyx".index(axis)
    assert float(made[axis][1]) == pytest.approx(2.5 * (10, 14, 8)[at] + (-50, 0, 300)[at])


def test_the_coarsest_ratio_is_the_default_and_planes_without_values_are_nan(make_store: Any, tmp_path: Path) -> None:
    from_here = make_store(tmp_path / "r.zarr")
    for ratio in (4, 8):
        values = np.ones(geometry.cell_grid(from_here.shape, ratio), np.float32)
        values[1] = np.nan
        array = from_here.new_array(layout.similarity("q", ratio), shape=values.shape, dtype="f4", chunks=(2, 4, 4),
                                    dims=("z", "y", "x"))  # fmt: skip
        array[...] = values
    from_here.group(layout.query("q"))
    found = analysis.similarity_profile(from_here.url).compute()
    assert found.attrs["ratio"] == 8
    assert math.isnan(found["mean"][1])
    assert np.isnan(found.quantiles.values[:, 1]).all()
    assert found.evaluated.values[:3].tolist() == [1, 0, 1]
    for wrong, words in [
        ({"axis": "t"}, "expected z, y or x"),
        ({"ratio": 3}, "at ratio 3; there are: 4, 8"),
        ({"quantiles": (2,)}, "from 0 to 1"),
        ({"name": "p"}, "no query 'p'; there are: q"),
    ]:
        with pytest.raises(InputError, match=words):
            analysis.similarity_profile(from_here.url, **wrong)


def put_picks(store: RunStore, name: str, places: np.ndarray) -> None:
    columns = {c: np.zeros(len(places)) for c in picks.COLUMNS} | dict(zip("zyx", places.T.copy(), strict=True))
    picks.write(store, name, pd.DataFrame(columns), {})


def test_pairs_of_random_places_are_as_frequent_as_by_chance(make_store: Any, tmp_path: Path) -> None:
    """Also beyond the thickness of a thin tomogram, and where voxels are no cubes."""
    store = make_store(tmp_path / "r.zarr", shape=(40, 400, 500))
    rng = np.random.default_rng(0)
    put_picks(store, "a", rng.uniform(-0.5, np.array(store.shape) - 0.5, (4000, 3)))
    put_picks(store, "b", rng.uniform(-0.5, np.array(store.shape) - 0.5, (1000, 3)))
    found = analysis.pair_correlation(store.url, "a", longest=120, bins=12)
    assert found.g.values[1:] == pytest.approx(1, abs=0.05)
    assert abs(float((found.g[1:] - 1).mean())) < 0.01
    cross = analysis.pair_correlation(store.url, "a", other="b", longest=120, bins=12)
    assert cross.g.values[1:] == pytest.approx(1, abs=0.1)
    part = analysis.pair_correlation(store.url, "a", longest=60, bins=6, box=((0, 40), (100, 300), (0, 250)))
    assert part.g.values[1:] == pytest.approx(1, abs=0.15)


def test_pairs_are_counted_once_each(make_store: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path / "r.zarr", voxel=(10, 10, 10))
    places = np.random.default_rng(1).uniform(0, 39, (60, 3))
    put_picks(store, "a", places)
    found = analysis.pair_correlation(store.url, longest=30, bins=10)
    apart = np.linalg.norm(places[:, None] - places, axis=-1)[np.triu_indices(60, 1)]
    assert found.pairs.values.tolist() == np.histogram(apart, np.linspace(0, 30, 11))[0].tolist()
    assert found.distance.values[:2].tolist() == [1.5, 4.5]
    # all pairs of points in a box are expected somewhere
    far = analysis.pair_correlation(store.url, longest=150, bins=300)
    assert float(far.expected.sum()) == pytest.approx(60 * 59 / 2, rel=0.01)
    assert int(far.pairs.sum()) == 60 * 59 // 2
    xr.testing.assert_equal(analysis.pair_correlation(store.url, other="a", longest=30, bins=10), found)
    put_picks(store, "one", places[:1])
    for arguments, words in [
        ({"name": "one"}, "1 picks in the window make no pair"),
        ({"name": "a", "bins": 2.5}, "in 2.5 bins"),
        ({"name": "a", "box": ((0, 4), (0, 9, 3), (0, 9))}, r"box: expected \(\(z0, z1\)"),
        ({"name": "a", "longest": 0}, "expected a length above 0"),
        ({"name": "a", "bins": 0}, "expected a length above 0"),
        ({"name": "a", "box": ((0, 99), (0, 9), (0, 9))}, "inside the tomogram"),
    ]:
        with pytest.raises(InputError, match=words):
            analysis.pair_correlation(store.url, **arguments)


def test_nothing_is_read_until_a_profile_is_computed(run: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        analysis.similarity_profile(run.url, "a")
