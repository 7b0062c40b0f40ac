"""Segmenters that look at boxes of the tomogram: the built-in network, what units make of it, and whole runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cryosam_dask as cs
from cryosam_dask import geometry
from cryosam_dask.errors import InputError
from cryosam_dask.executors.base import process_name
from cryosam_dask.executors.dask import DaskExecutor
from cryosam_dask.executors.local import LocalWorkers
from cryosam_dask.kernels import descriptors, hypotheses
from cryosam_dask.kernels.descriptors import Places, Query
from cryosam_dask.kernels.hypotheses import Hypothesis
from cryosam_dask.kernels.peaks import likely_cut
from cryosam_dask.models import load_segmenter
from cryosam_dask.models.particle_heads import Heads
from cryosam_dask.models.particle_net import ParticleNet, to_cells, to_voxels
from cryosam_dask.models.particle_trunk import folded
from cryosam_dask.models.registry import preferred_precision
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.pipeline.integrity import METADATA
from cryosam_dask.report.scores import scores, unsure
from cryosam_dask.simulate import SimulatedTomogram, SimulationSettings, Species, simulate
from cryosam_dask.stages import propose, query_file, recognize, segment_volume, sight, structure, volume_pieces
from cryosam_dask.stages.boxes import DEVIATIONS, Boxes, levels_of
from cryosam_dask.stages.click import Looker
from cryosam_dask.stages.seen_masks import Seen
from cryosam_dask.store import instances as stored
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore

SHAPE = (48, 96, 112)


@pytest.fixture(scope="module")
def simulated() -> SimulatedTomogram:
    species = (Species("ribosome", "ribosome", 25.0, 7, 1.2), Species("small", "globule", 8.0, 12))
    return simulate(SimulationSettings(shape=SHAPE, seed=5, species=species, membranes=0, snr=1.0))


@pytest.fixture(scope="module")
def run(simulated: SimulatedTomogram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole job with the built-in models, in this process. Tests must not change it."""
    out = tmp_path_factory.mktemp("run") / "run.zarr"
    points = simulated.centres("ribosome")[:1]
    cs.run(simulated.tomogram, points, out, name="ribosome", models="builtin", workers=0, voxel_size=10.0)
    return out


def test_one_click_finds_all_of_a_kind_and_their_masks(simulated: SimulatedTomogram, run: Path) -> None:
    picks = cs.open_run(run)["picks/ribosome"].to_dataset().to_dataframe()
    centres = simulated.centres("ribosome")
    distance = np.linalg.norm(picks[["z", "y", "x"]].to_numpy()[:, None] - centres, axis=2)
    assert len(picks) == len(centres)
    assert (distance.min(axis=0) < 5).all()
    labels = np.asarray(cs.open_run(run)["labels/ribosome/scale0"]["labels"])
    truth = simulated.labels_of("ribosome")
    for particle in simulated.of("ribosome"):
        own = labels[truth == particle.instance]
        number = np.bincount(own[own > 0]).argmax()
        both = (own == number).sum()
        assert both / ((labels == number).sum() + len(own) - both) > 0.5


def test_two_workers_give_the_same_labels(simulated: SimulatedTomogram, run: Path, tmp_path: Path) -> None:
    points = simulated.centres("ribosome")[:1]
    cs.run(simulated.tomogram, points, tmp_path / "r.zarr", name="ribosome", models="builtin", workers=2, voxel_size=10)
    for path in (layout.labels("ribosome"), layout.pick_column("ribosome", "score")):
        ours, theirs = (RunStore.open(str(url)).read(path) for url in (run, tmp_path / "r.zarr"))
        np.testing.assert_array_equal(ours, theirs)


def test_dark_particles_are_found_too(simulated: SimulatedTomogram, run: Path, tmp_path: Path) -> None:
    points = simulated.centres("ribosome")[:1]
    out = tmp_path / "r.zarr"
    cs.run(-simulated.tomogram, points, out, name="ribosome", models="builtin", workers=0, voxel_size=10.0)
    np.testing.assert_array_equal(
        *(RunStore.open(str(url)).read(layout.pick_column("ribosome", "size")) for url in (run, out))
    )
    assert RunStore.open(str(out)).array(layout.query_array("ribosome", "descriptors")).attrs["bright"] is False


def test_a_query_of_another_tomogram_finds_nothing_where_the_kind_is_absent(run: Path, tmp_path: Path) -> None:
    rods = Species("rod", "rod", 14.0, 10, 1.0, seed=3)
    other = simulate(SimulationSettings(shape=SHAPE, seed=9, species=(rods,), membranes=0, snr=1.0))
    out = tmp_path / "r.zarr"
    driver = cs.run(other.tomogram, None, out, query=run, name="ribosome", workers=0, voxel_size=10.0)
    assert len(cs.open_run(out)["picks/ribosome"].to_dataset()["score"]) <= 1
    assert len([note for note in driver.notes if f"ribosome: {propose.UNSURE}" == note]) == 1
    assert unsure(RunStore.open(out), "ribosome") == propose.UNSURE


def test_a_query_in_a_file_finds_what_it_finds_in_its_own_tomogram(
    simulated: SimulatedTomogram, run: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "q.json", tmp_path / "r.zarr"
    cs.export(run, file, what="query", name="ribosome")
    loan = query_file.read(file)
    cs.run(simulated.tomogram, None, out, query=loan, workers=0, voxel_size=10.0)
    scores = [cs.open_run(url)["picks/ribosome"].to_dataset()["score"].to_numpy() for url in (run, out)]
    assert len(scores[1]) == len(scores[0])
    unlike = [[0.0] * 64]
    for params in (
        {"seen": loan.params["seen"] | {"level": 9}},
        {"seen": loan.params["seen"] | {"quality": []}},
        {"seen": {"level": 0}},
        {"negative_descriptors": [row[:-1] for row in unlike]},
    ):
        query_file.write(replace(loan, params=loan.params | params), file)
        with pytest.raises(InputError, match=r"descriptors|quality"):
            query_file.read(file)


def test_a_second_query_takes_over_the_tiles_and_the_masks_of_the_first(
    simulated: SimulatedTomogram, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the click, which is no recognized place, has a look of its own."""
    out = tmp_path / "r.zarr"
    shutil.copytree(run, out)
    looked_at: list[int] = []
    looks = segment_volume.looks

    def counted(model: Any, info: Any, boxes: Boxes, points: np.ndarray) -> Any:
        looked_at.append(len(points))
        return looks(model, info, boxes, points)

    monkeypatch.setattr(segment_volume, "looks", counted)
    points = simulated.centres("ribosome")[1:2]
    driver = cs.run(simulated.tomogram, points, out, name="again", models="builtin", workers=0, voxel_size=10.0)
    assert not driver.timings.get("recognize/again")
    assert driver.timings["match/again/r4"]
    assert looked_at == [1]
    store = RunStore.open(str(out))
    for array in recognize.ARRAYS:
        ours, theirs = (store.read(layout.look_array(name, 0, array)) for name in ("again", "ribosome"))
        np.testing.assert_array_equal(ours, theirs)
    assert len(store.read(layout.pick_column("again", "score"))) == 7


def test_a_mask_that_was_recognized_is_the_one_that_a_look_of_its_own_gives(run: Path) -> None:
    store = RunStore.open(str(run))
    settings = settings_for("builtin").propagation.model_copy(update={"precision": "float32"})
    view = sight.Sight.of_query(store, "ribosome")
    points = store.read(layout.look_array("ribosome", 0, "centres"))
    kept = stored.read(store, layout.group(layout.seen_masks("ribosome"), 0))
    large = [i for i in range(len(kept.prompt)) if kept.size[i] > 2000][:2]
    for i in large:
        place = tuple(points[kept.prompt[i]])
        (own,) = segment_volume.instances_of(store, settings, "cpu", [place], view)
        assert own is not None
        both = [np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)]
        for whole, box, mask in zip(both, (kept.box[i], own.box), (kept.mask(i), own.mask), strict=True):
            whole[geometry.box_slices(stored.as_box(np.asarray(box)))] = mask
        assert (both[0] & both[1]).sum() / (both[0] | both[1]).sum() > 0.95
        assert abs(own.score - kept.quality[i]) < 0.05


def test_a_mask_near_where_a_look_ends_is_not_kept() -> None:
    seen = Seen(((0, 60), (20, 80), (40, 100)), (60, 200, 100))
    assert seen.holds(((0, 60), (26, 74), (46, 100)))
    assert not seen.holds(((0, 60), (25, 74), (46, 100)))
    assert not seen.holds(((0, 60), (26, 75), (46, 100)))


def test_a_point_lies_in_one_of_the_tiles() -> None:
    shape = (60, 300, 210)
    every = list(volume_pieces.tiles(shape, 16))
    assert len(every) == 4
    for point in ([0, 0, 0], [59.4, 299, 209], [20, 159.4, 111.6], [20, 159.6, 300]):
        tile = volume_pieces.tile_of(shape, 16, np.array(point, float))
        assert tile in every
        inside = np.clip(np.round(point), 0, np.array(shape) - 1)
        assert all(a <= p < b for p, (a, b) in zip(inside, tile, strict=True))


@pytest.mark.parametrize(("seen", "form"), [(1, "particle"), (2, "extended"), (4, "extended"), (5, "particle")])
def test_what_has_a_size_is_a_particle(
    seen: int, form: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dense particle in clear ice may look like a bead of gold."""
    shutil.copytree(run / "queries", tmp_path / "r.zarr" / "queries")
    shutil.copy(run / "zarr.json", tmp_path / "r.zarr" / "zarr.json")
    monkeypatch.setattr(sight, "class_of", lambda *_: seen)
    store = RunStore.open(tmp_path / "r.zarr", "r+")
    notes = structure.settle(store, "ribosome", settings_for("builtin").match, 1)
    assert store.group(layout.query("ribosome")).attrs[structure.STRUCTURE] == form
    assert [sight.WORDS[seen] in note for note in notes] == ([True] if form == "extended" else [])


def test_a_report_shows_the_probabilities_and_their_cut(run: Path) -> None:
    store = RunStore.open(run)
    settings = structure.effective(store, "ribosome", settings_for("builtin"))
    shown, cut = scores(store, "ribosome", settings), propose.read_cut(store, "ribosome")
    assert shown is not None
    assert cut is not None
    assert shown.what == "probability that they are of the kind"
    assert shown.reason == cut.reason
    assert f"{shown.kept} of {shown.candidates} places are of the kind with a probability of" in shown.reason
    assert shown.candidates > shown.kept >= shown.proposals == 6
    assert unsure(store, "ribosome") is None


def test_answers_fit_the_box_whatever_its_size() -> None:
    model = load_segmenter("particle-net")
    box = np.random.default_rng(0).normal(size=(21, 34, 47)).astype(np.float32)
    look = model.look(box)  # type: ignore[union-attr]
    points = np.array([[0, 0, 0], [20, 33, 46], [10.4, 17.0, 20.6]])
    answers = look.answer(points)
    assert answers.descriptor.shape == (3, 64)
    assert answers.classes.shape == (3, 6)
    np.testing.assert_allclose(answers.classes.sum(axis=1), 1, atol=1e-4)
    assert ((answers.middle >= 0) & (answers.middle < np.array(box.shape))).all()
    for low, mask in look.masks(points):
        assert (low >= 0).all()
        assert (low + mask.shape <= box.shape).all()
    assert look.answer(np.empty((0, 3))).descriptor.shape == (0, 64)
    assert look.likeness(answers.descriptor[0], answers.classes[0]).shape == box.shape


def test_voxels_and_cells_are_inverse() -> None:
    import torch

    voxels = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    torch.testing.assert_close(to_voxels(to_cells(voxels)), voxels)


def test_what_is_answered_where_it_is_asked_is_what_the_network_says_of_all() -> None:
    import torch

    net = ParticleNet(widths=(8, 8, 16, 16))
    generator = torch.Generator().manual_seed(0)
    for value in net.state_dict().values():  # normalization that does something
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.2 if value.ndim == 1 else value)
    box = torch.randn((1, 1, 16, 32, 32), generator=generator)
    with torch.inference_mode():
        whole = net.eval()(box)
        heads = Heads(folded(net), net.trunk(box), (8, 15, 14))
        cells = (torch.tensor([0, 7, 3]), torch.tensor([0, 14, 8]), torch.tensor([0, 13, 5]))
        near = {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(heads.features(cells), whole.features[0][:, *cells].T, **near)
        torch.testing.assert_close(heads.descriptors(cells), whole.descriptors[0][:, *cells].T, **near)
        centre = torch.sigmoid(whole.centre[0, 0, :8, :15, :14])
        torch.testing.assert_close(torch.from_numpy(heads.centre()), centre, **near)
        window = (slice(2, 6), slice(0, 9), slice(4, 14))
        masks = whole.masks[0, :, 4:12, 0:18, 8:28].permute(1, 2, 3, 0)
        torch.testing.assert_close(heads.masks(window, 1), masks, **near)
        torch.testing.assert_close(heads.masks(window, 2), masks[::2, ::2, ::2], **near)
        classes = torch.softmax(whole.classes[0], 0)
        torch.testing.assert_close(heads.all_classes(), classes[:, :, :30, :28], **near)
        torch.testing.assert_close(heads.classes_at(cells), classes[:, ::2, ::2, ::2][:, *cells].T, **near)
        query = whole.descriptors[0, :, 3, 3, 3]
        cosines = torch.einsum("czyx,c->zyx", whole.descriptors[0], query)[:8, :15, :14]
        torch.testing.assert_close(heads.cosines(query), cosines, **near)


def test_a_level_is_the_mean_of_the_finer_voxels_whether_it_is_stored_or_not(run: Path) -> None:
    store = RunStore.open(str(run))
    assert levels_of(store.shape) == range(2)
    fine = store.read(layout.tomogram()).astype(float)
    boxes = Boxes(store, 1)
    values = boxes.read(((2, 10), (3, 20), (0, 56)))
    means = fine[4:20, 6:40].reshape(8, 2, 17, 2, 56, 2).mean((1, 3, 5))
    np.testing.assert_allclose(np.corrcoef(values.ravel(), means.ravel())[0, 1], 1, atol=1e-6)
    whole = boxes.read(((0, 24), (0, 48), (0, 56)))
    assert abs(whole.mean()) < 0.05
    assert 0.8 < whole.std() < 1.2
    np.testing.assert_array_equal(Boxes(store, 1, bright=False).read(((2, 10), (3, 20), (0, 56))), -values)


def test_the_deviations_of_levels_are_taken_once_for_all_workers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore.open(str(run))
    written = store.info[DEVIATIONS]
    assert len(written) == 2
    monkeypatch.setattr(Boxes, "_sampled", lambda self: pytest.fail("a level's deviation is in the run"))
    assert [Boxes(store, level).deviation for level in levels_of(store.shape)] == written
    monkeypatch.undo()
    assert Boxes(store, 1)._sampled() == written[1]


def test_a_click_that_was_looked_at_is_not_looked_at_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.zarr"
    shutil.copytree(run, out)
    store = RunStore.open(str(out))
    z, y, x = store.read(layout.query_array("ribosome", "points"))[0].tolist()
    settings = settings_for("builtin").replace({"propagation.precision": preferred_precision("cpu")})
    looker = Looker(store, settings, "cpu")
    *_, mask = looker.masks((z, y, x), lambda: None)
    looker.close()
    monkeypatch.setattr(sight, "clicked", lambda *_: pytest.fail("it was looked at before"))
    monkeypatch.chdir(tmp_path)
    with DaskExecutor(LocalWorkers(2, "cpu")) as executor:
        driver = Driver("run.zarr", executor)
        driver.query("again", [[z, y, x]], settings)
        assert [timing.worker for timing in driver.timings["segment/queries/again"]] == [process_name()]
    there, again = (layout.group(layout.query(name), 0) for name in ("ribosome", "again"))
    arrays = [array for array in store.names(there) if array != METADATA]
    assert {sight.SCORES, sight.DESCRIPTORS, "bits", "box"} <= set(arrays)
    for array in arrays:
        np.testing.assert_array_equal(store.read(layout.member(again, array)), store.read(layout.member(there, array)))
    assert mask.instance is not None
    np.testing.assert_array_equal(mask.instance.mask, stored.read(store, again).mask(0))


def test_masks_and_points_of_a_level_go_back_to_voxels(run: Path) -> None:
    boxes = Boxes(RunStore.open(str(run)), 1)
    points = np.array([[3.0, 4.0, 5.0]])
    np.testing.assert_allclose(boxes.from_voxels(boxes.to_voxels(points)), points)
    mask = np.zeros((6, 6, 6), bool)
    mask[1:5, 1:5, 1:5] = True
    low, fine = boxes.mask_to_voxels(np.array([10, 20, 30]), mask)
    assert low.tolist() == [20, 40, 60]
    middle = np.argwhere(fine).mean(axis=0) + low
    np.testing.assert_allclose(middle, boxes.to_voxels(np.array([[12.5, 22.5, 32.5]]))[0], atol=0.01)
    assert 0.7 < fine.sum() / 8 / mask.sum() <= 1.0


def _seen(level: int, quality: float, diameter: float, kind: int = 1, bright: bool = True) -> Hypothesis:
    classes = [0.1] + [0.0] * 5
    classes[kind] = 0.9
    return Hypothesis(level, bright, quality, tuple(classes), diameter)


def test_the_clearest_hypothesis_is_chosen_and_rivals_are_doubts() -> None:
    clear = [_seen(0, 0.8, 12), _seen(1, 0.5, 14), _seen(0, 0.3, 9, bright=False)]
    assert hypotheses.best(clear) == 0
    assert hypotheses.doubts(clear, 0) == []
    assert "1" not in hypotheses.doubts([_seen(0, 0.3, 12)], 0)[0]
    assert hypotheses.doubts([_seen(0, 0.3, 12)], 0) == [hypotheses.BORDERLESS]
    larger = [_seen(0, 0.7, 12), _seen(1, 0.85, 14)]
    assert hypotheses.doubts(larger, 0) == ["a body of 2 times the diameter fits about as well"]
    assert hypotheses.best([_seen(0, 0.8, 60), _seen(1, 0.7, 20)]) == 1  # too large to be seen whole at level 0
    assert hypotheses.best([_seen(0, 0.8, 60, kind=5), _seen(1, 0.7, 20, kind=5)]) == 1  # gold has a size, too
    assert hypotheses.best([_seen(0, 0.8, 60, kind=2), _seen(1, 0.7, 20, kind=2)]) == 0  # a membrane has none


def test_the_contrast_is_that_in_which_more_is_clear() -> None:
    bright, dark = _seen(0, 0.5, 12), _seen(0, 0.6, 12, bright=False)
    weighed = hypotheses.weighed([replace(bright, clarity=5.0), replace(dark, clarity=1.5)])
    assert hypotheses.best([bright, dark]) == 1
    assert hypotheses.best(weighed) == 0


def _places(similar: list[float], size: float = 1000.0) -> Places:
    """Places whose descriptors have these similarities to the first unit vector, and are unlike each other."""
    n = len(similar)
    vectors = np.zeros((n, n + 1))
    vectors[:, 0] = similar
    vectors[np.arange(n), np.arange(n) + 1] = np.sqrt(1 - np.square(similar))
    centres = np.arange(n)[:, None] * np.array([40.0, 0, 0])
    return Places(centres, vectors, np.full(n, 0.6), np.full(n, 0.6), np.full(n, size))


def _first(n: int) -> Any:
    return np.eye(n + 1)[:1]


def _query(n: int, size: float = 1000.0, negatives: Any = None) -> Query:
    return Query(_first(n), 0.7, size, 10.0, np.empty((0, n + 1)) if negatives is None else negatives)


def test_similar_places_are_likely_and_others_are_not() -> None:
    places = _places([0.98, 0.97, 0.4, 0.1, 0.1, 0.1])
    likely = descriptors.probabilities(places, _query(6))
    assert (likely[:2] > 0.5).all()
    assert (likely[2:] < 0.5 * likely[1]).all()
    unsure = _places([0.6, 0.4, 0.1, 0.1, 0.1, 0.1])  # none of them joins
    other_size = descriptors.probabilities(unsure, _query(6, size=8000.0))
    assert (other_size < descriptors.probabilities(unsure, _query(6))).all()


def test_examples_that_join_bring_their_like_nearer() -> None:
    places = _places([0.95, 0.8, 0.1, 0.1, 0.1, 0.1])
    shared = places.descriptors.copy()
    shared[1, 2] = 0.0
    shared[1, 1] = np.sqrt(1 - 0.8**2)  # like the first place in what the click lacks
    near = Places(places.centres, shared, places.quality, places.centrality, places.sizes)
    assert descriptors.probabilities(near, _query(6))[1] > descriptors.probabilities(places, _query(6))[1]


def test_places_that_are_more_like_a_negative_are_rejected() -> None:
    places = _places([0.9, 0.9])
    likely = descriptors.probabilities(places, _query(2, negatives=places.descriptors[1:2]))
    assert likely[0] > 0
    assert likely[1] == 0


def test_the_cut_is_where_the_expected_f1_is_highest() -> None:
    clear = likely_cut(np.array([0.99] * 10 + [0.05] * 200))
    assert clear.kept == 10
    assert likely_cut(np.array([0.4, 0.38, 0.35])).kept == 3  # all of them together are worth it
    assert likely_cut(np.full(50, 0.2)).kept == 0
    assert likely_cut(np.empty(0)).kept == 0


def test_ranking_by_descriptors_needs_a_segmenter_that_gives_them() -> None:
    from cryosam_dask.errors import SettingsError

    with pytest.raises(SettingsError, match="descriptor"):
        settings_for("texture+random-walker", {"match.rank": "descriptor"})
