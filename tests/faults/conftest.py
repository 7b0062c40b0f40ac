"""Faults are injected by workers and by programs that tests start: they must find these modules by their names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "executors")]

from whole_run import reference  # noqa: E402 - found by its name only now

from cryosam_dask.executors.local import close_local, local_client  # noqa: E402
from cryosam_dask.executors.watch import Watch  # noqa: E402


@pytest.fixture(scope="session")
def undisturbed(ball_tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on `ball_tomogram`. Tests must not change it."""
    return reference(ball_tomogram, tmp_path_factory.mktemp("undisturbed") / "run.zarr")


@pytest.fixture(scope="module")
def nannied() -> Iterator[object]:
    """Two local workers, each with a nanny that starts it again."""
    client = local_client(2)
    yield client
    close_local(client)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have time fly for what hangs, and for nothing else, however slow or busy the machine is.

    `hurry(hangs, silent)`: a day has passed for each run of a unit of which `hangs(flown)` is true, once, and for the
    workers at the addresses `silent`.
    """
    day = 86400.0

    def install(hangs: Callable[[Any], bool] = lambda one: False, silent: Collection[str] = ()) -> None:
        aged: set[tuple[str, str]] = set()
        original = Watch.hung

        def hung(self: Watch, flown: Any, *args: Any) -> Any:
            for one in flown:
                run = (one.unit.name, one.process)
                if one.began is not None and run not in aged and hangs(one):
                    aged.add(run)
                    one.began -= day
            self._silent.update(dict.fromkeys(silent, self._looked - day))
            self._looked -= day
            return original(self, flown, *args)

        monkeypatch.setattr(Watch, "hung", hung)

    return install
