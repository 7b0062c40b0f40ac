"""Runs many tomograms with the query that is clicked in one of them.

First the query is made in the tomogram with the click, the reference. Then one tomogram after the other is run to its
end, on one executor. A tomogram that fails gets a row with its error and does not stop the others. The same command,
given again, goes on with the tomograms that are not complete.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryosam_dask.errors import CryosamError, DeviceError, ExecutionError, InputError, ModelError, StoreError
from cryosam_dask.executors.base import Executor, one_line
from cryosam_dask.executors.connection import ConnectionLostError
from cryosam_dask.executors.progress import Progress
from cryosam_dask.io.listing import find_tomograms, is_many, run_names
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.models.registry import ensure_weights
from cryosam_dask.pipeline import Driver, Kinds, chosen_settings, kinds_of, uses_torch_of
from cryosam_dask.pipeline.kinds import Points, Source
from cryosam_dask.pipeline.summary import Row, Summary, join_picks, put_text
from cryosam_dask.settings import Settings
from cryosam_dask.stages import borrow, ingest, label, negative
from cryosam_dask.stages.base import fingerprint
from cryosam_dask.storage.address import is_local, local_path, public
from cryosam_dask.store import layout, marks
from cryosam_dask.store.run_store import RunStore

__all__ = ["Row", "Summary", "find_tomograms", "is_many", "run_many"]

logger = logging.getLogger(__name__)

COMPLETE = "complete"
"""Attribute of a complete query: fingerprint of the tomogram, the settings and the queries it was run with."""

BROKEN = 3
"""How many tomograms in a row units or workers may fail on before the rest is not tried."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

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
    fail_fast : stop at the first tomogram that fails
    report : called when a tomogram begins and when it ends

    Returns the summary, which is also written to `out_folder/summary.csv` after each tomogram. The run ends early
    (`Summary.stopped`) for a reason that the next tomogram would share: a full disk, a missing model or device, or
    `BROKEN` tomograms in a row that workers failed on.

    Errors in the arguments are raised before anything is run. Errors that keep the reference from having a query are
    raised, too, and a `KeyboardInterrupt` passes through. In each case the same command, given again, goes on.
    """
    from cryosam_dask.executors.choice import make_executor

    if executor is not None and where:
        raise ValueError(f"give an executor or {', '.join(where)}, not both")
    if reference is not None and points is None:
        raise InputError("a reference is the tomogram that the points are in; give points in it")
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

        def drive(url: str) -> Driver:
            nonlocal executor
            if executor is None:
                executor = opened.enter_context(make_executor(**where, uses_torch=uses_torch_of(chosen)))
            return Driver(url, executor, progress, overwrite=overwrite)

        batch = _Batch(str(out_folder).rstrip("/"), rows, drive, chosen, reading, report)
        if points is not None:
            kinds = batch.prompt(kinds)
        return batch.run(kinds, fail_fast=fail_fast)


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


class _Batch:
    """The tomograms of one command, what became of them, and how each is run. The first one is the reference."""

    def __init__(
        self,
        folder: str,
        rows: Sequence[Row],
        drive: Callable[[str], Driver],
        settings: Settings,
        reading: dict[str, Any],
        report: Report | None,
    ) -> None:
        self._folder, self._rows = folder, list(rows)
        self._drive, self._settings, self._reading = drive, settings, reading
        self._report = report
        self._prompted = False

    def prompt(self, kinds: Kinds) -> Kinds:
        """Make the queries in the reference, unless they are complete, and read them."""
        self._prompted, row = True, self._rows[0]
        start = time.perf_counter()
        try:
            before = self._queries_of(row, kinds)
            if before is None or self._instances(row, kinds.lent(before)) is None:
                self._tell(row, 1)
                driver = self._drive(row.run)
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

    def run(self, kinds: Kinds, *, fail_fast: bool) -> Summary:
        """Run every tomogram to its end. Those that are complete already are passed over."""
        todo = [index for index in range(len(self._rows)) if not self._pass_over(index, kinds)]
        self._write()
        if todo:
            self._drive(self._rows[todo[0]].run)  # that there is nowhere to run is no tomogram's fault
        stopped, broken = "", 0
        for index in todo:
            row, start = self._rows[index], time.perf_counter()
            try:
                done = self._one(index, row, kinds, start)
                broken = 0
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this tomogram's, and written down
                done = self._failed(row, error, start)
                # an input is at fault alone; what was thrown by workers or by a defect may be thrown again
                broken = broken + 1 if isinstance(error, ExecutionError) or not isinstance(error, CryosamError) else 0
                stopped = why_stop(error, broken, fail_fast)
            self._settle(index, done)
            if stopped:
                break
        summary = Summary(self._folder, tuple(self._rows), stopped)
        return replace(summary, notes=tuple(join_picks(summary, kinds.names)))

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

    def _one(self, index: int, row: Row, kinds: Kinds, start: float) -> Row:
        """Run one tomogram."""
        prompted = index == 0 and self._prompted
        requests = self._requests(row, kinds)
        if not prompted:  # the reference was said to begin when it was prompted
            self._tell(row, index + 1)
        driver = self._drive(row.run)
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

    def _failed(self, row: Row, error: Exception, start: float) -> Row:
        """The row of a tomogram that failed. The traceback of what is not an error for users is kept in a file."""
        text = " ".join(str(error).split()) if isinstance(error, CryosamError) else one_line(error)
        if not isinstance(error, CryosamError | OSError):
            file = f"{row.name}.traceback.txt"
            logger.error("%s: %s", public(row.tomogram), text, exc_info=error)
            with contextlib.suppress(OSError, CryosamError):
                put_text(self._folder, file, "".join(traceback.format_exception(error)))
                text += f" (a defect of the program; see {file})"
        seconds = row.seconds + time.perf_counter() - start
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


def why_stop(error: Exception, broken: int, fail_fast: bool) -> str:
    """Why the tomograms after one that failed are not tried; empty if they are."""
    if fail_fast:
        return "the first failure ends it, as asked"
    if isinstance(error, DeviceError | ModelError):
        return "the models can't run, and so on no other tomogram"
    if any(isinstance(cause, ConnectionLostError) for cause in _chain(error)):
        return "the scheduler is gone"
    if any(_is_full(cause) for cause in _chain(error)):
        return "results can't be written, and so of no other tomogram"
    if broken >= BROKEN:
        return f"{broken} tomograms in a row failed on the workers"
    return ""


def _is_full(error: BaseException) -> bool:
    """Whether the disk is full or read-only. What a worker raised has lost its cause on the way, but not its words."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return isinstance(error, StoreError) and any(os.strerror(number) in str(error) for number in _FULL)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all that led to it."""
    if error is not None:
        yield error
        yield from _chain(error.__cause__)
        if error.__context__ is not error.__cause__:
            yield from _chain(error.__context__)


def _same(address: str, other: str) -> bool:
    """Whether two addresses are of the same folder."""
    if is_local(address) and is_local(other):
        return Path(local_path(address)).expanduser().resolve() == Path(local_path(other)).expanduser().resolve()
    return address.rstrip("/") == other.rstrip("/")
