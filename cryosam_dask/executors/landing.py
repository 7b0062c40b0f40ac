"""The outcomes of finished futures: a result, an exception, or nothing yet where the result can't be fetched."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cryosam_dask.executors.connection import CANCELLED
from cryosam_dask.executors.outcomes import Finished
from cryosam_dask.executors.worker_calls import unlike

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

FETCH = 10.0
"""Seconds for results, which are small, to come from workers."""


def landed_outcomes(
    client: Client, futures: Sequence[Future[Finished]]
) -> dict[Future[Finished], Finished | BaseException]:
    """The results or exceptions of finished futures. Futures whose results can't be fetched now, because their worker
    is lost or hangs, are left out: wait for them again. Dask computes lost results again."""
    outcomes: dict[Future[Finished], Finished | BaseException] = {}
    well = [future for future in futures if future.status == "finished"]
    try:
        outcomes.update(zip(well, _fetch(client, well), strict=True))
    except CANCELLED:
        raise
    except TimeoutError:
        logger.debug("results of %d units can't be had yet", len(well))
    except Exception:  # noqa: BLE001 - which of them it was is found one by one
        each = {future: _outcome(future) for future in well}
        outcomes.update((future, outcome) for future, outcome in each.items() if not isinstance(outcome, TimeoutError))
    for future in futures:
        if future.status in ("error", "cancelled"):
            outcomes[future] = _outcome(future)
    return outcomes


def _fetch(client: Client, futures: list[Future[Finished]]) -> list[Finished]:
    """Results, in one message; `TimeoutError` if they do not come."""
    if not futures:
        return []
    gather = functools.partial(client.gather, futures, asynchronous=True)
    results: list[Finished] = client.sync(gather, asynchronous=False, callback_timeout=FETCH)
    return results


def _outcome(future: Future[Finished]) -> Finished | BaseException:
    try:
        finished: Finished = future.result(timeout=FETCH)
    except CANCELLED:
        raise
    except Exception as error:  # noqa: BLE001 - what to do with a failed unit is the caller's to decide
        if str(error).startswith("Error during deserialization"):
            return unlike("the scheduler or a worker", error.__cause__ or error)
        return error
    return finished
