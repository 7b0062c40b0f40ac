"""What the viewer is given of a run: bytes that stand for the right densities, at the right places."""

from __future__ import annotations

import io
import math
import shutil
import threading
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from PIL import Image
from view_server_support import StandInSession, add_picks, add_similarity, ball, ingested, tomogram_of

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.kernels.instance import Instance
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.viewer import meshes, volumes
from cryosam_dask.viewer.blocks import Blocks, Kept, slab_half, slab_mean
from cryosam_dask.viewer.library import Library
from cryosam_dask.viewer.status import GoneError, NotThereError, NotYetError

SHAPE = (37, 62, 290)
VOXEL = (12.0, 10.0, 8.0)
CENTRES = [(20, 20, 20), (18, 44, 124)]


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def made(values: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of odd size with anisotropic voxels, two levels, and two picks of balls."""
    folder = tmp_path_factory.mktemp("view")
    with mrcfile.new(folder / "t.mrc", values) as file:
        file.voxel_size = VOXEL[::-1]
    add_picks(ingested(folder / "t.mrc", folder / "r.zarr"), "ball", CENTRES)
    return folder / "r.zarr"


@pytest.fixture
def store(made: Path, tmp_path: Path) -> RunStore:
    return RunStore.open(shutil.copytree(made, tmp_path / "r.zarr"), "r+")


@pytest.fixture
def session(store: RunStore) -> StandInSession:
    return StandInSession(store)


@pytest.fixture
def library(session: StandInSession) -> Library:
    return Library(session, session.snapshot)


def read(library: Library, volume: str, scale: str, chunk: str, dtype: str = "u1") -> np.ndarray:
    """A chunk as an array z, y, x."""
    (x0, x1), (y0, y1), (z0, z1) = (map(int, side.split("-")) for side in chunk.split("_"))
    return np.frombuffer(library.chunk(volume, scale, chunk), dtype).reshape(z1 - z0, y1 - y0, x1 - x0)


def every_chunk(scale: dict, chunk: list[int]) -> list[str]:
    """The names of a scale's chunks of one of its sizes."""
    start, size = scale["voxel_offset"], scale["size"]
    sides = [
        [f"{a}-{min(a + c, o + n)}" for a in range(o, o + n, c)] for o, n, c in zip(start, size, chunk, strict=True)
    ]
    return [f"{x}_{y}_{z}" for x in sides[0] for y in sides[1] for z in sides[2]]


def whole(library: Library, volume: str, scale: dict, chunk: list[int], dtype: str = "u1") -> np.ndarray:
    """A scale z, y, x as the viewer puts it together from its chunks."""
    out = np.zeros(scale["size"][::-1], dtype)
    for name in every_chunk(scale, chunk):
        (x0, x1), (y0, y1), (z0, z1) = (map(int, side.split("-")) for side in name.split("_"))
        x, y, z = scale["voxel_offset"]
        out[z0 - z : z1 - z, y0 - y : y1 - y, x0 - x : x1 - x] = read(library, volume, scale["key"], name, dtype)
    return out


# The tomogram ---------------------------------------------------------------------------------------------------------


def test_bytes_stand_for_the_densities_on_all_levels_whatever_chunks_are_asked_for(
    library: Library, session: StandInSession, store: RunStore
) -> None:
    low, high = session.state["tomogram"]["range"]
    info = library.info("tomogram")
    assert info["type"] == "image"
    assert info["data_type"] == "uint8"
    assert len(info["scales"]) == layout.level_count(SHAPE) == 2
    for level, scale in enumerate(info["scales"]):
        expected = store.read(layout.tomogram(level))
        assert scale["size"] == list(expected.shape[::-1])
        assert scale["resolution"] == pytest.approx([v / 10 * 2**level for v in VOXEL[::-1]])
        assert scale["voxel_offset"] == [0, 0, 0]
        for chunk in scale["chunk_sizes"]:
            density = low + whole(library, "tomogram", scale, chunk) / 255 * (high - low)
            np.testing.assert_allclose(density, expected, atol=0.51 * (high - low) / 255)


def test_densities_beyond_the_range_are_its_ends(store: RunStore) -> None:
    blocks = Blocks(store, (-1.0, 1.0), "v", Kept())
    np.testing.assert_array_equal(blocks.bytes_of(np.array([-9.0, -1.0, 0.0, 1.0, 9.0])), [0, 0, 128, 255, 255])


def test_a_slab_is_the_mean_of_its_slices_and_of_fewer_at_the_ends(
    library: Library, session: StandInSession, values: np.ndarray
) -> None:
    low, high = session.state["tomogram"]["range"]
    scale = library.info("slab-3")["scales"][0]
    density = low + whole(library, "slab-3", scale, scale["chunk_sizes"][0]) / 255 * (high - low)
    expected = [values[max(0, z - 3) : z + 4].mean(axis=0) for z in range(SHAPE[0])]
    np.testing.assert_allclose(density, expected, atol=1.01 * (high - low) / 255)


def test_a_slab_is_as_thick_on_every_level() -> None:
    for half in range(1, 21):
        for level in range(5):
            thickness = (2 * slab_half(half, level) + 1) << level
            assert abs(thickness - (2 * half + 1)) <= 1 << level or thickness == 1 << level
    assert [slab_half(5, level) for level in range(4)] == [5, 2, 1, 0]


def test_a_slab_on_a_level_averages_its_slices(store: RunStore) -> None:
    blocks = Blocks(store, (-6.0, 6.0), "v", Kept())
    box = ((0, 8), (0, 31), (0, 64))
    level = blocks.read(1, ((0, 11), *box[1:])).astype(float)
    expected = [level[max(0, z - 2) : z + 3].mean(axis=0) for z in range(8)]
    assert np.abs(slab_mean(blocks, 1, box, 5) - np.array(expected)).max() <= 0.5


def test_jpeg_is_smaller_and_nearly_the_same(library: Library) -> None:
    chunk = "0-128_0-62_0-8"
    raw = read(library, "slab-2", "0", chunk)
    packed = library.chunk("slab-2-jpeg-v1", "0", chunk)
    image = np.asarray(Image.open(io.BytesIO(packed))).reshape(raw.shape)
    assert library.info("slab-2-jpeg-v1")["scales"][0]["encoding"] == "jpeg"
    assert len(packed) < raw.size / 2.5  # of noise; what is seen in tomograms is smoother
    assert np.abs(image.astype(int) - raw).mean() < 6


@pytest.mark.parametrize(
    "chunk",
    ["1-129_0-62_0-8", "0-128_0-62_0-16", "0-128_0-64_0-8", "256-384_0-62_0-8", "0-290_0-62_0-37", "0-0_0-0_0-0", "a",
     "0-128_0-62_40-37", "-1-128_0-62_0-8", "0-128_0-62_0-8/../..", "99999999999-9_0-1_0-1"],
)  # fmt: skip
def test_nothing_but_whole_chunks_can_be_asked_for(library: Library, chunk: str) -> None:
    with pytest.raises(InputError, match="chunk"):
        library.chunk("tomogram", "0", chunk)


@pytest.mark.parametrize(
    "volume",
    ["tomogram-v2", "slab-0", "slab-21", "slab-2-v2", "nothing", "", "labels-ball-p2", "labels-none-p1",
     "similarity-ball-s1", "preview-x", "labels-../..-p1", "tomogram/..", "labels-ball"],
)  # fmt: skip
def test_other_volumes_and_other_versions_are_not_there(library: Library, volume: str) -> None:
    with pytest.raises(NotThereError):
        library.info(volume)
    with pytest.raises(NotThereError):
        library.chunk(volume, "0", "0-128_0-62_0-8")


def test_neighbouring_chunks_are_read_from_the_disk_once(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, reads = Blocks(store, (-6.0, 6.0), "v", Kept()), []
    array = store.array(layout.tomogram(0))
    taken = type(array).__getitem__

    def counting(self: object, part: object) -> object:
        reads.append(part)
        time.sleep(0.01)
        return taken(self, part)

    monkeypatch.setattr(type(array), "__getitem__", counting)
    boxes = [((z, z + 8), (0, 62), (0, 128)) for z in range(0, 32, 8)]
    threads = [threading.Thread(target=blocks.read, args=(0, box)) for box in boxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1


def test_what_is_kept_is_bounded() -> None:
    kept = Kept(limit=1000)
    for i in range(20):
        kept.put(i, np.zeros(300, np.uint8))
    assert [i for i in range(20) if kept.get(i) is not None] == [17, 18, 19]
    kept.put(19, np.zeros(900, np.uint8))
    assert [i for i in range(20) if kept.get(i) is not None] == [19]


def test_a_range_that_changes_changes_the_bytes(library: Library, session: StandInSession) -> None:
    before = read(library, "tomogram", "0", "0-128_0-62_0-8")
    low, high = session.state["tomogram"]["range"]
    session.change(tomogram={**session.state["tomogram"], "range": [2 * low, 2 * high], "version": "2"})
    after = read(library, "tomogram-v2", "0", "0-128_0-62_0-8")
    assert after.std() == pytest.approx(before.std() / 2, rel=0.05)


# Faults ---------------------------------------------------------------------------------------------------------------


def chunk_file(store: RunStore) -> Path:
    return Path(store.url) / layout.tomogram(0) / "c" / "0" / "0" / "0"


def test_before_the_ingest_has_ended_missing_chunks_are_on_their_way(
    library: Library, session: StandInSession, store: RunStore
) -> None:
    content = chunk_file(store).read_bytes()
    chunk_file(store).unlink()
    session.change(run={**session.state["run"], "ingested": False})
    with pytest.raises(NotYetError):
        library.chunk("tomogram", "0", "0-128_0-62_0-8")
    chunk_file(store).write_bytes(content)
    assert read(library, "tomogram", "0", "0-128_0-62_0-8").any()


def test_damage_is_told_and_other_chunks_go_on(library: Library, store: RunStore) -> None:
    chunk_file(store).write_bytes(b"damaged")
    with pytest.raises(StoreError, match="chunk 0/0/0 of scale0/tomogram is damaged"):
        library.chunk("tomogram", "0", "0-128_0-62_0-8")
    assert read(library, "tomogram", "0", "128-256_0-62_0-8").any()


def test_a_run_that_was_deleted_is_told(library: Library, store: RunStore) -> None:
    library.info("tomogram")
    RunStore.remove(store.url)
    with pytest.raises(GoneError, match="deleted or moved"):
        library.chunk("tomogram", "0", "0-128_0-62_0-8")


def test_without_a_run_nothing_is_there_yet() -> None:
    session = StandInSession(None)
    library = Library(session, session.snapshot)
    with pytest.raises(NotYetError):
        library.info("tomogram")


# Similarity -----------------------------------------------------------------------------------------------------------


def test_similarity_is_at_the_place_of_its_cells(library: Library, store: RunStore) -> None:
    grid = tuple(-(-n // 4) for n in SHAPE)
    cells = np.random.default_rng(1).uniform(-0.2, 1.1, grid).astype(np.float32)
    add_similarity(store, "ball", 4, cells)
    (scale,) = library.info("similarity-ball-s1")["scales"]
    assert scale["size"] == list(grid[::-1])
    assert scale["resolution"] == pytest.approx([v / 10 * 4 for v in VOXEL[::-1]])
    assert scale["voxel_offset"] == [0, 0, 0]
    shown = whole(library, "similarity-ball-s1", scale, scale["chunk_sizes"][0])
    np.testing.assert_allclose(shown / 255, np.clip(cells, 0, 1), atol=0.5 / 255 + 1e-6)


def test_where_the_fine_map_was_not_evaluated_the_coarse_one_is_shown(
    library: Library, session: StandInSession, store: RunStore
) -> None:
    fine = np.full([-(-n // 4) for n in SHAPE], np.nan, np.float32)
    fine[2, 3, 5] = 0.8
    coarse = np.full([-(-n // 16) for n in SHAPE], np.nan, np.float32)
    coarse[0, 0, 1] = coarse[-1, -1, -1] = 0.4
    add_similarity(store, "ball", 4, fine)
    add_similarity(store, "ball", 16, coarse)
    add_similarity(store, "ball", 2, np.ones([-(-n // 2) for n in SHAPE]))  # of an earlier search
    session.change(kinds=[{"name": "ball", "similarity": {"version": "s1", "ratio": 4}}])
    scale = library.info("similarity-ball-s1")["scales"][0]
    shown = whole(library, "similarity-ball-s1", scale, scale["chunk_sizes"][2])
    assert shown[2, 3, 5] == 204
    assert (shown[0:4, 0:4, 4:8] == np.where(np.isnan(fine[0:4, 0:4, 4:8]), 102, 204)).all()
    assert shown[-1, -1, -1] == 102
    assert np.count_nonzero(shown) == 64 + math.prod(
        n - 4 * (m - 1) for n, m in zip(fine.shape, coarse.shape, strict=True)
    )


def test_a_peak_of_a_large_map_is_seen_from_afar(tmp_path: Path) -> None:
    about = {"shape": [64, 64, 2400], "voxel_size": [10, 10, 10], "origin": [0, 0, 0]}
    store = RunStore.create(tmp_path / "wide.zarr", about)
    cells = np.zeros((16, 16, 600), np.float32)
    cells[5, 6, 401] = 1.0
    add_similarity(store, "ball", 4, cells)
    volume = volumes.Similarity(store, "ball")
    assert [scale.key for scale in volume.scales] == ["1", "2", "4"]
    coarse = volume.read(volume.scales[2], ((0, 4), (0, 4), (0, 128)))
    assert np.argwhere(coarse).tolist() == [[1, 1, 100]]


# Instances ------------------------------------------------------------------------------------------------------------


def test_labels_are_those_of_the_run_on_all_levels(library: Library, store: RunStore) -> None:
    info = library.info("labels-ball-p1")
    assert (info["type"], info["data_type"], info["mesh"]) == ("segmentation", "uint32", "mesh")
    for level, scale in enumerate(info["scales"]):
        shown = whole(library, "labels-ball-p1", scale, scale["chunk_sizes"][1], "<u4")
        np.testing.assert_array_equal(shown, store.read(layout.labels("ball", level)))
    assert set(np.unique(shown)) == {0, 1, 2}


def test_instances_are_shown_while_others_are_segmented(
    library: Library, session: StandInSession, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = [whole(library, "labels-ball-p1", s, s["chunk_sizes"][1], "<u4") for s in scales_of(library)]
    monkeypatch.setattr(marks, "done", lambda *_: np.array([True, False]))
    session.change(kinds=[{"name": "ball", "picks": {"version": "a.1", "complete": False}}])
    for scale, expected in zip(scales_of(library, "a.1"), complete, strict=True):
        for chunk in scale["chunk_sizes"]:
            np.testing.assert_array_equal(whole(library, "labels-ball-a.1", scale, chunk, "<u4"), expected)
    assert len(library.mesh("labels-ball-a.1", 2)) > 1000
    assert library.picture("ball", "a.1", 1, 64).startswith(b"\x89PNG")
    # more came meanwhile: what the page still shows goes on to be there, until other instances take its place
    session.change(kinds=[{"name": "ball", "picks": {"version": "a.2", "complete": False}}])
    assert library.mesh("labels-ball-a.1", 2)
    session.change(kinds=[{"name": "ball", "picks": {"version": "b", "complete": True}}])
    with pytest.raises(NotThereError):
        library.mesh("labels-ball-a.1", 2)


def scales_of(library: Library, version: str = "p1") -> list[dict]:
    return library.info(f"labels-ball-{version}")["scales"]


def test_the_mask_of_a_click_is_a_volume_of_its_box(library: Library, session: StandInSession) -> None:
    mask, box = ball((12, 30, 41))
    session.previews["7.1"] = Instance(0, box, mask, 0.9, {})
    (scale,) = library.info("preview-7.1")["scales"]
    assert scale["voxel_offset"] == [35, 24, 6]
    assert scale["resolution"] == pytest.approx([0.8, 1.0, 1.2])
    shown = whole(library, "preview-7.1", scale, scale["chunk_sizes"][0], "<u4")
    np.testing.assert_array_equal(shown, mask)
    with pytest.raises(NotThereError):
        library.mesh("preview-7.1", 2)
    assert len(library.mesh("preview-7.1", 1)) > 1000


def surface(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of a fragment in the viewer's format."""
    count = int(np.frombuffer(content[:4], "<u4")[0])
    corners = np.frombuffer(content[4 : 4 + 12 * count], "<f4").reshape(-1, 3)
    return corners.astype(float), np.frombuffer(content[4 + 12 * count :], "<u4").reshape(-1, 3).astype(int)


def volume_of(corners: np.ndarray, faces: np.ndarray) -> float:
    """Signed volume: positive for faces that look outwards."""
    a, b, c = (corners[faces[:, i]] for i in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def test_meshes_lie_around_their_voxels(library: Library) -> None:
    """The viewer's voxel i covers [i, i + 1), so the middle of a ball around voxel c is at c + 0.5 voxels."""
    nm = np.array(VOXEL[::-1]) / 10
    for label, centre in enumerate(CENTRES, 1):
        corners, faces = surface(library.mesh("labels-ball-p1", label))
        middle = (corners.min(0) + corners.max(0)) / 2
        np.testing.assert_allclose(middle, (np.array(centre[::-1]) + 0.5) * nm, atol=1e-3)
        np.testing.assert_allclose(corners.max(0) - corners.min(0), 13 * nm, rtol=1e-4)
        assert volume_of(corners, faces) == pytest.approx(ball(centre)[0].sum() * nm.prod(), rel=0.05)


def test_a_mask_that_is_large_is_drawn_in_coarser_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, box = ball((40, 50, 61), 20)
    bounds = ((box[0], box[3]), (box[1], box[4]), (box[2], box[5]))
    fine, _ = surface(meshes.mesh_of(mask, bounds, (1.2, 1.0, 0.8)))
    monkeypatch.setattr(meshes, "MOST_VOXELS", 20_000)
    coarse, faces = surface(meshes.mesh_of(mask, bounds, (1.2, 1.0, 0.8)))
    assert len(coarse) < len(fine) / 1.8
    np.testing.assert_allclose(coarse.mean(0), fine.mean(0), atol=0.3)
    assert volume_of(coarse, faces) == pytest.approx(mask.sum() * 0.96, rel=0.25)


def test_close_views_show_the_density_and_the_outline(library: Library, values: np.ndarray) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(library.picture("ball", "p1", 2, 96))))
    assert pixels.shape == (96, 288, 3)
    outlined = (pixels != pixels[..., :1]).any(-1)
    for panel in range(3):
        rows, columns = np.nonzero(outlined[:, 96 * panel : 96 * (panel + 1)])
        assert abs(rows.mean() - 47.5) < 2
        assert abs(columns.mean() - 47.5) < 2
    grey = pixels[..., 0][~outlined]
    assert 20 < grey.std() < 90
    with pytest.raises(InputError, match="size"):
        library.picture("ball", "p1", 2, 5000)
    with pytest.raises(NotThereError):
        library.picture("ball", "p1", 3, 96)


def test_a_close_view_at_the_border_is_black_beyond_it(library: Library, session: StandInSession) -> None:
    from cryosam_dask.viewer import gallery

    mask = np.ones((5, 40, 40), bool)
    blocks = library._blocks()
    pixels = np.asarray(Image.open(io.BytesIO(gallery.view(blocks, mask, ((0, 5), (0, 40), (0, 40)), 64))))
    assert not pixels[:8, 64:128].any()  # above the first slice
    assert pixels[:, :64].any()


# A large tomogram -----------------------------------------------------------------------------------------------------


def test_a_tomogram_of_16_gigavoxels_is_opened_at_once(tmp_path: Path) -> None:
    """Only what is asked for is read: 4000 × 4000 × 1000 voxels, of which a few chunks are there."""
    shape = (1000, 4000, 4000)
    about = {"shape": list(shape), "voxel_size": [10, 10, 10], "origin": [0, 0, 0]}
    store = RunStore.create(tmp_path / "large.zarr", {**about, "statistics": {"mean": 0.0, "std": 1.0}})
    for level in range(layout.level_count(shape)):
        array = store.new_array(
            layout.tomogram(level),
            shape=layout.level_shape(shape, level),
            dtype="f4",
            chunks=layout.level_chunks(level),
            dims=("z", "y", "x"),
        )
    array[:16, :128] = np.random.default_rng(0).normal(size=(16, 128, 250))
    session = StandInSession(RunStore.open(store.url))
    session.state["tomogram"] = tomogram_of(store)
    library = Library(session, session.snapshot)
    begun = time.perf_counter()
    scales = library.info("tomogram-v1")["scales"]
    assert scales[-1]["size"] == [250, 250, 63]
    assert read(library, "slab-5-v1", scales[-1]["key"], "0-128_0-128_0-8").std() > 10
    assert time.perf_counter() - begun < 2.0  # 0.1 s where nothing else runs
