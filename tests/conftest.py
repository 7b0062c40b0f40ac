"""Fixtures that several test modules share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import mrcfile
import numpy as np
import pytest

# tests find the modules beside them that they share
if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

from cryosam_dask import cli, geometry
from cryosam_dask.kernels import tokens as kernel
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import AXES, Shape3

# the same cases each time, and no deadlines: what chance finds is for `tests/campaigns`
hypothesis.settings.load_profile("ci")

MakeFeatures = Callable[..., str]


@pytest.fixture(autouse=True)
def _quiet_again() -> Iterator[None]:
    """What `cryosam -v` set for its process ends with the test."""
    ours = logging.getLogger("cryosam_dask")
    handlers, level = ours.handlers[:], ours.level
    yield
    ours.handlers[:] = handlers
    ours.setLevel(level)


@pytest.fixture
def cryosam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cryosam", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def random_features(tmp_path: Path) -> MakeFeatures:
    """Make a store with random latents of a given shape, without any model: `random_features(shape, …) -> url`."""

    def make(
        shape: Shape3,
        channels: int = 5,
        tokens: tuple[int, int, int] = (3, 4, 5),
        dtype: str = "float32",
        ratios: tuple[int, ...] = (4, 8, 16),
        seed: int = 0,
    ) -> str:
        url = str(tmp_path / f"random{seed}.zarr")
        attributes = {"shape": list(shape), "voxel_size": [10.0, 10.0, 10.0], "origin": [0.0, 0.0, 0.0]}
        store = RunStore.create(url, attributes)
        rng = np.random.default_rng(seed)
        for axis in AXES:
            grid = tuple(tokens[i] for i in geometry.plane_axes(axis))
            length = shape[geometry.axis_index(axis)]
            native = (rng.normal(size=(length, *grid, channels)) + 0.5).astype(np.float32)
            weights = [kernel.token_weights(n, t) for n, t in zip(geometry.plane_shape(shape, axis), grid, strict=True)]
            sums = np.einsum("nrcz,r,c->z", native.astype(np.float64), *weights)
            store.put(layout.feature_sums(axis), sums[None], (f"slab_{axis}", "channel"))
            for ratio in (1, *ratios):
                latents = kernel.average_slices(native, ratio).astype(dtype)
                dims = layout.view_dims(axis)
                store.put(layout.latents(ratio, axis), latents, (*dims, "channel"))
                store.put(layout.gram(ratio, axis), kernel.gram_maps(latents.astype(np.float32)), (*dims, "product"))
        store.update_info(
            features={"ratios": list(ratios), "channels": channels, "encoder": "random", "weights": "none"}
        )
        return url

    return make


BALLS = ((20, 20, 20), (18, 44, 24), (22, 22, 66), (14, 46, 70))
"""Centres of the balls of `ball_tomogram`."""


@pytest.fixture(scope="session")
def ball_tomogram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MRC of 37 × 62 × 90 voxels of 10 Å: four bright balls of radius 7 in noise."""
    z, y, x = np.indices((37, 62, 90))
    values = np.random.default_rng(0).normal(size=z.shape)
    for a, b, c in BALLS:
        values += 3.0 * ((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 49)
    path = tmp_path_factory.mktemp("balls") / "balls.mrc"
    with mrcfile.new(path, values.astype(np.float32)) as file:
        file.voxel_size = 10
    return path
