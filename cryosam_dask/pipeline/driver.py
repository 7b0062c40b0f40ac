"""The driver has one method for each command. It runs the stages in order, on any executor."""

from __future__ import annotations

from collections.abc import Sequence

from cryosam_dask.errors import InputError
from cryosam_dask.pipeline import checks, recut
from cryosam_dask.pipeline.runner import command, stage_fingerprint
from cryosam_dask.pipeline.searching import Searching
from cryosam_dask.settings import Settings
from cryosam_dask.stages import chain, negative, query, refine, segment, select
from cryosam_dask.store import layout, marks, picks, reviews
from cryosam_dask.store.reviews import Decision
from cryosam_dask.store.run_store import RunStore


class Driver(Searching):
    """Runs stages on a store. Each method is one command and skips what is done. Attributes are those of `Runner`.

    The commands are in `preparing` (ingest, features), `querying` (query, borrow, forget) and `searching` (compare,
    match, choose, segment); here are those that take decisions and learn from them.
    """

    def review(self, name: str, decided: Sequence[Decision], by: str | None = None) -> list[Decision]:
        """Write decisions about the picks of a query; each is on the disk when this returns. See `store.reviews`.

        Others may write the run meanwhile: this is no command, and takes no lease.
        """
        store = RunStore.open(self.url, "r+")
        checks.queried(store, name)
        return reviews.ReviewLog(store, name, by).write(decided)

    @command
    def refine(self, name: str) -> list[str]:
        """Learn from the decisions about a query's picks: `match` and `segment` then find better ones.

        Returns the names that `segment` is to be given then: of all kinds, where the picks competed with other kinds'.
        `InputError` if nothing was decided. Decisions of which all are of one verdict are enough.
        """
        store, settings = self._queried(name)
        decided = reviews.standing(store, name)
        if not decided:
            raise InputError(f"{self.url}: nothing was decided about the picks of {name!r}; `cryosam review` does that")
        upstream = negative.joined(store, name, stage_fingerprint(store, query.stage_name(name)))
        stage, kinds = refine.plan(store, name, settings, decided, upstream), self._competing(name)
        if (marks.found_stage(store, stage.name) or {}).get("fingerprint") != stage.fingerprint:
            recut.keep(store, name, settings.propagation.group)
            self._forget_refined(name, settings, kinds)
        self._named(stage)
        accepted = sum(decision.verdict != "rejected" for decision in decided)
        self.note(f"{name}: learned from {accepted} accepted and {len(decided) - accepted} rejected places")
        return kinds or [name]

    def _competing(self, name: str) -> list[str]:
        """The kinds that a query's picks competed with, itself included; or did, before they were to be made anew."""
        store = self.store
        about = store.group(layout.query(name)).attrs
        kinds = picks.kinds(store, name) if name in picks.names(store) else about.get(layout.KINDS, [])
        about[layout.KINDS] = kinds
        return [str(kind) for kind in kinds] if isinstance(kinds, list) else []

    def _forget_refined(self, name: str, settings: Settings, kinds: Sequence[str]) -> None:
        """Remove what was learned from other decisions, and what follows from it."""
        for kind in kinds:
            if kind != name:  # these compete anew
                chain.forget(self.store, kind, after=select.STAGE.name, itself=True)
        if settings.match.rank == "similarity":
            chain.forget(self.store, name, after=refine.STAGE.name, itself=True)
            return
        # what was seen of the places stays: only what is believed of them changes
        chain.forget(self.store, name, after=segment.PROPOSALS.stage, itself=True)
        for path in refine.STAGE.places(self.store, name):
            self.store.delete(path)
        self.store.delete(refine.STAGE.marks(name))
