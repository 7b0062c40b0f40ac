"""Settings of a simulated tomogram: frozen, checked, and writable as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from cryosam_dask.errors import SettingsError
from cryosam_dask.types import Shape3

ShapeName = Literal["ribosome", "barrel", "tetramer", "globule"]
SHAPES: tuple[str, ...] = get_args(ShapeName)
GAP_VOXELS = 2.0  # clearance between the bounding spheres of two particles, and to the volume's faces


def _require(ok: bool, name: str, expected: str, value: object) -> None:
    if not ok:
        raise SettingsError(f"simulation setting {name}: expected {expected}, found {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


@dataclass(frozen=True)
class Species:
    """One kind of particle.

    Attributes
    ----------
    name : of the species in the table of particles
    shape : "ribosome" (two irregular lobes), "barrel" (four stacked rings with a channel), "tetramer" (four
        compact lobes) or "globule" (one ellipsoid)
    diameter : nanometres, of the smallest sphere about the centre of mass that encloses the particle
    count : number of particles
    density : contrast to the solvent, relative to that of a protein
    """

    name: str
    shape: ShapeName
    diameter: float
    count: int
    density: float = 1.0

    def __post_init__(self) -> None:
        _require(isinstance(self.name, str) and bool(self.name), "species.name", "a word", self.name)
        _require(self.shape in SHAPES, f"{self.name}.shape", f"one of {', '.join(SHAPES)}", self.shape)
        _require(
            _is_number(self.diameter) and self.diameter > 0,
            f"{self.name}.diameter",
            "nanometres above 0",
            self.diameter,
        )
        _require(_is_count(self.count), f"{self.name}.count", "a whole number from 0", self.count)
        _require(
            _is_number(self.density) and self.density > 0, f"{self.name}.density", "a number above 0", self.density
        )


TARGETS: tuple[Species, ...] = (
    Species("ribosome", "ribosome", 25.0, 18, 1.2),
    Species("proteasome", "barrel", 15.0, 30),
    Species("tetramer", "tetramer", 12.0, 40),
)
DISTRACTORS: tuple[Species, ...] = (Species("small", "globule", 7.0, 120),)


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of `simulate`; equal settings give the same tomogram, bit for bit.

    Attributes
    ----------
    shape : (z, y, x) voxels
    voxel_size : ångström
    seed : of all random numbers; `snr` and the optics don't change the positions of particles
    snr : variance of the noise-free signal (after missing wedge and contrast transfer) over the variance of
        the noise, both over the whole volume; None adds no noise
    species : kinds of particles; by default three targets of different size and shape and small distractors
    membranes : number of spherical vesicles, which may reach beyond the volume
    tilt_range, tilt_step : degrees, about the y axis; (-90, 90) leaves no missing wedge
    defocus : µm of underfocus; voltage : kV; cs : spherical aberration in mm; amplitude : amplitude contrast;
        bfactor : nm², of the envelope exp(-B f²/4)
    phase_flip : whether the contrast transfer's sign is corrected, as reconstruction programs do
    contrast : whether particles are brighter or darker than the solvent
    """

    shape: Shape3 = (96, 192, 192)
    voxel_size: float = 10.0
    seed: int = 0
    snr: float | None = 1.0
    species: tuple[Species, ...] = TARGETS + DISTRACTORS
    membranes: int = 2
    tilt_range: tuple[float, float] = (-60.0, 60.0)
    tilt_step: float = 3.0
    defocus: float = 3.0
    voltage: float = 300.0
    cs: float = 2.7
    amplitude: float = 0.07
    bfactor: float = 10.0
    phase_flip: bool = True
    contrast: Literal["bright", "dark"] = "bright"

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        _require(
            len(shape) == 3 and all(_is_count(n) and n >= 16 for n in shape),
            "shape",
            "three whole numbers (z, y, x) of 16 or more",
            self.shape,
        )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "species", tuple(self.species))
        object.__setattr__(self, "tilt_range", tuple(self.tilt_range))
        self._check_numbers()
        low, high = self._tilts()
        _require(-90 <= low < high <= 90, "tilt_range", "-90 <= low < high <= 90 degrees", self.tilt_range)
        _require(self.tilt_step <= high - low, "tilt_step", "no more than the tilt range", self.tilt_step)
        _require(_is_count(self.seed), "seed", "a whole number from 0", self.seed)
        _require(_is_count(self.membranes), "membranes", "a whole number from 0", self.membranes)
        _require(self.contrast in ("bright", "dark"), "contrast", "bright or dark", self.contrast)
        _require(isinstance(self.phase_flip, bool), "phase_flip", "true or false", self.phase_flip)
        self._check_species()

    def _tilts(self) -> tuple[float, float]:
        ok = len(self.tilt_range) == 2 and all(_is_number(t) for t in self.tilt_range)
        _require(ok, "tilt_range", "two angles in degrees", self.tilt_range)
        return self.tilt_range

    def _check_numbers(self) -> None:
        for name in ("voxel_size", "tilt_step", "voltage"):
            value = getattr(self, name)
            _require(_is_number(value) and value > 0, name, "a number above 0", value)
        for name in ("defocus", "cs", "bfactor"):
            value = getattr(self, name)
            _require(_is_number(value) and value >= 0, name, "a number from 0", value)
        _require(_is_number(self.amplitude) and 0 <= self.amplitude <= 1, "amplitude", "0 to 1", self.amplitude)
        ok = self.snr is None or (_is_number(self.snr) and self.snr > 0)
        _require(ok, "snr", "a number above 0, or none", self.snr)

    def _check_species(self) -> None:
        names = [s.name for s in self.species]
        _require(len(set(names)) == len(names), "species", "a different name for each", names)
        _require("membrane" not in names, "species", "names other than 'membrane'", names)
        _require(len(names) <= 254, "species", "at most 254", len(names))
        _require(self.membranes > 0 or any(s.count for s in self.species), "species", "something to draw", names)
        side = (min(self.shape) - 2 * GAP_VOXELS) * self.voxel_size / 10
        for s in self.species:
            _require(
                s.count == 0 or s.diameter < side,
                f"{s.name}.diameter",
                f"below {side:.1f} nm to fit in {self.shape} voxels",
                s.diameter,
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values for `json.dumps`; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SimulationSettings:
        """Settings from plain values, e.g. from JSON; unknown names raise SettingsError."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        _require(not unknown, ", ".join(unknown), f"one of {', '.join(sorted(known))}", unknown)
        given = dict(values)
        if "species" in given:
            given["species"] = tuple(_species(s) for s in given["species"])
        return cls(**given)


def _species(value: Species | Mapping[str, Any]) -> Species:
    if isinstance(value, Species):
        return value
    names = [f.name for f in fields(Species)]
    ok = isinstance(value, Mapping) and {"name", "shape", "diameter", "count"} <= set(value) <= set(names)
    _require(ok, "species", f"entries with {', '.join(names)}", value)
    return Species(**value)


def preset(name: str, **changes: Any) -> SimulationSettings:
    """Settings by name, with changes.

    "default" has 96×192×192 voxels, with three target species among small distractors and membranes. "large" has the
    same species in 128×256×256. "ribosome", "proteasome" and "tetramer" are quick: they have one target species among
    the distractors.
    """
    presets: dict[str, dict[str, Any]] = {"default": {}, "large": {"shape": (128, 256, 256)}}
    presets |= {s.name: {"species": (s, *DISTRACTORS)} for s in TARGETS}
    _require(name in presets, "preset", f"one of {', '.join(presets)}", name)
    return SimulationSettings.from_dict(presets[name] | changes)
