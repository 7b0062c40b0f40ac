"""How well one click finds all of a kind, in crowds, noise, membranes, and where there is none of the kind.

    python tests/benchmarks/clicks.py --work FOLDER [--conditions NAME …] [--split held-out] [--seeds 2] [--clicks 5]
        [--shape 96,256,256] [--models builtin] [--set SECTION.NAME=VALUE …] [--out FILE]
    python tests/benchmarks/clicks.py --report FILE … [--by condition]
    python tests/benchmarks/clicks.py --list

Tomograms are simulated (`click_conditions.CONDITIONS`) and kept in FOLDER, with a run of each that has its features.
In each tomogram every kind is clicked on `--clicks` of its instances, first in the middle of one and then anywhere on
the masks of others, one click at a time, and with all of these clicks together ("all"). One JSON line for each trial is
appended to FILE (FOLDER/clicks.jsonl). What is in it already, with the same models and changes, is not run again: kill
it anywhere, and the same command goes on. After a change of the code take another FILE; after one of what makes
features another FOLDER, too, or remove FOLDER/runs.

`--report` prints the files' means and worst cases as Markdown; lines of `template_matching.py` stand beside ours.
Look at the held-out split to report, never to tune.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click_conditions import CONDITIONS, SHAPE, Condition, conditions_of, shape_of, without
from click_report import append_row, read_rows, report
from click_truth import Case, Click, Row, case, clicks_of, digest_of, figures, prompt_figures

from cryosam_dask.cli.options import Choice
from cryosam_dask.errors import CryosamError, InputError, SettingsError
from cryosam_dask.executors.choice import make_executor
from cryosam_dask.pipeline import Driver, Kinds
from cryosam_dask.pipeline.whole_run import uses_torch_of
from cryosam_dask.settings import Settings
from cryosam_dask.simulate.splits import Split
from cryosam_dask.stages import borrow, chain, segment
from cryosam_dask.store import picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Shape3

ALL = "all"


@dataclass(frozen=True)
class Trials:
    """What is asked for.

    settings : of the models `models`, with `changes`
    """

    work: Path
    split: Split
    clicks: int
    shape: Shape3
    models: str
    changes: tuple[str, ...]
    settings: Settings

    @property
    def about(self) -> Row:
        """What all lines of these trials have in common."""
        about = {"split": self.split, "shape": list(self.shape), "clicks": self.clicks}
        return about | {"models": self.models, "set": sorted(self.changes)}

    def run_of(self, tomogram: Case) -> Path:
        """The run of a tomogram; other settings of features are another run."""
        made_with = self.settings.features.model_dump(mode="json")
        return self.work / "runs" / f"{tomogram.folder.name}-{digest_of(made_with)}.zarr"


class Bench:
    """Runs trials; one after another, on one executor."""

    def __init__(self, trials: Trials, executor: Any, write: Callable[[Row], None]) -> None:
        self.trials, self._executor, self._write = trials, executor, write

    def condition(self, name: str, index: int, done: set[str], kinds: list[str] | None = None) -> None:
        """All trials of one tomogram of a condition that are not done."""
        condition, split = CONDITIONS[name], self.trials.split
        settings = condition.settings(split, index, self.trials.shape)
        about = {"condition": name, "seed": settings.seed, **self.trials.about}
        for kind in condition.kinds(settings):
            if kinds and kind not in kinds:
                continue
            waiting = [
                w for w in which(self.trials.clicks, condition) if key_of(about | w | {"kind": kind}) not in done
            ]
            if not waiting:
                continue
            try:
                tomogram = case(self.trials.work, name, settings)
            except SettingsError as error:  # it is too full, and another seed may do
                print(f"{name}, seed {settings.seed}, is left out: {error}", file=sys.stderr)
                return
            drawn = clicks_of(tomogram, kind, self.trials.clicks)
            for one in waiting:
                clicks = drawn if one["click"] == ALL else drawn[one["click"] :][:1]
                row = about | {"kind": kind} | one | {"points": [list(c.point) for c in clicks]}
                self._write(row | self._trial(condition, tomogram, kind, clicks, one["receiver"]))

    def _trial(self, condition: Condition, tomogram: Case, kind: str, clicks: list[Click], receiver: str | None) -> Row:
        """One trial: its figures, or the error that ended it."""
        name = f"{kind}-trial"
        driver, prepared = self._driver(tomogram)
        start = time.perf_counter()
        wanted = Kinds({name: [[float(v) for v in c.point] for c in clicks]})
        row: Row = {"prepared": round(prepared, 1)}
        try:
            with driver.command(f"run {name}"):
                _forget(driver, name)
                wanted.query(driver, self.trials.settings)
                row |= prompt_figures(driver.store, name, clicks, tomogram, kind)
                if receiver is None:
                    wanted.find(driver)
                    row |= figures(driver.store, name, tomogram, kind)
            if receiver is not None:
                loans = {name: borrow.take(RunStore.open(driver.url), name)}
                row |= self._elsewhere(tomogram, kind, wanted.lent(loans), receiver)
        except InputError as error:  # a click on which nothing can be segmented
            row |= _nothing(condition, receiver) | {"error": str(error)}
        row["notes"] = driver.notes
        row["seconds"] = round(time.perf_counter() - start - row.pop("waited", 0.0), 2)
        with driver.command(f"forget {name}"):
            _forget(driver, name)
        return row

    def _elsewhere(self, tomogram: Case, kind: str, kinds: Kinds, receiver: str) -> Row:
        """What a query finds in a tomogram that has none of its kind."""
        settings = without(tomogram.settings, self.trials.split, kind if receiver == "removed" else None)
        other = case(self.trials.work, f"absent-{receiver}", settings)
        start = time.perf_counter()
        driver, _ = self._driver(other)
        row: Row = {"waited": time.perf_counter() - start}
        (name,) = kinds.names
        with driver.command(f"run {name}"):
            _forget(driver, name)
            kinds.query(driver, self.trials.settings)
            kinds.find(driver)
            table = picks.read(driver.store, name)
            _forget(driver, name)
        row |= {"picks": len(table), "truth": 0, "elsewhere_notes": driver.notes}
        return row | {"scored": [[round(float(s), 4), 0] for s in table["score"]]}

    def _driver(self, tomogram: Case) -> tuple[Driver, float]:
        """A driver of the tomogram's run, with its features; the seconds that these took now."""
        start = time.perf_counter()
        driver = Driver(self.trials.run_of(tomogram), self._executor)
        driver.ingest(tomogram.tomogram)
        driver.features(self.trials.settings)
        return driver, time.perf_counter() - start


def _forget(driver: Driver, name: str) -> None:
    """Remove a query with all that follows from it: each trial is made by the code as it is now."""
    chain.forget(driver.store, name, after=segment.PROMPTS.stage, itself=True)


def _nothing(condition: Condition, receiver: str | None) -> Row:
    """The figures of a trial that ended with an error."""
    row: Row = {"picks": 0, "scored": [], "prompt_iou": 0.0, "prompt_size": 0.0, "leaks": []}
    if receiver is not None:
        return row
    zero = ["dice"] if condition.structure else ["f1", "best_f1", "average_precision", "mean_iou", "mean_iou_truth"]
    return row | dict.fromkeys([*zero, "precision", "recall"], 0.0)


def which(clicks: int, condition: Condition) -> list[Row]:
    """The trials of a kind: each click, and all together; where the kind is absent, in both of the other tomograms."""
    receivers = ["removed", "other"] if condition.absent else [None]
    one: list[int | str] = [*range(clicks), ALL] if clicks > 1 else [0]
    return [{"click": click, "receiver": receiver} for receiver in receivers for click in one]


def key_of(row: Row) -> str:
    """What makes two lines lines of the same trial."""
    # the same clicks are drawn first, however many there are; only all together depends on the number
    count = row["clicks"] if row["click"] == ALL else None
    keys = ("condition", "split", "seed", "shape", "kind", "click", "receiver", "models", "set")
    return json.dumps([*(row.get(k) for k in keys), count])


def _brief(row: Row) -> str:
    """A line to watch."""
    words = [row["condition"], row["kind"], f"click {row['click']}", *([row["receiver"]] if row["receiver"] else [])]
    values = [f"{k} {row[k]:.2f}" for k in ("f1", "dice", "mean_iou", "prompt_iou") if k in row]
    words += [*values, f"{row['picks']} picks", f"{row['seconds']:.1f} s"]
    return ", ".join([*words, *(["leaks into " + " and ".join(row["leaks"])] if row.get("leaks") else [])])


def _run(options: argparse.Namespace) -> None:
    conditions, shape = conditions_of(options.conditions), shape_of(options.shape)
    settings = Choice(options.models, set=options.set).settings()
    changes = tuple(options.set)
    trials = Trials(options.work, options.split, options.clicks, shape, options.models, changes, settings)
    options.work.mkdir(parents=True, exist_ok=True)
    out = options.out or options.work / "clicks.jsonl"
    done = {key_of(row) for row in read_rows(out) if "click" in row}

    def write(row: Row) -> None:
        append_row(out, row)
        print(_brief(row), flush=True)

    with make_executor(options.workers, device=options.device, uses_torch=uses_torch_of(settings)) as executor:
        bench = Bench(trials, executor, write)
        for index in range(options.seeds):  # all conditions come first, so that what is there early says something
            for name in conditions:
                bench.condition(name, index, done, options.kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("click-benchmark"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--conditions", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--kinds", nargs="+", metavar="NAME")
    parser.add_argument("--split", choices=["tune", "held-out"], default="tune")
    parser.add_argument("--seeds", type=int, default=1, help="tomograms of each condition")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--shape", default=",".join(map(str, SHAPE)))
    parser.add_argument("--models", default="builtin")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=VALUE")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--list", action="store_true", help="say what the conditions are")
    parser.add_argument("--report", nargs="+", type=Path, metavar="FILE", help="print tables of what is in files")
    parser.add_argument("--by", choices=["kind", "condition"], default="kind", help="rows of the report")
    options = parser.parse_args()
    try:
        if options.list:
            print("\n".join(f"{name}: {condition.words}" for name, condition in CONDITIONS.items()))
        elif options.report:
            rows = [row for path in options.report for row in read_rows(path)]
            print(report(rows, by_kind=options.by == "kind"))
        else:
            _run(options)
    except CryosamError as error:
        parser.exit(error.exit_code, f"{parser.prog}: error: {error}\n")


if __name__ == "__main__":
    main()
