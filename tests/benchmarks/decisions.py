"""What decisions are worth: a reviewer who knows the truth accepts and rejects places, and the query is refined.

    python tests/benchmarks/decisions.py --work FOLDER [--conditions crowded phantoms-crowded] [--split held-out]
        [--seeds 1] [--clicks 1] [--shape 64,192,192] [--models builtin|stand-in] [--orders score doubt missing]
        [--out FILE]
    python tests/benchmarks/decisions.py --report FILE …

One click finds a kind in a simulated tomogram (`click_conditions`). Then the reviewer decides on 5, 10, 20 and 40
places, the next ones each time by their score, or by doubt: those nearest to the cut, above it and below; or by doubt,
and one in five is a particle that no pick is at, which the reviewer clicks ("missing"). After each
step the query is refined, matched and segmented ("refined"). Beside it stand, from the same decisions, "alone", the
first result; and by score "averaged", the paper's way: what was accepted is prompted too, and the query is the mean. In
each way what was rejected is taken out and what was accepted or added is in, as it is exported.

`--models stand-in` has no weights: the encoder and the segmenter know the kind of each voxel, with noise (`stand_in`).
One JSON line for each step is appended to FILE (FOLDER/decisions.jsonl); what is in it already is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from click_conditions import CONDITIONS, conditions_of, shape_of
from click_report import append_row, read_rows
from click_truth import Case, case, clicks_of
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from stand_in import STAND_IN, stand_in

from cryosam_dask.errors import CryosamError, InputError
from cryosam_dask.evaluate import evaluate_picks
from cryosam_dask.executors.choice import make_executor
from cryosam_dask.kernels import peaks
from cryosam_dask.outputs.reviewed import chosen_picks
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.settings import Settings
from cryosam_dask.stages import chain, propose, segment
from cryosam_dask.store import layout, picks, reviews
from cryosam_dask.store.reviews import Decision

Row = dict[str, Any]
Float64 = NDArray[np.float64]
STEPS = (5, 10, 20, 40)
ORDERS = ("score", "doubt", "missing")
MISSING = 5
"""One in so many decisions is a missing particle, where these are added."""

SHAPE = "64,192,192"


@dataclass
class Reviewer:
    """Knows the centres (M, 3) of a kind and its radius, in voxels."""

    centres: Float64
    radius: float

    def decide(self, driver: Driver, name: str, count: int, order: str) -> list[Decision]:
        """Verdicts about the next places, as they are ranked now; fewer where there are no more."""
        points, scores = self._places(driver, name)
        standing = reviews.standing(driver.store, name)
        told = np.array([d.position for d in standing], float).reshape(-1, 3)
        known = np.concatenate([told, driver.store.read(layout.query_array(name, "points"))])
        new = ~propose.near(points, known, reviews.radius(driver.store, name) / reviews.REACH)
        points, scores = points[new], scores[new]
        by = -scores if order == "score" else np.abs(scores - _cut(driver, name))
        added = self._missing(driver, name, known)[: count // MISSING] if order == "missing" else np.empty((0, 3))
        chosen = points[np.argsort(by, kind="stable")[: count - len(added)]]
        right = np.array([d.verdict != "rejected" for d in standing], bool)
        taken = np.concatenate([told[right], driver.store.read(layout.query_array(name, "points"))])
        out = []
        for place in chosen:
            verdict = self.verdict(place, taken)
            out.append(Decision(0, (float(place[0]), float(place[1]), float(place[2])), verdict))
            taken = np.concatenate([taken, place[None]]) if verdict == "accepted" else taken
        return out + [Decision(0, (z, y, x), "added") for z, y, x in added.tolist()]

    def _missing(self, driver: Driver, name: str, known: Float64) -> Float64:
        """Centres (n, 3) of particles that no pick and nothing known (k, 3) is at."""
        table = picks.read(driver.store, name)
        there = np.concatenate([table[["z", "y", "x"]].to_numpy(float), known])
        return self.centres[~propose.near(self.centres, there, self.radius)]

    def _places(self, driver: Driver, name: str) -> tuple[Float64, Float64]:
        """What is shown: the picks, and candidates that were not proposed, a particle's radius apart and not on one
        that a pick outlines; with the scores that candidates have."""
        reach = reviews.radius(driver.store, name) / reviews.REACH
        among = driver.candidates(name)
        table = picks.read(driver.store, name)
        points, scores = table[["z", "y", "x"]].to_numpy(float), table["score"].to_numpy(float)
        distance, nearest = cKDTree(among.points).query(points) if len(among.points) else (np.ones(0), [])
        scores = np.where(distance <= reach, among.scores[nearest], scores) if len(distance) else scores
        far = ~propose.near(among.points, points, reach)
        far &= ~self._outlined(among.points, points)
        kept = peaks.non_maximum_suppression(among.points[far], among.scores[far], reach)
        points = np.concatenate([points, among.points[far][kept]])
        return points, np.concatenate([scores, among.scores[far][kept]])

    def _outlined(self, places: Float64, points: Float64) -> NDArray[np.bool_]:
        """Whether places (n, 3) are on particles that points (m, 3) are on, too."""
        there = self.centres[propose.near(self.centres, points, self.radius)]
        return propose.near(places, there, self.radius)

    def verdict(self, place: Float64, taken: Float64) -> reviews.Verdict:
        """Right on a particle that none of the places (k, 3) that were right before is on."""
        distance = np.linalg.norm(self.centres - place, axis=1)
        free = ~propose.near(self.centres, taken, self.radius)
        return "accepted" if (distance[free] <= self.radius).any() else "rejected"

    def figures(self, positions: Float64, scores: Float64) -> Row:
        result = evaluate_picks(positions, scores, self.centres, self.radius)
        return {
            "f1": result.f1,
            "ap": result.average_precision,
            "precision": result.precision,
            "recall": result.recall,
            "picks": len(positions),
        }


def _cut(driver: Driver, name: str) -> float:
    """The score from which on places are proposals: that of the last one."""
    proposed = driver.store.read(layout.proposal_array(name, "scores"))
    return float(proposed.min()) if len(proposed) else 0.5


@dataclass
class Trial:
    """One click on a kind of one tomogram, and what comes of decisions."""

    driver: Driver
    settings: Settings
    reviewer: Reviewer
    click: list[float]
    name: str = "trial"

    def run(self, order: str, write: Callable[[Row], None]) -> None:
        self._forget(self.name)  # of a trial that was interrupted
        self._forget("averaged")
        self._find(self.name, [self.click])
        first = self._picks(self.name)
        write({"way": "refined", "order": order, "decisions": 0, **self.reviewer.figures(*first)})
        self._review(order, first, write)
        self._forget(self.name)

    def _review(self, order: str, first: tuple[Float64, Float64], write: Callable[[Row], None]) -> None:
        driver, name, done = self.driver, self.name, 0
        for step in STEPS:
            driver.review(name, self.reviewer.decide(driver, name, step - done, order))
            begun, done = time.perf_counter(), step
            driver.refine(name)
            driver.match(name)
            driver.segment(name)
            row = {"order": order, "decisions": step, "seconds": round(time.perf_counter() - begun, 1)}
            decided = reviews.standing(driver.store, name)
            row |= {"accepted": sum(d.verdict != "rejected" for d in decided), "decided": len(decided)}
            write(row | {"way": "refined", **self.reviewer.figures(*self._exported(name))})
            write(row | {"way": "alone", **self.reviewer.figures(*self._corrected(first, decided))})
            if order == "score":
                accepted = [list(d.position) for d in decided if d.verdict != "rejected"]
                self._find("averaged", [self.click, *accepted])
                averaged = self._corrected(self._picks("averaged"), decided)
                write(row | {"way": "averaged", **self.reviewer.figures(*averaged)})
                self._forget("averaged")

    def _find(self, name: str, points: list[list[float]]) -> None:
        self.driver.query(name, points, self.settings)
        self.driver.match(name)
        self.driver.segment(name)

    def _picks(self, name: str) -> tuple[Float64, Float64]:
        table = picks.read(self.driver.store, name)
        return table[["z", "y", "x"]].to_numpy(float), table["score"].to_numpy(float)

    def _exported(self, name: str) -> tuple[Float64, Float64]:
        """What a person has in the end: picks that were not rejected, and accepted or added particles without one."""
        table = chosen_picks(self.driver.store, name, "not-rejected", added=True)
        return table[["z", "y", "x"]].to_numpy(float), table["score"].to_numpy(float)

    def _corrected(self, found: tuple[Float64, Float64], decided: list[Decision]) -> tuple[Float64, Float64]:
        """Picks without those that were rejected, and with all that were accepted, at the score 1."""
        positions, scores = found
        reach = reviews.radius(self.driver.store, self.name) / reviews.REACH
        for wrong in (True, False):
            places = np.array([d.position for d in decided if (d.verdict == "rejected") == wrong], float).reshape(-1, 3)
            away = ~propose.near(positions, places, reach)
            positions, scores = positions[away], scores[away]
        return np.concatenate([positions, places]), np.concatenate([scores, np.ones(len(places))])

    def _forget(self, name: str) -> None:
        with self.driver.command("forget"):
            chain.forget(self.driver.store, name, after=segment.PROMPTS.stage, itself=True)
            self.driver.store.delete(layout.reviews(name))


def _run(options: argparse.Namespace) -> None:
    out = options.out or options.work / "decisions.jsonl"
    options.work.mkdir(parents=True, exist_ok=True)
    done = {(_key(row), row["order"]) for row in read_rows(out) if row["decisions"] == STEPS[-1]}
    with make_executor(0, uses_torch=False) as executor:
        for index in range(options.seeds):
            for condition in options.conditions:
                settings = CONDITIONS[condition].settings(options.split, index, options.shape)
                tomogram = case(options.work, condition, settings)
                for kind in options.kinds or CONDITIONS[condition].kinds(settings):
                    for number, click in enumerate(clicks_of(tomogram, kind, options.clicks)):
                        about = {"condition": condition, "seed": settings.seed, "kind": kind, "click": number}
                        about |= {"split": options.split, "models": options.models, "shape": list(options.shape)}
                        if left := [order for order in options.orders if (_key(about), order) not in done]:
                            trial = _trial(options, executor, tomogram, kind, list(map(float, click.point)))
                            _tried(trial, left, about, out)


def _tried(trial: Trial, orders: list[str], about: Row, out: Path) -> None:
    def write(row: Row) -> None:
        append_row(out, about | row)
        said = f"{row['way']} by {row['order']}, {row['decisions']} decisions: F1 {row['f1']:.3f}, AP {row['ap']:.3f}"
        print(f"{about['condition']}, {about['kind']}, {said}, {row.get('seconds', 0):.0f} s", flush=True)

    try:
        for order in orders:
            trial.run(order, write)
    except InputError as error:  # a click on which nothing can be segmented
        print(f"{about['condition']}, {about['kind']}: {error}", flush=True)


def _trial(options: argparse.Namespace, executor: Any, tomogram: Case, kind: str, click: list[float]) -> Trial:
    source, models = tomogram.tomogram, options.models
    if models == STAND_IN:
        source, models = stand_in(tomogram)
    settings = settings_for(models, {"match.structure": "particle"})
    run = options.work / "runs" / f"{tomogram.folder.name}-{options.models}.zarr"
    driver = Driver(run, executor)
    driver.ingest(source)
    driver.features(settings)
    return Trial(driver, settings, Reviewer(tomogram.centres(kind), tomogram.radius(kind)), click)


def _key(row: Row) -> str:
    return json.dumps([row[k] for k in ("condition", "seed", "kind", "click", "split", "models", "shape")])


def report(rows: list[Row]) -> str:
    """A Markdown table: means over trials of F1 (and AP) after so many decisions, and what was taken of what was
    missing from F1 = 1 after 20. Of a trial that was interrupted and run again the later rows count."""
    rows = list({(_key(r), r["way"], r["order"], r["decisions"]): r for r in rows}.values())
    head = [*(f"{n} decisions" for n in (0, *STEPS)), "of the missing, by 20", "worse by 20"]
    lines = [f"| models | way | order | {' | '.join(head)} |", "|" + "---|" * (len(head) + 3)]
    groups = dict.fromkeys((r["models"], r["way"], r["order"]) for r in rows)
    start = {_key(r): r for r in rows if r["decisions"] == 0}
    for models, way, order in sorted(groups, key=lambda g: (g[0], ("alone", "averaged", "refined").index(g[1]), g[2])):
        own = [r for r in rows if (r["models"], r["way"], r["order"]) == (models, way, order)]
        trials = {_key(r) for r in own if r["decisions"] == STEPS[-1]}
        cells, f1 = [], {}
        for step in (0, *STEPS):
            here = (
                [r for r in own if r["decisions"] == step and _key(r) in trials]
                if step
                else [start[key] for key in trials]
            )
            f1[step] = {_key(r): r["f1"] for r in here}
            cells.append(f"{_mean(here, 'f1'):.3f} ({_mean(here, 'ap'):.3f})" if here else "")
        before, after = np.array([[f1[0][key], f1[20][key]] for key in sorted(trials)]).reshape(-1, 2).T
        taken = 1 - (1 - after).sum() / max((1 - before).sum(), 1e-9)
        cells += [f"{taken:.0%}", f"{int((after < before - 0.005).sum())} of {len(trials)}"]
        lines.append(f"| {models} | {way} | by {order} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(rows: list[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("decision-benchmark"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--conditions", nargs="+", default=["crowded", "phantoms-crowded"], metavar="NAME")
    parser.add_argument("--kinds", nargs="+", metavar="NAME")
    parser.add_argument("--split", choices=["tune", "held-out"], default="tune")
    parser.add_argument("--seeds", type=int, default=1, help="tomograms of each condition")
    parser.add_argument("--clicks", type=int, default=1)
    parser.add_argument("--shape", default=SHAPE)
    parser.add_argument("--models", default="builtin", help=f"or {STAND_IN}")
    parser.add_argument("--orders", nargs="+", default=ORDERS, choices=ORDERS)
    parser.add_argument("--report", nargs="+", type=Path, metavar="FILE", help="print a table of what is in files")
    options = parser.parse_args()
    try:
        if options.report:
            print(report([row for path in options.report for row in read_rows(path)]))
            return
        options.conditions, options.shape = conditions_of(options.conditions), shape_of(options.shape)
        _run(options)
    except CryosamError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
