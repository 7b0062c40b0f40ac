"""Runs many tomograms with the query that is clicked in one of them.

First the query is made in the tomogram with the click, the reference. Then all tomograms are run to their ends, as many
at once as keep the workers busy. A tomogram that fails gets a row with its error and does not stop the others. The same
command, given again, goes on with the tomograms that are not complete.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryosam_dask.errors import CryosamError, InputError, SettingsError, StoreError
from cryosam_dask.executors.base import Executor, one_line
from cryosam_dask.executors.progress import NullProgress, Progress
from cryosam_dask.executors.progress_lines import Lines
from cryosam_dask.io.listing import find_tomograms, is_many, run_names
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.models.registry import ensure_weights
from cryosam_dask.pipeline import Driver, Kinds, chosen_settings, kinds_of, uses_torch_of
from cryosam_dask.pipeline.at_once import AtOnce, Crowd
from cryosam_dask.pipeline.kinds import Points, Source
from cryosam_dask.pipeline.stopping import BROKEN, Failures, why_stop
from cryosam_dask.pipeline.summary import Row, Summary, join_picks, put_text
from cryosam_dask.planning.costs import MACHINES
from cryosam_dask.planning.estimate import Bulk
from cryosam_dask.planning.plan import Options, plan_run
from cryosam_dask.settings import Settings
from cryosam_dask.stages import borrow, ingest, label, negative
from cryosam_dask.stages.base import fingerprint
from cryosam_dask.storage.address import is_local, local_path, public
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore

__all__ = ["BROKEN", "Row", "Summary", "find_tomograms", "is_many", "run_many", "why_stop"]

logger = logging.getLogger(__name__)

COMPLETE = "complete"
"""Attribute of a complete query: fingerprint of the tomogram, the settings and the queries it was run with."""

Report = Callable[[Row, int, int], None]
"""A function (row, number from 1, number of tomograms), called when a tomogram begins ("pending") and ends."""


def run_many(
    tomograms: Sequence[str | Path],
    points: Points | Mapping[str, Points] | None,
    out_folder: str | Path,
    *,
    negatives: Points | None = None,
    reference: str | Path | None = None,
    query_from: Source | Sequence[Source] | Mapping[str, borrow.Loan] | None = None,
    name: str | Sequence[str] | None = None,
    models: str | None = None,
    settings: Settings | None = None,
    executor: Executor | None = None,
    voxel_size: float | Sequence[float] | None = None,
    unsigned: bool | None = None,
    overwrite: bool = False,
    at_once: int | None = None,
    fail_fast: bool = False,
    progress: Progress | None = None,
    report: Report | None = None,
    **where: Any,
) -> Summary:
    """Find the particles like the one(s) at `points` of the reference in all tomograms.

    Parameters
    ----------
    tomograms : as `find_tomograms` takes them
    points : (n, 3) voxels (z, y, x) in the reference, or such points by the name of each of several kinds, all of
        which are looked for in all tomograms; None with `query_from`
    out_folder : gets NAME.zarr for each tomogram (`io.listing.run_names`), `summary.csv`, `picks.csv` and `picks.star`
    negatives : (n, 3) voxels (z, y, x) in the reference on what is of none of the kinds
    reference : the tomogram with the points; None: the first. One that is not among `tomograms` is added
    query_from : instead of points, a run (path or URL) whose query `name`, or whose queries of several names, are used
        in all; or a query's file (.json); or several of these
    models, settings : as in `pipeline.run`
    executor : where to run; it is left open
    where : instead of an executor, what `executors.choice.make_executor` makes one from (`workers`, `scheduler`, …); it
        is made when there is something to run, and closed
    voxel_size, unsigned : how to read all tomograms, see `open_tomogram`
    at_once : how many tomograms go on at once, on a Dask cluster; None: as many as keep its workers busy, by plan.
        Results do not depend on it, nor does the memory of a worker
    fail_fast : stop at the first tomogram that fails, those that go on besides included
    report : called when a tomogram begins and when it ends, in this thread

    Returns the summary, which is also written to `out_folder/summary.csv` after each tomogram. The run ends early
    (`Summary.stopped`) for a reason that the next tomogram would share: a full disk, a missing model or device, or
    `BROKEN` tomograms in a row that workers failed on. Those that go on then stop, and stay "pending".

    Errors in the arguments are raised before anything is run. Errors that keep the reference from having a query are
    raised, too, and a `KeyboardInterrupt` passes through. In each case the same command, given again, goes on.
    """
    from cryosam_dask.executors.choice import make_executor

    if executor is not None and where:
        raise ValueError(f"give an executor or {', '.join(where)}, not both")
    if reference is not None and points is None:
        raise InputError("a reference is the tomogram that the points are in; give points in it")
    if at_once is not None and at_once < 1:
        raise SettingsError(f"{at_once} tomograms at once: expected 1 or more")
    if negatives is not None and points is None:
        raise InputError("negative points lie in the tomogram with the points; a borrowed query brings its own along")
    kinds = kinds_of(points, negatives, query_from, name, "reference")
    for tomogram in (*tomograms, *([] if reference is None else [reference])):
        if not isinstance(tomogram, str | os.PathLike):
            raise InputError(
                f"a {type(tomogram).__name__} among the tomograms: a folder of runs is of files; run arrays one by "
                "one, the first with points, the others with query= the first one's run"
            )
    paths = find_tomograms([*([] if reference is None else [reference]), *tomograms])
    chosen = settings or chosen_settings(models, kinds.loan)
    reading: dict[str, Any] = {"voxel_size": voxel_size, "unsigned": unsigned}
    if points is not None:
        kinds.check(open_tomogram(paths[0], **reading).shape)
    for model in (chosen.features.encoder, chosen.propagation.segmenter):
        ensure_weights(model)
    rows = _rows(paths, str(out_folder).rstrip("/"))
    with contextlib.ExitStack() as opened:

        def place() -> Executor:
            nonlocal executor
            if executor is None:
                executor = opened.enter_context(make_executor(**where, uses_torch=uses_torch_of(chosen)))
            return executor

        batch = _Batch(str(out_folder).rstrip("/"), rows, place, chosen, reading, report, progress, overwrite)
        if points is not None:
            kinds = batch.prompt(kinds)
        return batch.run(kinds, fail_fast=fail_fast, at_once=at_once)


def _rows(paths: Sequence[str], folder: str) -> list[Row]:
    """One row a tomogram; makes the folder."""
    rows = [Row(path, name, f"{folder}/{name}.zarr") for path, name in zip(paths, run_names(paths), strict=True)]
    for row in rows:
        if _same(row.tomogram, row.run):
            raise InputError(f"{public(row.tomogram)}: its results would be written into it; choose another folder")
    if is_local(folder):
        try:
            Path(local_path(folder)).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder}: can't be made ({error.strerror})") from error
    return rows


Ended = tuple[Row, Exception | None]
"""What became of a tomogram, and why it failed, if it did."""


class _Batch:
    """The tomograms of one command, what became of them, and how each is run. The first one is the reference."""

    def __init__(
        self,
        folder: str,
        rows: Sequence[Row],
        place: Callable[[], Executor],
        settings: Settings,
        reading: dict[str, Any],
        report: Report | None,
        progress: Progress | None,
        overwrite: bool,
    ) -> None:
        self._folder, self._rows = folder, list(rows)
        self._place, self._settings, self._reading = place, settings, reading
        self._report, self._progress, self._overwrite = report, progress, overwrite
        self._prompted = False

    def prompt(self, kinds: Kinds) -> Kinds:
        """Make the queries in the reference, unless they are complete, and read them."""
        self._prompted, row = True, self._rows[0]
        start = time.perf_counter()
        try:
            before = self._queries_of(row, kinds)
            if before is None or self._instances(row, kinds.lent(before)) is None:
                self._tell(row, 1)
                driver = Driver(row.run, self._place(), self._progress, overwrite=self._overwrite)
                with driver.command(f"query {', '.join(kinds.names)}"):
                    driver.ingest(row.tomogram, **self._reading)
                    driver.features(self._settings)
                    kinds.query(driver, self._settings)
                row = replace(row, notes=tuple(driver.notes))
            self._rows[0] = replace(row, seconds=time.perf_counter() - start)
            store = RunStore.open(row.run)
            return kinds.lent({name: borrow.take(store, name) for name in kinds.names})
        except Exception as error:
            self._settle(0, self._failed(row, error, start))
            raise

    def run(self, kinds: Kinds, *, fail_fast: bool, at_once: int | None) -> Summary:
        """Run every tomogram to its end. Those that are complete already are passed over."""
        todo = [index for index in range(len(self._rows)) if not self._pass_over(index, kinds)]
        self._write()
        stopped = self._run(todo, kinds, fail_fast, at_once) if todo else ""
        summary = Summary(self._folder, tuple(self._rows), stopped)
        return replace(summary, notes=tuple(join_picks(summary, kinds.names)))

    def _run(self, todo: Sequence[int], kinds: Kinds, fail_fast: bool, at_once: int | None) -> str:
        """Run tomograms; why those that are left were not, in words."""
        executor = self._place()  # that there is nowhere to run is no tomogram's fault
        crowd = Crowd(executor, at_once, lambda: self._bulks(todo, kinds)) if len(todo) > 1 else None
        failures, stopped = Failures(todo), ""
        lines = Lines((self._progress or NullProgress()).bars())

        def run(index: int, executor: Executor) -> Ended:
            row, start = self._rows[index], time.perf_counter()
            begins = functools.partial(jobs.tell, functools.partial(self._tell, row, index + 1))
            with lines.line(row.name) if jobs.threads else contextlib.nullcontext(self._progress) as progress:
                driver = Driver(row.run, executor, progress, overwrite=self._overwrite)
                try:
                    return self._one(index, driver, kinds, begins, start), None
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this tomogram's, and written down
                    return self._failed(row, error, start), error

        jobs = AtOnce(executor, run, crowd, lambda index: self._rows[index].name)
        if jobs.threads:
            lines.start()
        with contextlib.closing(lines), contextlib.closing(jobs.ends(todo)) as ends:
            for index, end in ends:
                row, error = end if isinstance(end, tuple) else (self._failed(self._rows[index], end), end)
                self._settle(index, row)
                if error is not None and not stopped:
                    stopped = why_stop(error, failures.add(index, error), fail_fast)
                if stopped:
                    jobs.stop()
        return stopped

    def _bulks(self, todo: Sequence[int], kinds: Kinds) -> Sequence[Bulk]:
        """The units of a tomogram, as planned for the first one that can be read; empty where none can be planned."""
        for index in todo:
            with contextlib.suppress(CryosamError, OSError):
                source = open_tomogram(self._rows[index].tomogram, **self._reading)
                options = Options(
                    workers=(1,),
                    machine=MACHINES["a100" if self._place().device.startswith("cuda") else "cpu"],
                    kinds=len(kinds.names),
                )
                return plan_run(source, self._settings, options).bulks
        return ()

    def _pass_over(self, index: int, kinds: Kinds) -> bool:
        """Whether a tomogram is complete; its row then says so."""
        row = self._rows[index]
        # one that can't be read fails when its turn comes
        with contextlib.suppress(CryosamError, OSError):
            count = self._instances(row, kinds)
            if count is not None:
                self._rows[index] = replace(row, status="skipped", instances=count, seconds=0.0)
                self._tell(self._rows[index], index + 1)
                return True
        return False

    def _one(self, index: int, driver: Driver, kinds: Kinds, begins: Callable[[], object], start: float) -> Row:
        """Run one tomogram."""
        row, prompted = self._rows[index], index == 0 and self._prompted
        requests = self._requests(row, kinds)
        if not prompted:  # the reference was said to begin when it was prompted
            begins()
        with driver.command(f"run {', '.join(kinds.names)}"):
            elsewhere = {name: loan for name, loan in kinds.loans.items() if not _same(row.run, loan.url)}
            for name in kinds.loans.keys() - elsewhere.keys():  # what is lent to the others goes on as it was made
                driver.check_lender(name, self._settings)
            if not prompted and elsewhere:
                source = open_tomogram(row.tomogram, **self._reading)
                for loan in elsewhere.values():
                    borrow.check(loan, self._settings, source.voxel_size, public(row.tomogram))
                driver.ingest(row.tomogram, **self._reading)
                driver.features(self._settings)
                Kinds(loans=elsewhere).query(driver, self._settings)
            kinds.find(driver)
            for name, request in requests.items():
                driver.store.group(layout.query(name)).attrs[COMPLETE] = request
        seconds = row.seconds + time.perf_counter() - start
        instances = self._instances(row, kinds)
        return replace(
            row, status="done", instances=instances, seconds=seconds, notes=(*row.notes, *driver.notes), error=""
        )

    def _queries_of(self, row: Row, kinds: Kinds) -> dict[str, borrow.Loan] | None:
        """The queries that a run has from these very points, if it has them all."""
        out: dict[str, borrow.Loan] = {}
        with contextlib.suppress(StoreError):
            store = RunStore.open(row.run)
            for name, points in kinds.points.items():
                loan = borrow.take(store, name)
                unlike = store.group(layout.query(name)).attrs.get(negative.POINTS, [])
                if borrow.origin(store, name) is not None or loan.origin["points"] != points:
                    return None
                if unlike != kinds.unlike(name):
                    return None
                out[name] = loan
            return out
        return None

    def _requests(self, row: Row, kinds: Kinds) -> dict[str, str]:
        """For each kind a fingerprint of all that its result depends on: the tomogram's content, the settings, the
        query, and the queries of the other kinds."""
        content = ingest.plan(open_tomogram(row.tomogram, **self._reading), row.tomogram, {}).fingerprint
        settings = self._settings.model_dump(mode="json")
        digests = {name: loan.origin["digest"] for name, loan in kinds.loans.items()}
        asked = {"input": content, "settings": settings}
        others: dict[str, Any] = {"kinds": digests} if kinds.several else {}
        return {name: fingerprint(asked | {"query": digest} | others) for name, digest in digests.items()}

    def _instances(self, row: Row, kinds: Kinds) -> int | None:
        """How many instances a run has that is complete for these kinds; None if it is not."""
        if not RunStore.exists(row.run):
            return None
        store, count = RunStore.open(row.run), 0
        if kinds.several and not marks.all_done(store, label.stage_name(layout.KINDS)):
            return None
        for name, request in self._requests(row, kinds).items():
            where = layout.query(name)
            if where not in store or store.group(where).attrs.get(COMPLETE) != request:
                return None
            if not marks.all_done(store, label.stage_name(name)):
                return None
            count += int(str(store.group(layout.picks(name)).attrs["kept"]))
        return count

    def _failed(self, row: Row, error: Exception, start: float | None = None) -> Row:
        """The row of a tomogram that failed. The traceback of what is not an error for users is kept in a file."""
        text = " ".join(str(error).split()) if isinstance(error, CryosamError) else one_line(error)
        if not isinstance(error, CryosamError | OSError):
            file = f"{row.name}.traceback.txt"
            logger.error("%s: %s", public(row.tomogram), text, exc_info=error)
            with contextlib.suppress(OSError, CryosamError):
                put_text(self._folder, file, "".join(traceback.format_exception(error)))
                text += f" (a defect of the program; see {file})"
        seconds = row.seconds + (0.0 if start is None else time.perf_counter() - start)
        return replace(row, status="failed", seconds=seconds, error=text)

    def _settle(self, index: int, row: Row) -> None:
        """Write down what became of a tomogram."""
        self._rows[index] = row
        self._write()
        logger.info("%s: %s", row.name, row.in_words())
        self._tell(row, index + 1)

    def _write(self) -> None:
        Summary(self._folder, tuple(self._rows)).write()

    def _tell(self, row: Row, number: int) -> None:
        if self._report is not None:
            self._report(row, number, len(self._rows))


def _same(address: str, other: str) -> bool:
    """Whether two addresses are of the same folder."""
    if is_local(address) and is_local(other):
        return Path(local_path(address)).expanduser().resolve() == Path(local_path(other)).expanduser().resolve()
    return address.rstrip("/") == other.rstrip("/")
