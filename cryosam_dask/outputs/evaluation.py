"""Compares the results of one run, or of a folder of runs, with a truth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.evaluate import (
    CZII_OBJECTS,
    CziiScore,
    DatasetEvaluation,
    MaskEvaluation,
    Radius,
    TomogramPicks,
    czii_score,
    evaluate_dataset,
    evaluate_picks,
    parse_radius,
)
from cryosam_dask.outputs.results import single_name
from cryosam_dask.outputs.review import review_figures, review_sentence
from cryosam_dask.outputs.truth import Tomogram, Truth, tomogram_of
from cryosam_dask.outputs.truth_files import Kind
from cryosam_dask.outputs.truth_labels import LabelFiles, compare_labels
from cryosam_dask.storage.address import is_local, local_path
from cryosam_dask.storage.filesystem import filesystem
from cryosam_dask.store import picks
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES

if TYPE_CHECKING:
    import pandas as pd

Float64 = NDArray[np.float64]
Radii = float | str | Radius | Mapping[str, float | str | Radius]


def evaluate(
    run: str | Path,
    truth: str | Path,
    radius: float | str | Radius,
    *,
    name: str | None = None,
    truth_labels: str | Path | None = None,
    truth_format: str | None = None,
    truth_unit: str | None = None,
) -> dict[str, Any]:
    """Compare a query's picks with true positions (and its labels with true ones): a JSON-able dict of figures.

    Parameters
    ----------
    truth : points in any format of `read_points`; of several tomograms in a file, those of the run's are taken
    radius : largest distance of a match: voxels, or a length as in "120A" or "12nm"
    name : the query; may be left out where there is one only
    truth_labels : instances, in any format of `open_tomogram`; read box by box
    truth_format : of the points, where the suffix does not tell it
    truth_unit : of plain text (xyz), "voxel" or "angstrom"; None: voxels

    The keys are those of `Evaluation` and, with labels, of `MaskEvaluation`; `review` has what people decided about the
    picks (`review_figures`), if they did; `notes` has what had to be assumed. Raises
    InputError where the truth can't be read, holds no points, is not this tomogram's, or has another shape, StoreError
    where there are no results.
    """
    store = RunStore.open(run)
    chosen = single_name(store, name)
    tomogram, length = tomogram_of(store), parse_radius(radius)
    source = Truth.open(truth, truth_format, unit=truth_unit, single=True)
    points = source.read(tomogram, Kind(chosen))
    if points is None:
        called = ", ".join(sorted({tomogram.name.casefold(), *tomogram.keys, *tomogram.series}))
        raise InputError(f"{truth}: no points of {tomogram.name} in it, as a file or a tomogram called {called}")
    source.check_any()
    table = picks.read(store, chosen)
    figures = evaluate_picks(
        table[list(AXES)],
        table["score"],
        points[list(AXES)],
        length.value,
        voxel_size=store.voxel_size if length.unit == "angstrom" else None,
    ).to_dict()
    notes = source.doubts()
    if truth_labels is not None:
        masks, said = compare_labels(store, chosen, truth_labels)
        figures |= masks.to_dict()
        notes += said
    reviewed = review_figures(store.url, name=chosen)
    if reviewed["reviewers"]:
        figures["review"] = {key: reviewed[key] for key in ("picks", "without_pick", "precision", "reviewers")}
        figures["review"]["words"] = review_sentence(reviewed)
    return figures | ({"notes": notes} if notes else {})


@dataclass(frozen=True)
class RunsEvaluation:
    """Figures of a folder of runs, and the CZII challenge's score where it was asked for."""

    dataset: DatasetEvaluation
    czii: CziiScore | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self.dataset.to_dict() | ({} if self.czii is None else {"czii": self.czii.to_dict()})


def evaluate_runs(
    runs: str | Path | Sequence[str | Path],
    truth: str | Path,
    radius: Radii,
    *,
    name: str | None = None,
    truth_labels: str | Path | None = None,
    truth_format: str | None = None,
    truth_unit: str | None = None,
    czii: bool = False,
) -> RunsEvaluation:
    """Compare the picks (and labels) of many runs with their truths.

    Parameters
    ----------
    runs : a folder (path or URL) with NAME.zarr runs, one run, or several
    truth : a file of points of several tomograms, a folder of files, or a pattern; `truth_files` says how they are
        matched
    radius : one for all kinds, or one for each kind; kinds are queries' names. With one kind alone, `name` may be
        another name for its query
    name : the query; without it, and without kinds, runs must have one query only
    truth_labels : a folder with the instance labels of each tomogram, `NAME.mrc`, `NAME.zarr` and so on (of several
        kinds: `NAME_KIND`, or `KIND/NAME`), or a file where there is one run and one kind
    truth_unit : of plain text (xyz), "voxel" or "angstrom"; None: voxels
    czii : also the challenge's score; kinds that are not its classes are left out of it

    Tomograms without a truth, without results or with damaged ones, and truths without a run are in the notes. Raises
    InputError where nothing can be compared, and where the truth as a whole holds no points.
    """
    urls = find_runs(runs)
    points = Truth.open(truth, truth_format, unit=truth_unit, single=len(urls) == 1)
    queries = _queries(radius, name)
    labels = None if truth_labels is None else LabelFiles.open(truth_labels, single=len(urls) == len(queries) == 1)
    collected = _RunPicks(points, labels, queries, named=isinstance(radius, Mapping), single=len(urls) == 1)
    stores = collected.opened(urls)
    result = evaluate_dataset(collected.of_runs(stores), radius)
    points.check_any()
    if not result.rows:
        raise InputError("; ".join([f"{truth}: nothing to compare with", *collected.notes()[:3]]))
    dataset = DatasetEvaluation(result.rows, result.kinds, tuple(collected.notes()))
    return RunsEvaluation(dataset, collected.czii_score() if czii else None)


def find_runs(runs: str | Path | Sequence[str | Path]) -> list[str]:
    """URLs of runs: those given, or those directly in a folder. InputError where there is none."""
    if not isinstance(runs, str | Path):
        if not runs:
            raise InputError("no runs: expected a folder of them, one or several")
        return [str(run) for run in runs]
    url = str(runs).rstrip("/")
    if RunStore.exists(url):
        return [url]
    urls = [entry for entry in _listed(url) if entry.endswith(".zarr") and RunStore.exists(entry)]
    if not urls:
        raise InputError(f"{url}: no run, and no folder with runs (NAME.zarr) in it")
    return urls


def _listed(url: str) -> list[str]:
    if is_local(url):
        folder = Path(local_path(url)).expanduser()
        return sorted(str(path) for path in folder.iterdir()) if folder.is_dir() else []
    there, path = filesystem(url)
    try:
        entries = there.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return sorted(f"{url}/{str(entry['name']).rstrip('/').rsplit('/', 1)[-1]}" for entry in entries)


def _queries(radius: Radii, name: str | None) -> dict[str | None, str | None]:
    """Kind → query; None for the one that each run has."""
    if not isinstance(radius, Mapping):
        return {name: name}
    kinds = list(radius)
    if name is not None and len(kinds) != 1:
        raise InputError(f"--name {name}: with radii of several kinds, kinds are queries' names")
    return {kind: name or kind for kind in kinds}


@dataclass
class _RunPicks:
    """Picks of runs with their truths, one by one, and what was left out of them."""

    truth: Truth
    labels: LabelFiles | None
    queries: dict[str | None, str | None]
    named: bool
    single: bool
    left_out: dict[str, list[str]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    positions: dict[str, dict[str, dict[str, Float64]]] = field(default_factory=lambda: {"found": {}, "truth": {}})

    def opened(self, urls: Sequence[str]) -> list[RunStore]:
        """The runs; of several, one that can't be opened is left out."""
        stores = []
        for url in urls:
            with self._among_many("left out"):
                stores.append(RunStore.open(url))
        return stores

    @contextlib.contextmanager
    def _among_many(self, what: str) -> Iterator[None]:
        """What is wrong with one of several runs is said, and does not stop the others."""
        try:
            yield
        except StoreError as error:
            if self.single:
                raise
            self.said.append(f"{what}: {error}")

    def of_runs(self, stores: Sequence[RunStore]) -> Iterator[TomogramPicks]:
        """Each kind of each run that has a truth and results."""
        taken: dict[str, str] = {}
        inputs: dict[str, list[str]] = {}
        for store in stores:
            tomogram = tomogram_of(store)
            inputs.setdefault(str(store.info.get("input", {}).get("path", store.url)), []).append(tomogram.name)
            if (other := taken.setdefault(tomogram.name, store.url)) != store.url:
                raise InputError(f"{store.url} and {other}: both are called {tomogram.name}")
            for kind, query in self.queries.items():
                yield from self._of_kind(store, tomogram, kind, query)
        self.said += [f"runs of one tomogram, each counted: {', '.join(n)}" for n in inputs.values() if len(n) > 1]

    def notes(self) -> list[str]:
        """Who was left out and why, and what else was said."""
        notes = [f"{why}: {', '.join(names)}" for why, names in self.left_out.items()]
        return notes + self.truth.left() + self.truth.doubts() + self.said

    def czii_score(self) -> CziiScore:
        """The challenge's score of its classes among the kinds, in the tomograms that have a run and a truth."""
        names = {species.name for species in CZII_OBJECTS}
        picked, truth = (
            {tomogram: {k: v for k, v in kinds.items() if k in names} for tomogram, kinds in side.items()}
            for side in (self.positions["found"], self.positions["truth"])
        )
        if not any(truth.values()):
            raise InputError(f"CZII: none of its classes among the kinds; they are {', '.join(sorted(names))}")
        return czii_score(picked, truth)

    def _of_kind(
        self, store: RunStore, tomogram: Tomogram, kind: str | None, query: str | None
    ) -> Iterator[TomogramPicks]:
        known = picks.names(store)
        if query is None and known:
            query = single_name(store, None)
        wanted = kind or query or "particles"
        asked = Kind(wanted, alone=len(self.queries) == 1, named=self.named)
        points = self.truth.read(tomogram, asked)
        if points is None:
            self._leave_out(f"left out, no truth of {wanted}", tomogram)
            return
        if query is None or query not in known:
            self._keep("truth", tomogram, wanted, points)  # the challenge counts what nobody looked for as missed
            self._leave_out(f"left out, no results{'' if query is None else f' called {query}'}", tomogram)
            return
        table = None
        with self._among_many("left out"):
            table = picks.read(store, query)
        if table is None:
            return
        self._keep("truth", tomogram, wanted, points)
        self._keep("found", tomogram, wanted, table)
        yield TomogramPicks(
            tomogram.name,
            table[list(AXES)],
            table["score"],
            points[list(AXES)],
            kind=wanted,
            voxel_size=store.voxel_size,
            masks=self._masks(store, tomogram, query, asked),
        )

    def _masks(self, store: RunStore, tomogram: Tomogram, query: str, kind: Kind) -> MaskEvaluation | None:
        if self.labels is None:
            return None
        path = self.labels.of(tomogram, kind)
        if path is None:
            self._leave_out(f"masks left out, no true labels of {kind.name}", tomogram)
            return None
        masks: MaskEvaluation | None = None
        with self._among_many("masks left out"):
            masks, notes = compare_labels(store, query, path)
            self.said += notes
        return masks

    def _keep(self, side: str, tomogram: Tomogram, kind: str, table: pd.DataFrame) -> None:
        """Positions in Å, for the challenge's score."""
        places = table[list(AXES)].to_numpy(dtype=np.float64) * np.asarray(tomogram.voxel_size)
        self.positions[side].setdefault(tomogram.name, {})[kind] = places

    def _leave_out(self, why: str, tomogram: Tomogram) -> None:
        self.left_out.setdefault(why, []).append(tomogram.name)
