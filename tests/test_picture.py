"""The picture shows what it says where it says, and reads three slices only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.picture import slices_picture
from cryosam_dask.types import Pick

SHAPE = (20, 30, 50)
MAGENTA = (1.0, 0x4F / 255, 0xD8 / 255)


class Spy:
    """An array that notes how it is read."""

    def __init__(self, data: NDArray[Any]) -> None:
        self.data, self.shape, self.reads = data, data.shape, []

    def __getitem__(self, key: Any) -> NDArray[Any]:
        self.reads.append(key)
        return np.asarray(self.data[key])


@pytest.fixture
def tomogram() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def read(path: Path) -> NDArray[np.float32]:
    from matplotlib.image import imread

    return np.asarray(imread(path), dtype=np.float32)[..., :3]


def test_only_three_slices_are_read(tomogram: NDArray[np.float32], tmp_path: Path) -> None:
    volume, labels = Spy(tomogram), Spy(np.zeros(SHAPE, np.int32))
    slices_picture(volume, labels, [], tmp_path / "p.png", prompt=(4, 9, 33))
    for spy in (volume, labels):
        assert [sorted(map(str, key)).count("slice(None, None, None)") for key in spy.reads] == [2, 2, 2]
        assert {tuple(k for k in key if isinstance(k, int)) for key in spy.reads} == {(4,), (9,), (33,)}


def test_zarr_arrays_are_taken(tomogram: NDArray[np.float32], tmp_path: Path) -> None:
    import zarr

    volume = zarr.create_array(store={}, data=tomogram, chunks=(8, 8, 8))
    from_zarr = slices_picture(volume, None, [], tmp_path / "a.png")
    from_numpy = slices_picture(tomogram, None, [], tmp_path / "b.png")
    assert from_zarr.read_bytes() == from_numpy.read_bytes()


def test_the_prompt_stands_at_its_place_in_every_plane(tomogram: NDArray[np.float32], tmp_path: Path) -> None:
    z, y, x = 5, 20, 12
    image = read(slices_picture(tomogram, None, [], tmp_path / "p.png", prompt=(z, y, x)))
    frames = _frames(image)
    expected = {"z": ((y + 0.5) / 30, (x + 0.5) / 50), "x": ((y + 0.5) / 30, (z + 0.5) / 20),
                "y": ((z + 0.5) / 20, (x + 0.5) / 50)}  # fmt: skip
    for name, (top, bottom, left, right) in frames.items():
        panel = image[top:bottom, left:right]
        rows, columns = np.nonzero(np.abs(panel - MAGENTA).max(axis=-1) < 0.05)
        assert rows.size
        place = (rows.min() + rows.max()) / 2 / (bottom - top), (columns.min() + columns.max()) / 2 / (right - left)
        np.testing.assert_allclose(place, expected[name], atol=0.015)


def _frames(image: NDArray[np.float32]) -> dict[str, tuple[int, int, int, int]]:
    """Pixel boxes (top, bottom, left, right) of the planes z, x, y, from the black frames that are drawn about them."""
    black = image.max(axis=-1) < 0.15
    across = np.flatnonzero(black.mean(axis=1) > 0.6 * 50 / 70 * 0.9)  # rows that are mostly frame
    tops = across[np.append(True, np.diff(across) > 3)]
    down = np.flatnonzero(black[tops[0] : tops[1]].mean(axis=0) > 0.9)
    sides = down[np.append(True, np.diff(down) > 3)]
    assert (len(tops), len(sides)) == (4, 4)
    return {
        "z": (tops[0], tops[1], sides[0], sides[1]),
        "x": (tops[0], tops[1], sides[2], sides[3]),
        "y": (tops[2], tops[3], sides[0], sides[1]),
    }


def test_masks_are_coloured_where_they_are(tomogram: NDArray[np.float32], tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.int32)
    labels[8:13, 3:9, 30:45] = 3
    image = read(slices_picture(tomogram, labels, [], tmp_path / "p.png"))
    top, bottom, left, right = _frames(image)["z"]
    panel = image[top + 4 : bottom - 4, left + 4 : right - 4]
    colourful = np.argwhere(np.ptp(panel, axis=-1) > 0.12) / panel.shape[:2]
    np.testing.assert_allclose(colourful.min(axis=0), (3 / 30, 30 / 50), atol=0.03)
    np.testing.assert_allclose(colourful.max(axis=0), (9 / 30, 45 / 50), atol=0.03)


def test_picks_far_from_the_slices_are_left_out(tomogram: NDArray[np.float32], tmp_path: Path) -> None:
    def frames_of(pick: Pick, name: str) -> list[NDArray[np.float32]]:
        image = read(slices_picture(tomogram, None, [pick], tmp_path / name, prompt=(10, 15, 25), near=3))
        return [image[top:bottom, left:right] for top, bottom, left, right in _frames(image).values()]

    far = frames_of(Pick(2, 3, 4, 0.5, 1), "far.png")
    away = frames_of(Pick(19, 29, 49, 0.5, 1), "away.png")
    near = frames_of(Pick(10, 3, 4, 0.5, 1), "near.png")
    assert all(np.array_equal(a, b) for a, b in zip(far, away, strict=True))
    assert [np.array_equal(a, b) for a, b in zip(far, near, strict=True)] == [False, True, True]


def test_truth_prompts_and_scale_bar_change_the_picture(tomogram: NDArray[np.float32], tmp_path: Path) -> None:
    picks = [Pick(10, 15, 25, 0.9, 1)]
    variants: list[dict[str, Any]] = [
        {}, {"truth": np.array([[10, 5, 5]])}, {"truth": np.zeros((0, 3))}, {"prompt": [(10, 15, 25), (10, 3, 3)]},
        {"voxel_size": 10.0}, {"title": "one"},
    ]  # fmt: skip
    pictures = [slices_picture(tomogram, None, picks, tmp_path / f"{k}.png", **v).read_bytes()
                for k, v in enumerate(variants)]  # fmt: skip
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("shape", [(3, 400, 30), (200, 20, 20), (40, 60, 500), (1, 64, 64)])
def test_odd_shapes_and_flat_volumes_are_drawn(shape: tuple[int, int, int], tmp_path: Path) -> None:
    path = slices_picture(np.zeros(shape, np.int8), np.ones(shape, np.uint16), np.zeros((0, 3)), tmp_path / "p.png",
                          voxel_size=7.84)  # fmt: skip
    height, width = read(path).shape[:2]
    assert 400 < max(height, width) < 2500


def test_bad_input_leaves_nothing_behind(tomogram: NDArray[np.float32], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": (25, 3, 3)}, "outside the tomogram"),
        ({"prompt": (1, 3)}, r"\(N, 3\)"),
        ({"truth": np.zeros((4, 2))}, r"truth of shape \(N, 3\)"),
        ({"labels": np.zeros((3, 3, 3), int)}, "labels of the tomogram's shape"),
        ({"tomogram": np.zeros((3, 3))}, r"expected a tomogram \(z, y, x\)"),
        ({"path": tmp_path / "missing" / "p.png"}, "can't write"),
    ]
    for changes, message in cases:
        arguments = {"tomogram": tomogram, "labels": None, "picks": [], "path": tmp_path / "p.png"} | changes
        with pytest.raises(InputError, match=message):
            slices_picture(**arguments)
    assert list(tmp_path.iterdir()) == []
