"""Exports, evaluation and descriptions, at the edges: nothing found, half a run, formats, files that don't fit."""

from __future__ import annotations

import json
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest

from cryosam_dask import outputs
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.io.points.files import read_points
from cryosam_dask.stages import label
from cryosam_dask.store import layout, marks, picks
from cryosam_dask.store.run_store import RunStore

SHAPE = (33, 20, 24)
PLACES = np.array([[5.0, 6.25, 7.0], [20.5, 10.0, 12.0], [30.0, 3.0, 20.0]])


def table(places: np.ndarray) -> pd.DataFrame:
    n = len(places)
    values = {c: np.zeros(n) for c in picks.COLUMNS} | dict(zip("zyx", places.reshape(-1, 3).T.copy(), strict=True))
    out = pd.DataFrame(values).astype(dict.fromkeys(("instance", "size", "prompted", "group", "member"), np.int64))
    return out.assign(score=np.linspace(0.9, 0.5, n), instance=np.arange(1, n + 1))


def segmented(store: RunStore, name: str, places: np.ndarray) -> np.ndarray:
    """As if `name` had been segmented: picks, and a small cube around each as labels, which are given back."""
    picks.write(store, name, table(places), {"segmented": len(places), "kept": len(places)})
    label.prepare(store, name)
    values = np.zeros(SHAPE, np.uint32)
    for number, place in reversed(list(enumerate(places, 1))):
        low = place.round().astype(int)
        values[tuple(slice(max(a - 1, 0), a + 2) for a in low)] = number
    store.array(layout.labels(name))[...] = values
    store.array(layout.labels(layout.semantic_name(name)))[...] = values > 0
    marks.begin(store, label.stage_name(name), fingerprint="f", settings={}, count=2)
    for index in range(2):
        marks.mark(store, label.stage_name(name), index)
    return values


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.create(
        tmp_path / "run.zarr",
        {
            "version": "9.9",
            "input": {"path": "/data/TS_01.mrc"},
            "shape": list(SHAPE),
            "voxel_size": [8.0, 8.0, 8.0],
            "origin": [0.0, 80.0, -16.0],
        },
    )


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    path = tmp_path / "truth.csv"
    pd.DataFrame(PLACES, columns=list("zyx")).to_csv(path, index=False)
    return path


def write_mrc(path: Path, values: np.ndarray) -> Path:
    with mrcfile.new(path, values) as file:
        file.voxel_size = 8
    return path


def test_a_run_that_found_nothing_can_be_evaluated_and_exported(store: RunStore, truth: Path, tmp_path: Path) -> None:
    segmented(store, "a", np.zeros((0, 3)))
    labels = write_mrc(tmp_path / "true.mrc", np.pad(np.ones((2, 2, 2), np.int16), [(0, n - 2) for n in SHAPE]))
    figures = outputs.evaluate(store.url, truth, 5, truth_labels=labels)
    assert (figures["precision"], figures["recall"], figures["f1"]) == (0, 0, 0)
    assert (figures["false_negatives"], figures["found"], figures["truth"], figures["mean_iou"]) == (3, 0, 1, 0)
    json.dumps(figures, allow_nan=False)
    outputs.export(store.url, tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text() == "z,y,x,score,instance\n"
    outputs.export(store.url, tmp_path / "p.star")
    assert "_rlnCoordinateX" in (tmp_path / "p.star").read_text()
    outputs.export(store.url, tmp_path / "l.mrc")
    with mrcfile.open(tmp_path / "l.mrc") as file:
        assert file.data.shape == SHAPE
        assert not file.data.any()
    assert "a: 0 instances" in outputs_in_words(store)


def outputs_in_words(store: RunStore) -> str:
    store.group(layout.query("a")).attrs["settings"] = {"propagation": {"segmenter": "random-walker"}}
    return outputs.describe_in_words(outputs.describe(store.url))


def test_perfect_picks_and_labels_get_full_marks(store: RunStore, truth: Path, tmp_path: Path) -> None:
    values = segmented(store, "a", PLACES)
    labels = write_mrc(tmp_path / "true.mrc", values.astype(np.int16))
    figures = outputs.evaluate(store.url, truth, 0.1, truth_labels=labels)
    assert (figures["f1"], figures["average_precision"], figures["mean_iou"], figures["matched"]) == (1, 1, 1, 3)
    assert set(outputs.evaluate(store.url, truth, 0.1)) < set(figures)
    figures = outputs.evaluate(store.url, truth, 0.1, truth_labels=write_mrc(tmp_path / "f.mrc", values.astype("f4")))
    assert figures["mean_iou"] == 1


def test_true_labels_of_another_shape_are_refused(store: RunStore, truth: Path, tmp_path: Path) -> None:
    segmented(store, "a", PLACES)
    turned = write_mrc(tmp_path / "true.mrc", np.zeros(SHAPE[::-1], np.int16))
    with pytest.raises(InputError, match=r"true\.mrc: shape \(24, 20, 33\), the tomogram has \(33, 20, 24\)"):
        outputs.evaluate(store.url, truth, 5, truth_labels=turned)


@pytest.mark.parametrize("radius", [0, -1, float("nan")])
def test_a_radius_that_is_none_is_refused(store: RunStore, truth: Path, radius: float) -> None:
    segmented(store, "a", PLACES)
    with pytest.raises(InputError, match="radius: expected voxels above 0"):
        outputs.evaluate(store.url, truth, radius)


def test_labels_are_exported_as_they_are_with_their_frame(store: RunStore, tmp_path: Path) -> None:
    values = segmented(store, "a", PLACES)
    outputs.export(store.url, tmp_path / "l.mrc")
    outputs.export(store.url, tmp_path / "s.mrc", what="semantic")
    outputs.export(store.url, tmp_path / "l.rec")
    outputs.export(store.url, tmp_path / "labels", what="labels", format="mrc")
    for file, expected in (("l.mrc", values), ("s.mrc", values > 0), ("l.rec", values), ("labels", values)):
        with mrcfile.open(tmp_path / file) as found:
            assert (found.data == expected).all()
            assert float(found.voxel_size.z) == pytest.approx(8)
            assert [float(found.header.origin[a]) for a in "zyx"] == [0, 80, -16]
            assert int(found.header.dmax) == int(expected.max())


@pytest.mark.parametrize(
    ("file", "format"), [("p.csv", None), ("p.star", None), ("p.star", "relion4"), ("p.txt", "csv")]
)
def test_picks_come_back_from_the_file(store: RunStore, tmp_path: Path, file: str, format: str | None) -> None:
    segmented(store, "a", PLACES)
    outputs.export(store.url, tmp_path / file, format=format)
    again = read_points(tmp_path / file, format=format)
    assert again[["z", "y", "x"]].to_numpy() == pytest.approx(PLACES, abs=1e-5)


def test_relion5_is_centred_ångström_and_names_the_tomogram(store: RunStore, tmp_path: Path) -> None:
    segmented(store, "a", PLACES)
    outputs.export(store.url, tmp_path / "p.star", format="relion5")
    text = (tmp_path / "p.star").read_text()
    assert "_rlnCenteredCoordinateXAngst" in text
    assert "TS_01" in text
    again = read_points(tmp_path / "p.star", voxel_size=8.0, shape=SHAPE)
    assert again[["z", "y", "x"]].to_numpy() == pytest.approx(PLACES, abs=1e-5)
    with pytest.raises(InputError):
        read_points(tmp_path / "p.star")


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("p.pdf", {}, r"the suffix '\.pdf' tells no format: picks go to \.csv, .* labels to \.mrc, .* meshes to \.glb"),
        ("p.pdf", {}, r"--format: csv, .*, relion5, .*, mrc, .*, ome-zarr-0\.4, glb, ply$"),
        ("p", {}, "the suffix '' tells no format"),
        ("p.csv", {"format": "pdf"}, "unknown format 'pdf'; expected .* parquet, mrc, .* ply"),
        ("l.mrc", {"what": "instances"}, "--what instances: expected picks, labels"),
        ("l.mrc", {"what": "kinds", "name": "a"}, "no kinds were told apart"),
        ("s3://bucket/l.zarr", {}, "an address; files are exported to a disk"),
        ("project", {"format": "copick", "what": "picks"}, "said with --contents"),
        ("p.csv", {"what": "labels"}, r"\.csv can't hold labels"),
        ("p.star", {"what": "semantic"}, r"\.star can't hold semantic"),
        ("l.mrc", {"what": "picks"}, r"\.mrc can't hold picks"),
        ("l.csv", {"what": "picks", "format": "mrc"}, "mrc can't hold picks"),
        ("p", {"what": "labels"}, "a file without a suffix can't hold labels"),
        ("p.csv", {"name": "b"}, "no results called 'b'; there are: a"),
    ],
)
def test_what_can_not_be_exported_is_said_and_nothing_is_written(
    store: RunStore, tmp_path: Path, file: str, options: dict[str, str], message: str
) -> None:
    segmented(store, "a", PLACES)
    with pytest.raises(InputError, match=message):
        outputs.export(store.url, file if "://" in file else tmp_path / file, **options)  # type: ignore[arg-type]
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


def test_the_tomogram_itself_is_not_replaced(store: RunStore, tmp_path: Path) -> None:
    segmented(store, "a", PLACES)
    source = write_mrc(tmp_path / "tomo.mrc", np.zeros(SHAPE, np.float32))
    store.root.attrs["cryosam"] = {**store.info, "input": {"path": str(source)}}
    before = source.read_bytes()
    (tmp_path / "link.mrc").symlink_to(source)
    for file, options in (("tomo.mrc", {}), ("link.mrc", {}), ("tomo.mrc", {"format": "csv", "what": "picks"})):
        with pytest.raises(InputError, match=r"mrc: the run's own tomogram, which no export replaces"):
            outputs.export(RunStore.open(store.url).url, tmp_path / file, **options)  # type: ignore[arg-type]
    assert source.read_bytes() == before
    for file in ("run.zarr", "run.zarr/labels", "run.zarr/mine/l.zarr"):
        with pytest.raises(InputError, match=r"run\.zarr.*: a run, which no export replaces or adds to"):
            outputs.export(store.url, tmp_path / file, what="labels", format="ome-zarr", overwrite=True)


def test_kinds_of_a_query_that_is_none_of_them(store: RunStore, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picks.write(store, name, table(PLACES), {"kinds": [] if name == "c" else ["a", "b"]})
    with pytest.raises(InputError, match="'c' was not told apart from others; there are: a, b"):
        outputs.export(store.url, tmp_path / "k.mrc", what="kinds", name="c")


def test_true_points_beyond_the_border_count(store: RunStore, tmp_path: Path) -> None:
    """A pick at the border finds the particle whose middle is outside; of far points the user is told more."""
    segmented(store, "a", np.vstack([PLACES, [[0.0, 10.0, 12.0]]]))
    path = tmp_path / "truth.csv"
    true = np.vstack([PLACES, [[-2.5, 10.0, 12.0]]])
    pd.DataFrame(true, columns=list("zyx")).to_csv(path, index=False)
    figures = outputs.evaluate(store.url, path, 3)
    assert (figures["precision"], figures["recall"]) == (1, 1)
    note = "true points outside of their tomogram, by up to 2 voxels, count as all others: 1 of 4 in run"
    assert figures["notes"] == [note]
    assert list(outputs.evaluate_runs(store.url, path, 3).dataset.notes) == [note]
    pd.DataFrame(PLACES, columns=list("zyx")).to_csv(path, index=False)
    assert "notes" not in outputs.evaluate(store.url, path, 3)
    turned = [[5.0, 19.0, 32.0], [20.0, 10.0, 31.0], [23.0, 3.0, 30.0]]
    pd.DataFrame(turned, columns=list("zyx")).to_csv(path, index=False)
    with pytest.raises(InputError, match=r"3 of 3 points are outside of run .*: are they in x,y,z order, or another"):
        outputs.evaluate(store.url, path, 3)


def test_a_folder_that_is_not_there_is_one_line(store: RunStore, tmp_path: Path) -> None:
    segmented(store, "a", PLACES)
    for file in ("p.csv", "l.mrc"):
        with pytest.raises(StoreError, match=f"none/{file}") as caught:
            outputs.export(store.url, tmp_path / "none" / file)
        assert "\n" not in str(caught.value)


def test_one_of_several_results_must_be_named(store: RunStore, truth: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="say which results with --name; there are: none yet"):
        outputs.export(store.url, tmp_path / "p.csv")
    segmented(store, "a", PLACES)
    segmented(store, "b", PLACES[:1])
    for call in (lambda: outputs.export(store.url, tmp_path / "p.csv"), lambda: outputs.evaluate(store.url, truth, 1)):
        with pytest.raises(InputError, match="say which results with --name; there are: a, b"):
            call()
    assert outputs.evaluate(store.url, truth, 1, name="b")["true_positives"] == 1
    outputs.export(store.url, tmp_path / "b.csv", name="b")
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 2


def test_labels_that_are_only_partly_painted_are_not_given_away(store: RunStore, truth: Path, tmp_path: Path) -> None:
    """A run that was interrupted after the picks were written, before the labels were."""
    values = segmented(store, "a", PLACES)
    marks.begin(store, label.stage_name("b"), fingerprint="f", settings={}, count=2)
    picks.write(store, "b", table(PLACES), {})
    label.prepare(store, "b")
    marks.mark(store, label.stage_name("b"), 0)
    for call in (
        lambda: outputs.export(store.url, tmp_path / "l.mrc", name="b"),
        lambda: outputs.export(store.url, tmp_path / "l.mrc", name="b", what="semantic"),
        lambda: outputs.evaluate(
            store.url, truth, 1, name="b", truth_labels=write_mrc(tmp_path / "t.mrc", values.astype("i2"))
        ),
    ):
        with pytest.raises(StoreError, match=r"labels of 'b' are not finished; .*cryosam segment"):
            call()
        (tmp_path / "t.mrc").unlink(missing_ok=True)
    picks.write(store, "c", table(PLACES), {})
    with pytest.raises(StoreError, match="labels of 'c' are not finished"):
        outputs.export(store.url, tmp_path / "l.mrc", name="c")
    assert not (tmp_path / "l.mrc").exists()
    outputs.export(store.url, tmp_path / "b.csv", name="b")


def test_a_run_that_has_only_begun_is_described(store: RunStore) -> None:
    marks.begin(store, "ingest", fingerprint="f", settings={}, count=3)
    marks.mark(store, "ingest", 1)
    described = outputs.describe(store.url)
    assert described["stages"] == {"ingest": {"done": 1, "units": 3}}
    assert described["queries"] == {}
    words = outputs.describe_in_words(described)
    assert "33 × 20 × 24 voxels" in words
    assert "ingest: 1 of 3 units" in words
    assert "features" not in words


def test_a_query_that_is_not_segmented_is_described_as_such(store: RunStore) -> None:
    assert "a: not segmented yet, segmenter random-walker" in outputs_in_words(store)
    store.group(layout.query("b"))
    described = outputs.describe(store.url)
    nothing = {"settings": None, "instances": None, "from": None, "negatives": [], "kinds": []}
    assert described["queries"]["b"] == nothing
    assert "b: not segmented yet, segmenter ?" in outputs.describe_in_words(described)
    json.dumps(described)
