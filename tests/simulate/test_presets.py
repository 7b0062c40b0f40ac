"""Presets: what they made before is what they make, and each makes what it says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import numpy as np
import pytest

from cryosam_dask.errors import SettingsError
from cryosam_dask.simulate import PRESETS, SimulatedTomogram, SimulationSettings, preset, require_split, simulate

# preset, changes → digests of labels, semantic and particles; the volumes' products with fixed random vectors
RECORDED = [
    ("default", {}, "f91cedb12f110d1d", "4c82905a8746c340", "e9994a0ca8657cfc",
     -513.9114341548775, -1137.8005338840885),
    ("default", {"seed": 7, "snr": None, "contrast": "dark", "shape": (48, 120, 120),
                 "species": ({"name": "tetramer", "shape": "tetramer", "diameter": 12.0, "count": 12},)},
     "b777593ac9da6fdd", "93c957414b21ff8c", "f8d4f26c0c848b71", 297.09427583664365, 297.09427583664365),
    ("large", {}, "3ef78d227736b617", "96ca7ca22c9a37ba", "1a85f4eee9e8d1ec", 3029.2766076721196, 2796.949289808943),
    ("ribosome", {}, "e9bc2db0932911fd", "49eccca1451b26ad", "51bb7822ea2cf593",
     2194.228851791353, 1570.2057305491185),
    ("proteasome", {"seed": 3}, "e9490a7ef12441e1", "6927835ca5c4ebd0", "4f6d262fde0ff001",
     3217.432493840108, 1598.4751146152005),
    ("tetramer", {"voxel_size": 13.5, "phase_flip": False}, "d393f7eba7b70a27", "119d2c03fe5f5aec",
     "9a5a9cd69e6236d6", -955.3768478994858, -108.36218066014034),
]  # fmt: skip


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@pytest.mark.parametrize("row", RECORDED, ids=lambda row: row[0])
def test_presets_make_what_they_always_made(row: tuple[str, dict[str, object], str, str, str, float, float]) -> None:
    name, changes, labels, semantic, particles, *products = row
    made = simulate(preset(name, **changes))
    assert digest(made.labels.tobytes()) == labels
    assert digest(made.semantic.tobytes()) == semantic
    rows = "\n".join(f"{p.z:.6f},{p.y:.6f},{p.x:.6f},{p.instance},{p.species}" for p in made.particles)
    assert digest(rows.encode()) == particles
    # volumes are the same up to the rounding of a machine's Fourier transforms
    rng = np.random.default_rng(2026)
    z, y, x = (rng.standard_normal(n) for n in made.tomogram.shape)
    for volume, product in zip((made.tomogram, made.signal), products, strict=True):
        assert np.einsum("zyx,z,y,x->", volume.astype(float), z, y, x) == pytest.approx(product, abs=0.02)


SMALL = {"crowded": (64, 160, 160), "membranes": (64, 160, 160), "filaments": (64, 160, 160),
         "shapes": (64, 200, 200), "random": (48, 128, 128)}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_presets_are_the_same_each_time(
    name: str, same: Callable[[SimulatedTomogram, SimulatedTomogram], bool]
) -> None:
    settings = preset(name, seed=5, shape=SMALL[name])
    again = SimulationSettings.from_dict(json.loads(json.dumps(settings.to_dict())))
    assert again == settings
    made = simulate(settings)
    assert same(made, simulate(again))
    assert made.tomogram.std() == pytest.approx(1, abs=1e-3)
    assert np.isfinite(made.tomogram).all()
    assert not same(made, simulate(preset(name, seed=6, shape=SMALL[name])))


def test_presets_have_what_they_say() -> None:
    crowded, membranes, filaments = (preset(name) for name in ("crowded", "membranes", "filaments"))
    assert (crowded.touching, crowded.cytosol) == (0.5, 0.12)
    assert {s.kind for s in membranes.structures} == {"vesicle", "sheet", "double-membrane"}
    assert {s.kind for s in filaments.structures} == {"filament", "microtubule", "gold"}
    assert filaments.ice is not None
    assert len({s.shape for s in preset("shapes").species}) == 4
    with pytest.raises(SettingsError, match=", ".join(PRESETS)):
        preset("huge")
    with pytest.raises(SettingsError, match="seed"):
        preset("random", seed=-1)


def test_random_presets_differ_in_what_matters_and_keep_to_their_split() -> None:
    for first, split in ((0, "tune"), (1_000_000, "held-out")):
        many = [preset("random", seed=first + k) for k in range(40)]
        for settings in many:
            require_split(settings, split)  # type: ignore[arg-type]
        assert {s.contrast for s in many} == {"bright", "dark"}
        assert min(s.voxel_size for s in many) == 5.0
        assert max(s.voxel_size for s in many) == 20.0
        assert len({s.tilt_range for s in many}) > 10
        assert len({s.tilt_axis for s in many}) > 3
        assert min(s.defocus for s in many) < 2.5 < 6 < max(s.defocus for s in many)
        assert {k.kind for s in many for k in s.structures} == {
            "vesicle", "sheet", "double-membrane", "filament", "microtubule", "gold",
        }  # fmt: skip
