"""A stage small enough to see through: unit i writes the squares of its four numbers. Workers import this by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cryosam_dask.errors import InputError
from cryosam_dask.stages.base import Context, Region, Stage, Unit, UnitResult
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Json

ARRAY = "toy/squares"
WIDTH = 4


def new_store(folder: Path, units: int = 6) -> RunStore:
    store = RunStore.create(folder / "run.zarr", {})
    store.new_array(ARRAY, shape=(units * WIDTH,), dtype="float64", chunks=(WIDTH,), dims=("number",), fill_value=-1)
    return store


def toy_stage(
    folder: Path, units: int = 6, *, name: str = "toy", faults: dict[int, str] | None = None, **kwargs
) -> Stage:
    """Unit i counts its calls under `folder`; `faults[i]` says how it goes wrong."""
    faults = faults or {}
    return Stage(
        name=name,
        work=square,
        settings={"power": kwargs.pop("power", 2)},
        upstream="",
        units=tuple(
            Unit(
                name=f"unit {i}",
                marks=(i,),
                params={"index": i, "folder": str(folder), "fault": faults.get(i)},
                writes=(Region(ARRAY, (i * WIDTH,), ((i + 1) * WIDTH,)),),
                memory=1000 + i,
            )
            for i in range(units)
        ),
        count=units,
        **kwargs,
    )


def square(context: Context, settings: Json, unit: Unit) -> UnitResult | None:
    index, fault = unit.params["index"], unit.params["fault"]
    tries = note_call(Path(unit.params["folder"]), index)
    match fault:
        case "once" if tries == 1:
            raise RuntimeError("a passing trouble\nwith a second line")
        case "always":
            raise RuntimeError("a lasting trouble\nwith a second line")
        case "input":
            raise InputError("tomo.mrc: slice 3 holds NaN")
        case "full":
            raise OSError(28, "No space left on device")
        case "kill once" if tries == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "half" if tries == 1:
            write(context, unit, settings, slice(0, 2))
            raise RuntimeError("stopped half way")
        case "hang once" if tries == 1:
            time.sleep(600)
        case "slow":
            time.sleep(0.5)
        case "not done":
            return UnitResult({"waits": True}, done=False)
        case "none":
            write(context, unit, settings, slice(None))
            return None
    write(context, unit, settings, slice(None))
    return UnitResult({"index": index, "device": context.device})


def write(context: Context, unit: Unit, settings: Json, part: slice) -> None:
    (region,) = unit.writes
    numbers = np.arange(region.start[0], region.stop[0])[part] / 3.0
    start = region.start[0]
    RunStore.open(context.url, "r+").array(ARRAY)[start : start + len(numbers)] = numbers ** settings["power"]


def note_call(folder: Path, index: int) -> int:
    """Leave a file for this call; returns how many there are now."""
    (folder / f"call-{index}-{time.time_ns()}").touch()
    return len(list(folder.glob(f"call-{index}-*")))


def calls(folder: Path, units: int = 6) -> Sequence[int]:
    return [len(list(folder.glob(f"call-{i}-*"))) for i in range(units)]


def squares(units: int = 6) -> np.ndarray:
    return (np.arange(units * WIDTH) / 3.0) ** 2
