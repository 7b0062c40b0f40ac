"""A whole run with the built-in models, small enough to be broken many times."""

from __future__ import annotations

from pathlib import Path

import cryosam_dask as cs
from cryosam_dask.executors import Executor
from cryosam_dask.pipeline import Driver, settings_for
from cryosam_dask.settings import Settings

POINT = (20.0, 20.0, 20.0)
NAME = "particle"

STAGES = (
    "ingest",
    "features-standardization",
    "features",
    "features-dense",
    "embeddings",
    "segment/queries/*",
    "query/*",
    "project/*",
    "match/*",
    "rank/*",
    "segment/instances/*",
    "label/*",
)
"""Names of all stages of a run, as patterns, in the order in which they begin."""


def settings() -> Settings:
    return settings_for("texture+random-walker", {"match.count": 3})


ARGUMENTS = ("--point", "20,20,20", "--models", "texture+random-walker", "--count", "3")
"""Options of `cryosam run` that mean the same as `whole_run`."""


def whole_run(tomogram: Path, out: Path, executor: Executor) -> Driver:
    """From a tomogram and a click to labels and picks; goes on with what is there."""
    driver = Driver(out, executor)
    driver.ingest(tomogram)
    driver.features(settings())
    driver.query(NAME, [POINT], settings())
    driver.match(NAME)
    driver.segment(NAME)
    return driver


def reference(tomogram: Path, out: Path) -> Path:
    """The run that nothing has disturbed, in this process."""
    cs.run(tomogram, [POINT], out, name=NAME, settings=settings(), workers=0)
    return out


def contents(run: Path) -> dict[str, bytes]:
    """All chunks that a stage made, by path, as they are stored: labels, picks, instances, similarity, features, …"""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name != "zarr.json" and "c" in path.parts and "marks" not in path.parts
    }


def differences(run: Path, expected: Path) -> list[str]:
    """Paths of chunks that are not the same, bit for bit, in both runs."""
    one, other = contents(run), contents(expected)
    return sorted(path for path in {*one, *other} if one.get(path) != other.get(path))


def unmarked(run: Path) -> dict[str, int]:
    """Stages with units that are not marked done, embeddings aside: only planes that are needed are embedded."""
    from cryosam_dask.store import layout, marks
    from cryosam_dask.store.run_store import RunStore

    store = RunStore.open(run)
    root = run / "marks"
    names = [str(path.parent.relative_to(root)) for path in root.rglob("zarr.json") if (path.parent / "c").is_dir()]
    assert all(layout.marks(name) in store for name in names)
    left = {name: int((~marks.done(store, name)).sum()) for name in names if name != "embeddings"}
    return {name: count for name, count in left.items() if count}
