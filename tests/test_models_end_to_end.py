"""The whole job with the model classes that the paper uses, small and with random weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from scipy import ndimage
from small_sams import image_encoder, sam_of

import cryosam_dask as cs
from cryosam_dask import geometry, pipeline
from cryosam_dask.kernels.propagation import Propagation
from cryosam_dask.kernels.walkers import Walker
from cryosam_dask.models import registry, sam, vit
from cryosam_dask.pipeline import settings_for
from cryosam_dask.settings import Settings
from cryosam_dask.stages import embed, segment
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout, marks, picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES

ARCHITECTURE = "test_vit.r160_in1k"
PATCH, CHANNELS = 16, 64
CLICK = [20.0, 20.0, 20.0]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only lose by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small vision transformer, as its owner would save it."""
    torch.manual_seed(0)
    module = vit.build(ARCHITECTURE)
    path = tmp_path_factory.mktemp("weights") / "own.pth"
    torch.save(module.state_dict(), path)
    return path


def transformer(weights: Path, **changes: Any) -> Settings:
    values = {
        "match.tau_sim": -1.0, "match.ratios": [4], "match.count": 2, "match.center": True,
        "features.precision": "float32",
    }  # fmt: skip
    spec = f"timm:{ARCHITECTURE}={weights}+random-walker"
    return settings_for(spec, values | {k.replace("__", "."): v for k, v in changes.items()})


def normalised(tomogram: Path) -> np.ndarray:
    with mrcfile.open(tomogram) as file:
        values = file.data.astype(np.float64)
    return ((values - values.mean()) / values.std()).astype(np.float32)


def plain_tokens(weights: Path, slices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Tokens of (N, A, B) slices by torch and timm alone."""
    import timm

    module = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    module.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        images = torch.from_numpy(np.ascontiguousarray(slices))[:, None]
        images = torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False)
        tokens = module.forward_features(images.expand(-1, 3, -1, -1))[:, module.num_prefix_tokens :]
    return tokens.reshape(len(slices), size[0] // PATCH, size[1] // PATCH, CHANNELS).numpy()


def features_only(tomogram: Path, out: Path, settings: Settings) -> RunStore:
    from cryosam_dask.executors.serial import SerialExecutor

    driver = pipeline.Driver(out, SerialExecutor())
    driver.ingest(tomogram)
    driver.features(settings)
    return RunStore.open(out)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 × 10 × 12 voxels of noise: few slices."""
    path = tmp_path_factory.mktemp("small") / "small.mrc"
    with mrcfile.new(path, np.random.default_rng(1).normal(size=(4, 10, 12)).astype(np.float32)) as file:
        file.voxel_size = 10
    return path


@pytest.fixture(scope="module")
def finished(ball_tomogram: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    out = tmp_path_factory.mktemp("vit") / "run.zarr"
    cs.run(ball_tomogram, [CLICK], out, settings=transformer(weights), workers=0)
    return RunStore.open(out)


def test_a_transformer_and_the_random_walker_label_the_clicked_particle(finished: RunStore) -> None:
    table = picks.read(finished, "particle")
    assert 1 <= len(table) <= 3
    own = table[table["prompted"] == 1].iloc[0]
    assert np.linalg.norm(own[["z", "y", "x"]].to_numpy(float) - CLICK) < 3
    assert finished.read(layout.labels("particle"))[20, 20, 20] == own["instance"]
    assert finished.info["features"]["encoder"].startswith(f"timm:{ARCHITECTURE}=")


def test_feature_arrays_have_the_grids_of_their_slices(finished: RunStore) -> None:
    shape = finished.shape
    for ratio in (1, 4, 8, 16):
        for axis in AXES:
            rows, columns = (-(-n // PATCH) for n in geometry.plane_shape(shape, axis))
            slices = -(-shape[geometry.axis_index(axis)] // ratio)
            array = finished.array(layout.latents(ratio, axis))
            assert array.shape == (slices, rows, columns, CHANNELS)
            assert array.dtype == np.float16
            assert finished.array(layout.gram(ratio, axis)).shape == (slices, rows, columns, 4)
    assert finished.array(layout.dense(16)).shape == (3, 4, 6, 3 * CHANNELS)
    assert cs.FeatureVolume.open(finished.url).channels == 3 * CHANNELS


@pytest.mark.parametrize("axis", AXES)
def test_native_latents_are_those_of_the_normalised_slices(
    finished: RunStore, ball_tomogram: Path, weights: Path, axis: Any
) -> None:
    slices = geometry.to_view(normalised(ball_tomogram), axis)[[0, 7, 16, -1]]
    size = tuple(-(-n // PATCH) * PATCH for n in slices.shape[1:])
    expected = plain_tokens(weights, slices, size)  # type: ignore[arg-type]
    found = finished.read(layout.latents(1, axis)).astype(np.float32)[[0, 7, 16, -1]]
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.abs(found - expected).max() < 0.02 * expected.std()


@pytest.mark.parametrize("best", ["float32", "bfloat16"])
def test_precision_is_what_suits_the_device_and_then_stays(
    small: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: str
) -> None:
    from cryosam_dask.executors.serial import SerialExecutor

    settings = transformer(weights, features__precision="auto", features__dense_ratios=[])
    monkeypatch.setattr(SerialExecutor, "precision", best)
    store = features_only(small, tmp_path / "run.zarr", settings)
    assert store.array(layout.marks("features")).attrs["settings"]["precision"] == best  # type: ignore[call-overload,index]
    before = store.read(layout.latents(1, "z"))
    exact = features_only(small, tmp_path / "exact.zarr", settings.replace({"features.precision": "float32"}))
    assert np.array_equal(before, exact.read(layout.latents(1, "z"))) == (best == "float32")
    assert before.astype(float) == pytest.approx(exact.read(layout.latents(1, "z")).astype(float), abs=0.1)
    monkeypatch.setattr(SerialExecutor, "precision", "float16")
    again = features_only(small, tmp_path / "run.zarr", settings)
    assert again.array(layout.marks("features")).attrs["settings"]["precision"] == best  # type: ignore[call-overload,index]


def test_coarse_latents_are_means_over_slices(finished: RunStore) -> None:
    native = finished.read(layout.latents(1, "y")).astype(np.float32)
    for ratio in (4, 16):
        found = finished.read(layout.latents(ratio, "y")).astype(np.float32)
        assert found[0] == pytest.approx(native[:ratio].mean(0), abs=4e-3)
        assert found[-1] == pytest.approx(native[(len(found) - 1) * ratio :].mean(0), abs=4e-3)


def test_slice_size_sets_the_token_grid_of_every_view(small: Path, weights: Path, tmp_path: Path) -> None:
    settings = transformer(weights, features__slice_size=120, features__ratios=[4], features__dense_ratios=[])
    store = features_only(small, tmp_path / "run.zarr", settings)
    for axis in AXES:
        assert store.array(layout.latents(1, axis)).shape[1:] == (8, 8, CHANNELS)
    slices = normalised(small)[[3]]
    found = store.read(layout.latents(1, "z"))[3].astype(np.float32)
    expected = plain_tokens(weights, slices, (128, 128))[0]
    assert np.abs(found - expected).max() < 0.02 * expected.std()


def test_tiled_slices_give_the_same_grid_and_much_the_same_tokens(
    small: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 × 12 tokens in tiles of 8 with a halo of 3; what a tile sees is its own pixels and no more."""
    seen: list[tuple[int, ...]] = []
    encode = vit.TimmEncoder.encode_tensor

    def spy(self: Any, slices: np.ndarray) -> Any:
        seen.append(slices.shape[1:])
        return encode(self, slices)

    monkeypatch.setattr(vit.TimmEncoder, "encode_tensor", spy)
    common = {"features__slice_size": 192, "features__ratios": [4], "features__dense_ratios": []}
    tiled = transformer(weights, **common, features__tile=8, features__halo=3)
    store = features_only(small, tmp_path / "run.zarr", tiled)
    assert set(seen) == {(128, 128)}
    found = store.read(layout.latents(1, "z"))[2].astype(np.float32)
    assert found.shape == (12, 12, CHANNELS)
    whole = plain_tokens(weights, normalised(small)[[2]], (192, 192))[0]
    corner = plain_tokens_of_part(weights, normalised(small)[[2]], (192, 192), 128)
    assert np.abs(found[:5, :5] - corner[:5, :5]).max() < 0.02 * corner.std()
    cosine = (found * whole).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(whole, axis=-1)
    assert np.median(cosine) > 0.9


def plain_tokens_of_part(weights: Path, slices: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """Tokens of the upper left corner of resized slices, encoded on its own."""
    images = torch.nn.functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(slices))[:, None], size, mode="bilinear", align_corners=False
    )
    return plain_tokens(weights, images[:, 0, :side, :side].numpy(), (side, side))[0]


@pytest.mark.parametrize("count", ["auto", 1])
def test_proposals_by_similarity_are_cut_by_their_scores_or_by_number(
    finished: RunStore, ball_tomogram: Path, weights: Path, tmp_path: Path, count: Any
) -> None:
    import shutil

    out = tmp_path / "run.zarr"
    shutil.copytree(finished.url, out)
    settings = transformer(weights, match__count=count, match__rank="similarity", match__nms_radius=12)
    driver = cs.run(ball_tomogram, [CLICK], out, name="other", settings=settings, workers=0)
    store = RunStore.open(out)
    scores = store.read(f"{layout.proposals('other')}/scores")
    points = store.read(f"{layout.proposals('other')}/points")
    assert points[0].tolist() == CLICK
    assert (np.diff(scores[1:]) <= 0).all()
    distances = np.linalg.norm(points[1:, None] - points[None, 1:], axis=-1)[~np.eye(len(points) - 1, dtype=bool)]
    assert (distances >= 12).all()
    told = [note for note in driver.notes if note.startswith("other: K = ")]
    if count == "auto":
        assert len(told) == 1
        assert 1 <= len(points) - 1 <= int(told[0].removeprefix("other: K = ").partition(";")[0])
    else:
        assert told == []
        assert len(points) <= 1 + count


def test_two_workers_give_the_same_labels(
    finished: RunStore, ball_tomogram: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    cs.run(ball_tomogram, [CLICK], out, settings=transformer(weights), workers=2)
    store = RunStore.open(out)
    assert (store.read(layout.labels("particle")) == finished.read(layout.labels("particle"))).all()
    columns = ["z", "y", "x", "instance", "size"]
    assert picks.read(store, "particle")[columns].equals(picks.read(finished, "particle")[columns])
    assert store.read(layout.latents(1, "x")) == pytest.approx(finished.read(layout.latents(1, "x")), abs=4e-3)


def tiny_sam() -> Any:
    """A Sam with embeddings and logits of the published shapes, few pixels, next to no width, random weights."""
    from segment_anything import modeling

    torch.manual_seed(0)
    sizes = {"depth": 1, "embed_dim": 16, "mlp_ratio": 1, "num_heads": 1, "patch_size": 4, "out_chans": 256}
    encoder = image_encoder(img_size=256, global_attn_indexes=(), window_size=8, **sizes)
    return sam_of(modeling, encoder, 256, 64, 256, depth=1, mlp_dim=16, num_heads=2).eval()


SHAPE = (7, 12, 14)
MAX_AREA = 100


@pytest.fixture(scope="module")
def sam_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of texture + `sam-vitb`, whose weights are random, with the paper's plain rule, and what it did."""
    folder = tmp_path_factory.mktemp("sam")
    z, y, x = np.indices(SHAPE)
    values = np.random.default_rng(0).normal(size=SHAPE) + 5 * ((z - 3) ** 2 + (y - 6) ** 2 + (x - 5) ** 2 < 8)
    with mrcfile.new(folder / "t.mrc", values.astype(np.float32)) as file:
        file.voxel_size = 10
    segmenter = sam.SamSegmenter(tiny_sam(), "sam-vitb", "sam-vitb random")
    embedded: list[np.ndarray] = []
    visited: Counter[tuple[str, int]] = Counter()
    ended: dict[tuple[Any, ...], list[Walker]] = {}
    embed_one, step, instances = segmenter._embed_on_device, Propagation.step, Propagation.instances

    def embed_spy(plane: np.ndarray) -> torch.Tensor:
        embedded.append(plane)
        return embed_one(plane)

    def step_spy(self: Propagation, model: Any, axis: Any, plane: int, *rest: Any) -> None:
        visited[axis, plane] += 1
        step(self, model, axis, plane, *rest)

    def instances_spy(self: Propagation) -> Any:
        found = instances(self)
        for i, point in enumerate(self.points):
            ended.setdefault(point, [w for w in self.walkers if w.prompt == i])
        return found

    settings = settings_for(
        "texture+sam-vitb",
        {
            "propagation.max_area": MAX_AREA, "propagation.tau_iou": 0.2, "match.rank": "similarity",
            "match.count": 1, "match.tau_sim": -1.0, "features.thickness": 1,
        },
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenter, "_embed_on_device", embed_spy)
        patch.setattr(Propagation, "step", step_spy)
        patch.setattr(Propagation, "instances", instances_spy)
        patch.setattr(registry, "ensure_weights", lambda spec: None)
        for stage in (embed, segment):
            patch.setattr(stage, "get_segmenter", lambda *_: segmenter)
            patch.setattr(stage, "weights_identity", lambda spec: f"{spec} random")
        cs.run(folder / "t.mrc", [[3, 6, 5]], folder / "run.zarr", settings=settings, workers=0)
    store = RunStore.open(folder / "run.zarr")
    return {"store": store, "embedded": embedded, "visited": visited, "ended": ended, "settings": settings}


def test_sam_runs_by_the_papers_plain_rule(sam_run: dict[str, Any]) -> None:
    rules = sam_run["settings"].propagation
    assert (rules.rule, rules.merge) == ("plain", "union")
    reasons = {w.finished for walkers in sam_run["ended"].values() for w in walkers}
    assert reasons <= {"forked", "no candidate", "volume ends"}
    assert len(picks.read(sam_run["store"], "particle")) >= 1
    assert len(sam_run["visited"]) > 6


def test_each_plane_that_sam_visits_is_embedded_once_in_float16(sam_run: dict[str, Any]) -> None:
    store, visited = sam_run["store"], sam_run["visited"]
    assert len(sam_run["embedded"]) == len(visited)
    done = set(np.flatnonzero(marks.done(store, embed.NAME)).tolist())
    assert done == {embed.mark_of(store.shape, plane) for plane in visited}
    axis, index = max(visited)
    array = store.array(layout.embeddings(axis))
    assert (array.dtype, array.shape[1:], array.chunks) == (np.float16, (256, 64, 64), (1, 256, 64, 64))
    assert array[index].any()
    assert np.isfinite(array[index]).all()
    plane = store.read(layout.planes(axis), index)
    assert any(one.shape == plane.shape and (one == plane).all() for one in sam_run["embedded"])


def test_every_plane_of_a_walker_keeps_max_area_and_follows_the_one_before(sam_run: dict[str, Any]) -> None:
    from cryosam_dask.kernels.instance import iou

    walkers = [w for found in sam_run["ended"].values() for w in found]
    patches = [p for w in walkers for p in w.patches]
    assert len(patches) > 6
    assert all(0 < p.area < MAX_AREA for p in patches)
    for walker in walkers:
        assert [abs(p.plane - walker.patches[0].plane) for p in walker.patches] == list(range(len(walker.patches)))
        for one, two in zip(walker.patches, walker.patches[1:], strict=False):
            assert iou(one, two) > 0.2


def test_instances_are_the_connected_union_of_their_planes_and_inside_the_volume(sam_run: dict[str, Any]) -> None:
    store = sam_run["store"]
    found = stored.read(store, layout.group(layout.instances("particle"), 0))
    points = store.read(f"{layout.proposals('particle')}/points")
    assert len(found.prompt) >= 1
    for i, prompt in enumerate(found.prompt):
        expected = np.zeros(store.shape, bool)
        for walker in sam_run["ended"][tuple(points[prompt])]:
            for p in walker.patches:
                view = geometry.to_view(expected, walker.axis)
                view[p.plane, p.row : p.row + p.mask.shape[0], p.col : p.col + p.mask.shape[1]] |= p.mask
        parts, count = ndimage.label(expected)
        at = parts[tuple(points[prompt].round().astype(int))]
        largest = 1 + int(np.argmax([(parts == n).sum() for n in range(1, count + 1)]))
        expected = ndimage.binary_fill_holes(parts == (at or largest))
        box = geometry.box_slices(stored.as_box(found.box[i]))
        assert all(0 <= s.start < s.stop <= n for s, n in zip(box, store.shape, strict=True))
        whole = np.zeros(store.shape, bool)
        whole[box] = found.mask(i)
        assert (whole == expected).all()
        assert found.size[i] == expected.sum()
