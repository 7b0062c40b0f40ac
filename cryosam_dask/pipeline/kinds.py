"""What is looked for: kinds of particles, each clicked in the tomogram or known from a query made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cryosam_dask.errors import InputError
from cryosam_dask.io.points.plausible import check_corner, check_points, doubts
from cryosam_dask.pipeline.querying import lent
from cryosam_dask.stages import borrow, query_file
from cryosam_dask.stages.borrow import Loan
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import check_name
from cryosam_dask.types import AXES, Shape3

if TYPE_CHECKING:
    from cryosam_dask.pipeline.driver import Driver
    from cryosam_dask.settings import Settings

Points = Sequence[Sequence[float]]
Source = str | Path | Loan
PARTICLE = "particle"


@dataclass(frozen=True)
class Kinds:
    """The kinds that one run looks for.

    Attributes
    ----------
    points : by name, voxels (z, y, x) on particles of the kind; empty where all queries are borrowed
    loans : by name, queries made elsewhere
    negatives : voxels (z, y, x) on what is of none of the kinds
    """

    points: dict[str, list[list[float]]] = field(default_factory=dict)
    loans: dict[str, Loan] = field(default_factory=dict)
    negatives: list[list[float]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return list(self.points or self.loans)

    @property
    def several(self) -> bool:
        return len(self.names) > 1

    @property
    def loan(self) -> Loan | None:
        """The first borrowed query, if queries are borrowed: its settings are used for all, unless others are given."""
        return next(iter(self.loans.values()), None)

    def unlike(self, name: str) -> list[list[float]]:
        """Voxels that are not of a kind: the negatives, and the clicks on all other kinds."""
        return [*self.negatives, *(p for other, points in self.points.items() if other != name for p in points)]

    def check(self, shape: Shape3) -> None:
        """`InputError` for a point outside of the tomogram, and for points that are all at its corner."""
        for points in self.points.values():
            check_points(np.asarray(points, float), shape)
        if self.negatives:
            check_points(np.asarray(self.negatives, float), shape, "negative points")
        check_corner("prompts", self._clicked())

    def doubts(self, shape: Shape3) -> list[str]:
        """What a user should look at again: points that may be in other units than voxels of this tomogram."""
        unwanted = np.asarray(self.negatives, float).reshape(-1, 3)
        return doubts(self._clicked(), shape) + doubts(unwanted, shape, "points that are not wanted")

    def _clicked(self) -> NDArray[np.float64]:
        """(n, 3): the points of all kinds."""
        return np.array([point for points in self.points.values() for point in points], float).reshape(-1, 3)

    def query(self, driver: Driver, settings: Settings) -> None:
        """Make, or borrow, the query of each kind. Where one can't be made so, `StoreError` before any is.

        Doubts about the points are noted.
        """
        self.check(driver.store.shape)
        for note in self.doubts(driver.store.shape):
            driver.note(note)
        for name in self.names:
            driver.check_same(name, self.points.get(name), self.unlike(name))
        for name, loan in self.loans.items():
            if self.several and (differing := "; ".join(borrow.searched_otherwise(loan, settings))):
                driver.note(f"{name}: searched for as the others, not as where the query is from ({differing})")
            driver.borrow(name, loan, settings, self.negatives)
        for name, points in self.points.items():
            driver.query(name, points, settings, self.unlike(name))

    def find(self, driver: Driver) -> None:
        """Match and segment the particles of all kinds."""
        for name in self.names:
            driver.match(name)
        driver.segment(self.names if self.several else self.names[0])

    def lent(self, loans: Mapping[str, Loan]) -> Kinds:
        """The same kinds for another tomogram, with the queries that were made in this one."""
        return Kinds(loans={name: loans[name] for name in self.names})


def kinds_of(
    points: Points | Mapping[str, Points] | None,
    negatives: Points | None,
    query: Source | Sequence[Source] | Mapping[str, Loan] | None,
    name: str | Sequence[str] | None,
    where: str = "tomogram",
) -> Kinds:
    """The kinds that arguments of `run` and `run_many` ask for; `InputError` without points or query, or with both."""
    if (points is None) == (query is None):
        raise InputError(f"give points in the {where}, or a run to take the query from, one of the two")
    names = None if name is None else [name] if isinstance(name, str) else list(name)
    unwanted = _listed(negatives)
    if query is not None:
        return _checked(Kinds(loans=take(query, names), negatives=unwanted))
    if isinstance(points, Mapping):
        if names is not None:
            raise InputError(f"names {', '.join(names)}: points by name have their names already")
        clicked = {str(kind): _listed(places) for kind, places in points.items()}
        if empty := [kind for kind, places in clicked.items() if not places]:
            raise InputError(f"no points of {', '.join(empty)}")
        return _checked(Kinds(clicked, negatives=unwanted))
    if names is not None and len(names) != 1:
        raise InputError(f"names {', '.join(names)}: give the points of each, by its name")
    return _checked(Kinds({(names or [PARTICLE])[0]: _listed(points)}, negatives=unwanted))


def take(query: Source | Sequence[Source] | Mapping[str, Loan], names: Sequence[str] | None) -> dict[str, Loan]:
    """Read the queries of runs and files. Return them by the names that they get here.

    names : the queries to take from each run; None takes `PARTICLE`. A file has one query, which keeps its own
        name. Where there are only files, names may be given, one for each
    """
    if isinstance(query, Mapping):
        return dict(query)
    sources = [query] if isinstance(query, str | Path | Loan) else list(query)
    alone = [isinstance(source, Loan) or query_file.is_file(source) for source in sources]
    renamed = names if names is not None and all(alone) else None
    if renamed is not None and len(renamed) != len(sources):
        raise InputError(f"{len(renamed)} names of {len(sources)} files of queries: give one for each, or none")
    loans: list[Loan] = []
    for i, source in enumerate(sources):
        if isinstance(source, Loan) or query_file.is_file(source):
            loan = source if isinstance(source, Loan) else query_file.read(source)
            loans.append(loan if renamed is None else query_file.renamed(loan, renamed[i]))
        else:
            loans += [lent(source, name) for name in names or [PARTICLE]]
    out: dict[str, Loan] = {}
    for loan in loans:
        if loan.name in out:
            raise InputError(
                f"{loan.url}: there are two queries called {loan.name!r}; take both from files (`cryosam export --what "
                "query`), and give each a --name"
            )
        out[loan.name] = loan
    return out


def _listed(points: Points | None) -> list[list[float]]:
    """(n, 3) positions as lists; whether they lie in the tomogram is looked at later."""
    if hasattr(points, "columns"):  # a table of pandas, in whatever order
        table: Any = points
        points = table[list(AXES)].to_numpy()
    try:
        positions = np.array([] if points is None else points, np.float64, ndmin=2)
    except (TypeError, ValueError):
        raise InputError(f"points {str(points)[:60]}: expected numbers Z,Y,X") from None
    if positions.size and (positions.ndim != 2 or positions.shape[1] != 3):
        raise InputError(
            f"points of shape {positions.shape}: expected three numbers Z,Y,X for each of one or more points"
        )
    return [[float(v) for v in point] for point in positions.reshape(-1, 3)]


def _checked(kinds: Kinds) -> Kinds:
    for name in kinds.names:
        check_name(name)
    if kinds.several and layout.KINDS in kinds.names:
        raise InputError(f"labels/{layout.KINDS} is to be the image of all kinds; call that one otherwise")
    places: dict[tuple[float, ...], str] = {}
    for what, points in (*kinds.points.items(), ("what is not wanted", kinds.negatives)):
        for point in points:
            if (other := places.setdefault(tuple(point), what)) != what:
                place = ",".join(f"{v:g}" for v in point)
                raise InputError(f"{place} is a point of {other} and of {what}; a place is of one kind")
    if not 1 <= len(kinds.names) <= layout.MOST_KINDS:
        raise InputError(f"{len(kinds.names)} kinds: expected 1 to {layout.MOST_KINDS}")
    return kinds
