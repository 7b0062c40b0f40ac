"""What the page says and holds, read without a browser; runs that are unfinished, damaged, or somebody else's."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import cryosam_dask as cs
from cryosam_dask.cli import app
from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.report import write_report
from cryosam_dask.stages import borrow, label, match, negative, project, query, rank, segment
from cryosam_dask.store import journal, layout, marks
from cryosam_dask.store.arrays import RunArray
from cryosam_dask.store.run_store import RunStore

MakeRun = Callable[..., RunStore]
VOID = {"meta", "link", "img", "br", "input", "hr"}


class Page(HTMLParser):
    """A page as a list of elements (tag, attributes) and its text, with what is wrong about it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.inside: dict[str, str] = {"style": "", "script": "", "h2": ""}
        self.wrong: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.wrong += [f"<{tag}> is not closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        here = self._open[-1] if self._open else ""
        if here in self.inside:
            self.inside[here] += data + ("\n" if here == "h2" else "")
        if here not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(path: Path) -> Page:
    """The page, after what every page must have: it is whole, closed to the outside, and can be read aloud."""
    page = Page(path.read_text(encoding="utf-8"))
    assert page.wrong == []
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href"):
            value = attributes.get(name, "data:") or ""
            assert value.startswith(("data:", "#")), (tag, value[:80])
            if value.startswith("#"):
                assert value[1:] in ids
        for name in ("aria-labelledby", "data-for", "data-copy"):
            assert attributes.get(name, ids[0]) in ids
    assert all("alt" in image for image in page.all("img"))
    assert all("scope" in header or "colspan" in header for header in page.all("th"))
    assert len(page.all("h1")) == 1
    policy = next(m["content"] or "" for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.inside[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
        assert len(page.all(kind)) == 1
    return page


def downloads(page: Page) -> dict[str, list[list[str]]]:
    """The tables that can be downloaded, by file name."""
    out = {}
    for link in page.all("a"):
        if (name := link.get("download")) is not None:
            data = base64.b64decode((link["href"] or "").partition(",")[2])
            text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
            out[name] = list(csv.reader(io.StringIO(text)))
    return out


def test_the_page_tells_the_run(make_run: MakeRun, tmp_path: Path) -> None:
    store = make_run(tmp_path / "run.zarr", names=("ball", "other"))
    unlike = {"points": [[20.0, 30.0, 40.0], [10.0, 9.0, 8.0]]}
    marks.begin(store, negative.stage_name("ball"), fingerprint="f", settings=unlike, count=1)
    marks.mark(store, negative.stage_name("ball"), 0)
    store.group(layout.picks("ball")).attrs["kinds"] = ["ball", "other"]
    write_report(store.url, tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert page.inside["h2"].split("\n")[:-1] == [
        "State of the run", "Methods", "Slices", "ball", "other", "Timings", "Run and settings",
    ]  # fmt: skip
    for words in (
        "The tomogram TS_01.mrc (40 × 64 × 90 voxels along z, y, x, with a voxel size of 13.48 Å) was segmented with "
        "cryosam_dask 9.9",
        f"dinov2-vits14, weights SHA-256 {'ab' * 32}",
        "exceeded 0.5 and a mask area below 1024 pixels; instances are their union",
        "The query “ball” was given by one point",
        "hierarchical matching on cells of 16, 8, 4 voxels and a threshold of 0.5",
        "(K = 512)",
        "8 instances of 10 segmented were kept, leaving out those more similar to what is not of the kind, and those",
        "Training-free CryoET tomogram segmentation",
        "Segment anything",
        "DINOv2: learning robust",
        "2 on what is not of its kind",
        "at one place (ball, other) the best was kept",
        "2 points on what it is not. Told apart from other.",
        "a note",
        "complete",
        "1 h 57 min",
        "4 min 10 s",
        "2.5 GB",
    ):
        assert words in page.text, words
    assert "Grady" not in page.text
    # its own three slices with masks, three views of the prompt, two maps a ratio with a scale, sheets; the gallery
    assert len(page.all("img")) == 2 * (6 + 3 + 6 + 1 + 1) + 30
    tables = downloads(page)
    assert set(tables) == {"ball_picks.csv", "other_picks.csv"}
    assert tables["ball_picks.csv"][0][:5] == ["z", "y", "x", "score", "instance"]
    assert len(tables["ball_picks.csv"]) == 9
    assert (tmp_path / "r.html").stat().st_size < 2_000_000


def test_one_query_of_several_can_be_chosen(make_run: MakeRun, tmp_path: Path) -> None:
    store = make_run(tmp_path / "run.zarr", names=("ball", "other"))
    write_report(store.url, tmp_path / "r.html", name="other")
    assert list(downloads(read(tmp_path / "r.html"))) == ["other_picks.csv"]
    with pytest.raises(InputError, match="no query called 'third'; there are: ball, other"):
        write_report(store.url, tmp_path / "s.html", name="third")
    assert not (tmp_path / "s.html").exists()


def test_a_real_run_of_the_built_in_models(ball_tomogram: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    cs.run(ball_tomogram, [(20, 20, 20)], out, name="ball", models="texture+random-walker", workers=0)
    (tmp_path / "truth.csv").write_text("z,y,x\n20,20,20\n18,44,24\n22,22,66\n14,46,70\n")
    write_report(out, tmp_path / "r.html", truth=tmp_path / "truth.csv")
    page = read(tmp_path / "r.html")
    for words in (
        "rotation-invariant texture features (texture, version",
        "Tokens were whitened",
        "Random walks for image segmentation",
        "ranked by the radial density profiles",
        "leaving out those more than 2 times larger or smaller than the prompted masks, and those with more than 80%",
        "Scores of the candidates",
        "Against the truth",
        "the equivalent radius of the prompted masks",
        "Masks of the proposals",
        "recall",
    ):
        assert words in page.text, words
    assert "can't be read" not in page.text
    assert "unfinished" not in page.text
    assert "SAM" not in page.text.replace("CryoSAM", "")


def test_attacks_stay_text(hostile_page: Path) -> None:
    page = read(hostile_page)
    assert page.text.count("<script>window.hit=1;alert(1)</script>") > 10
    assert "{{ 7*7 }}" in page.text
    assert len(page.all("script")) == 1


@pytest.mark.parametrize("gone", range(7))
def test_a_run_is_told_as_far_as_it_is(make_run: MakeRun, tmp_path: Path, gone: int) -> None:
    """What later stages make is taken away, stage by stage."""
    store = make_run(tmp_path / "run.zarr")
    later: list[Callable[[], Any]] = [
        lambda: marks.begin(store, "label/x", fingerprint="f", settings={}, count=3),
        lambda: store.delete(layout.labels_group("ball")),
        lambda: store.delete("picks"),
        lambda: store.delete("proposals"),
        lambda: store.delete("similarity/ball/r4/similarity/c"),
        lambda: store.delete("queries/ball/points"),
        lambda: (store.delete("queries"), store.delete("journal"), store.delete("scale0/tomogram/c/1")),
    ]
    for take in later[: gone + 1]:
        take()
    write_report(store.url, tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert "unfinished" in page.text
    assert "label/x: 0 of 3 units" in page.text
    assert ("8 instances of 10" in page.text) == (gone < 2)
    assert ("Scores of the candidates" in page.text) == (gone < 3)
    assert ("Not segmented yet." in page.text) == (2 <= gone < 6)
    assert ("There is no query yet." in page.text) == (gone == 6)
    assert ("scale0/tomogram" in page.text) == (gone == 6)  # the lost chunk, by name


def test_a_run_that_has_only_been_created(tmp_path: Path) -> None:
    about = {"shape": [5, 6, 7], "voxel_size": [8.0, 8.0, 8.0], "origin": [0, 0, 0]}
    RunStore.create(tmp_path / "run.zarr", about)
    write_report(tmp_path / "run.zarr", tmp_path / "r.html")
    assert "not begun" in read(tmp_path / "r.html").text


def damage_score(store: RunStore) -> None:
    next((Path(store.url) / "picks/ball/score/c").iterdir()).write_bytes(b"\xff" * 60)


def set_attributes(path: str, **values: Any) -> Callable[[RunStore], None]:
    return lambda store: store.group(path).attrs.update(values)


def huge_picks(store: RunStore) -> None:
    store.new_array("picks/ball/z", shape=(10**12,), dtype="f8", chunks=(10**6,), dims=("pick",))


def other_shape(path: str) -> Callable[[RunStore], None]:
    return lambda store: store.put(path, np.zeros((3, 3, 3), "f4"), ("z", "y", "x"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_score, "picks: "),
        (set_attributes("queries/ball", settings={"preset": 3}), "settings: "),
        (set_attributes("proposals/ball", given="x"), "scores: "),
        (set_attributes("queries/ball", **{borrow.FROM: {"points": [[1, 2, 3]]}}), "(one point), and applied to this"),
        (huge_picks, "picks: "),
        (other_shape("scale0/tomogram"), "slices: "),
        (other_shape("similarity/ball/r16/similarity"), "ball"),
        (lambda store: store.put("queries/ball/points", np.full((2, 3), np.nan), ("a", "b")), "ball"),
        (lambda store: store.put("queries/ball/points", np.full((1, 3), 1e9), ("a", "b")), "ball"),
        (lambda store: store.put("picks/ball/z", np.full(8, np.inf), ("pick",)), "picks: "),
        (lambda store: store.group(journal.GROUP).attrs.update(commands=[{"stages": {"a": {"peak": "x"}}}]), "timings"),
        (lambda store: store.update_info(origin=None), "picks: "),
        (
            set_attributes(
                journal.GROUP, commands=[{"executor": "2 workers at tcp://n7:1, CPU", "outcome": "tls://n:1: x"}]
            ),
            "2 workers at …, CPU …: x",
        ),
        (
            lambda store: store.group(journal.GROUP).attrs.update(
                commands=[{"stages": {"a": {"seconds": float("inf"), "unit_seconds": float("nan"), "peak": 1}}}]
            ),
            "Timings",
        ),
        (lambda store: store.update_info(statistics=[1], input="x", features=7, notes="n", packages=None), "TS_01"),
    ],
)
def test_damage_is_told_where_it_is(
    make_run: MakeRun, tmp_path: Path, damage: Callable[[RunStore], None], said: str
) -> None:
    store = make_run(tmp_path / "TS_01.zarr")
    damage(store)
    write_report(store.url, tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert said in page.text
    assert "Run and settings" in page.text


def test_only_slices_and_close_views_of_the_tomogram_are_read(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_run(tmp_path / "run.zarr", shape=(12, 560, 80))
    asked: list[tuple[str, tuple[int, ...]]] = []
    whole = RunArray._read

    def spy(self: RunArray, how: str, args: Any, kwargs: Any) -> Any:
        found = whole(self, how, args, kwargs)
        asked.append((self.path, np.shape(found)))
        return found

    monkeypatch.setattr(RunArray, "_read", spy)
    write_report(store.url, tmp_path / "r.html")
    images = [shape for path, shape in asked if path.startswith(("scale", "labels/"))]
    assert images
    assert all(len(shape) == 2 for shape in images)
    # the gallery is of a coarser level
    assert max(np.prod(shape) for path, shape in asked if path.startswith("scale1")) == 280 * 40


@pytest.mark.parametrize("shape", [(12, 400, 30), (60, 14, 12), (11, 11, 11)])
def test_odd_shapes(make_run: MakeRun, tmp_path: Path, shape: tuple[int, int, int]) -> None:
    store = make_run(tmp_path / "run.zarr", shape=shape)
    store.update_info(voxel_size=[200.0, 100.0, 100.0])
    write_report(store.url, tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert "can't be read" not in page.text
    depth, tall, wide = (10 * n for n in shape)
    assert f"#q1-0{{aspect-ratio:{wide:g}/{tall:g}}}" in page.inside["style"]
    assert f"#q1-1{{aspect-ratio:{2 * depth:g}/{tall:g}}}" in page.inside["style"]
    # nothing is taller than a screen
    widths = [int(found) for found in re.findall(r"(?:gallery|q1)[^}]*max-width:(\d+)px", page.inside["style"])]
    assert widths == [round(820 * wide / tall), round(820 * (wide + 2 * depth) / (tall + 2 * depth))]
    alts = " ".join(image["alt"] or "" for image in page.all("img"))
    slides = [int(found) for found in re.findall(r"Slice z = (\d+) of the tomogram", alts)]
    expected = range(shape[0]) if shape[0] < 15 else range(2, 60, 4)
    assert slides[: len(expected)] == list(expected)
    assert "median volume is 970 000 nm³" in page.text


def test_thousands_of_picks_are_given_whole_and_shown_in_part(make_run: MakeRun, tmp_path: Path) -> None:
    from cryosam_dask.store import picks

    store = make_run(tmp_path / "run.zarr")
    table = picks.read(store, "ball")
    many = table.loc[np.resize(table.index, 30_000)].reset_index(drop=True)
    picks.write(store, "ball", many.assign(instance=np.arange(1, 30_001)), {"segmented": 40_000, "kept": 30_000})
    write_report(store.url, tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert len(downloads(page)["ball_picks.csv.gz"]) == 30_001
    assert 500 < len(page.all("tr")) < 1200
    assert "The table shows the best 1 000." in page.text
    assert (tmp_path / "r.html").stat().st_size < 5_000_000


def test_a_truth_is_compared_with_the_queries_that_it_has(make_run: MakeRun, tmp_path: Path) -> None:
    from cryosam_dask.store import picks

    store = make_run(tmp_path / "run.zarr", names=("ball", "other"))
    rows = picks.read(store, "ball")[["z", "y", "x"]].to_numpy()[:6]
    truth = tmp_path / "truth.csv"
    truth.write_text("z,y,x,kind\n" + "".join(f"{z},{y},{x},ball\n" for z, y, x in rows))
    write_report(store.url, tmp_path / "r.html", truth=truth, radius="20A")
    page = read(tmp_path / "r.html")
    text = page.text
    assert "precision 0.750" in text
    assert "recall 1.000" in text
    assert "within 20 Å" in text
    assert "truth: " in text  # there is none of the other
    assert text.count("Against the truth") == 1


@pytest.mark.parametrize(
    ("rows", "radius"), [("", 5), ("a,b\n1,2\n", 5), ("z,y,x\n1,2,3\n", -1), ("z,y,x\n1,2,3\n", "5 miles")]
)
def test_a_truth_that_can_not_be_used_is_an_error_and_writes_nothing(
    make_run: MakeRun, tmp_path: Path, rows: str, radius: Any
) -> None:
    store = make_run(tmp_path / "run.zarr")
    (tmp_path / "truth.csv").write_text(rows)
    (tmp_path / "r.html").write_text("before")
    with pytest.raises(InputError) as caught:
        write_report(store.url, tmp_path / "r.html", truth=tmp_path / "truth.csv", radius=radius)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "r.html").read_text() == "before"


def test_where_nothing_can_be_written_or_read(make_run: MakeRun, tmp_path: Path) -> None:
    store = make_run(tmp_path / "run.zarr")
    with pytest.raises(StoreError, match=r"none/r\.html: can't be written"):
        write_report(store.url, tmp_path / "none" / "r.html")
    store.update_info(voxel_size=[10, 0, 10])
    with pytest.raises(StoreError, match=r"voxel size \(10\.0, 0\.0, 10\.0\), expected more than 0"):
        write_report(store.url, tmp_path / "r.html")
    with pytest.raises(StoreError, match="no run found"):
        write_report(tmp_path / "other.zarr", tmp_path / "r.html")
    with pytest.raises(InputError, match="but no truth"):
        write_report(store.url, tmp_path / "r.html", radius="12nm")


def test_the_command(make_run: MakeRun, tmp_path: Path) -> None:
    store = make_run(tmp_path / "run.zarr")
    out = tmp_path / "r.html"
    result = CliRunner().invoke(app, ["report", store.url, "-o", str(out)])
    assert (result.exit_code, result.output) == (0, f"{out}: written\n")
    assert "ball" in read(out).text


def test_marks_and_outlines_are_where_they_belong(make_run: MakeRun, tmp_path: Path) -> None:
    from cryosam_dask.report import images, prompts

    store = make_run(tmp_path / "run.zarr")
    point = store.read("queries/ball/points")
    z, y, x = point[0].round().astype(int)
    near = np.array([[z, y, x], [z + 30, y, x]])
    across_z, across_x, across_y = images.orthogonal(store, "ball", (z, y, x), [images.Points("pick", near)], 512)
    assert [(m.left, m.top) for m in across_z.marks] == [((x + 0.5) / 90, (y + 0.5) / 64)]
    assert next((m.left, m.top) for m in across_x.marks) == ((z + 0.5) / 40, (y + 0.5) / 64)
    assert next((m.left, m.top) for m in across_y.marks) == ((x + 0.5) / 90, (z + 0.5) / 40)
    assert across_z.lines == ((x + 0.5) / 90, (y + 0.5) / 64)
    length, share = across_z.bar
    assert share * across_z.width == pytest.approx(length)
    (shown,) = prompts.prompted(store, "ball", np.array([[z, y, x]], float))
    for view in shown.views:
        places = np.array(re.findall(r"(\d+) (\d+)", view.outline), float) / 1000
        assert np.ptp(places, axis=0) * view.side / 1.348 == pytest.approx([9, 9], abs=0.1)
        radius = np.linalg.norm(places - 0.5, axis=1) * view.side / 1.348
        assert radius.max() == pytest.approx(5, abs=0.8)
        assert radius.min() > 3.5


def test_maps_are_of_the_slice_that_is_shown(make_run: MakeRun, tmp_path: Path) -> None:
    from cryosam_dask.models import preset
    from cryosam_dask.report.maps import maps

    found = maps(make_run(tmp_path / "run.zarr"), "ball", preset("paper", "dinov2-vits14", "sam-vitb").match, 15.7)
    assert found is not None
    assert [one.at for one in found.ratios] == [16, 16, 16]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [([0.5], [True]), ([0.1, 0.1, 0.1], [True, False, False]), (list(np.linspace(-3, 900, 500)), 300)],
)
def test_histograms_count_all(scores: list[float], kept: Any) -> None:
    from cryosam_dask.report.charts import TALL, WIDE, histogram

    chosen = np.arange(len(scores)) < kept if isinstance(kept, int) else np.array(kept)
    chart = histogram(scores, chosen, float(np.mean(scores)))
    assert chart is not None
    counts = np.array([[int(n) for n in re.findall(r"(\d+) (?:kept|left)", bar.title)] for bar in chart.bars])
    assert counts.sum(axis=0).tolist() == [chosen.sum(), (~chosen).sum()]
    assert max(bar.kept + bar.left_out for bar in chart.bars) == pytest.approx(TALL, abs=0.05)
    assert all(0 <= tick.at <= WIDE for tick in chart.across)
    assert all(0 <= tick.at <= TALL for tick in chart.up)


def test_labels_that_are_not_painted_yet_are_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    store = make_run(tmp_path / "run.zarr")
    store.delete("labels/ball/scale0/labels/c")
    store.delete(layout.marks(label.stage_name("ball")))
    marks.begin(store, label.stage_name("ball"), fingerprint="f", settings={}, count=1)
    write_report(store.url, tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert "label/ball: 0 of 1 units" in page.text
    assert any("Slice z" in (image["alt"] or "") for image in page.all("img"))


def test_a_folder_of_runs_is_one_page(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs" / "TS_1.zarr", count=6)
    make_run(tmp_path / "runs" / "TS_2.zarr", count=9, names=("ball", "other"))
    RunStore.create(tmp_path / "runs" / "TS_3.zarr", {"shape": "x"})
    monkeypatch.chdir(tmp_path / "runs")
    write_report(".", tmp_path / "r.html")
    page = read(tmp_path / "r.html")
    assert len(page.all("img")) == 2
    assert len(page.all("tr")) == 4
    for words in (
        "3 runs, 2 complete, 1 unreadable",
        "cryosam report runs 3",
        "15 7.5 ± 2.1 in each of 2 runs",
        "9 in one run",
        "shape is x, expected three",
    ):
        assert words in page.text
    with pytest.raises(InputError, match="compared with one run"):
        write_report(tmp_path / "runs", tmp_path / "r.html", truth=tmp_path / "t.csv")


def test_every_stage_has_words() -> None:
    from cryosam_dask.report.facts import kind_of
    from cryosam_dask.stages import chain

    roles = (segment.PROMPTS, segment.NEGATIVES, segment.PROPOSALS)
    modules = (query, negative, rank, label)
    names = [
        *(role.stage_name("a") for role in roles),
        *(m.stage_name("a") for m in modules),
        *(m.stage_name("a", 4) for m in (match, project)),
    ]
    assert {kind_of(name) for name in names} <= {one.name for one in chain.STAGES if one.words}
