"""What a simulated tomogram is made of: frozen, checked and JSON-able."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from cryosam_dask.simulate.checks import is_count, is_number, require
from cryosam_dask.simulate.ice import Ice
from cryosam_dask.simulate.species import DISTRACTORS, SHAPES, TARGETS, Species
from cryosam_dask.simulate.structures import CLASSES, Structure
from cryosam_dask.types import Shape3

__all__ = ["DISTRACTORS", "GAP_VOXELS", "SHAPES", "TARGETS", "SimulationSettings", "Species"]

GAP_VOXELS = 2.0  # clearance between the bounding spheres of two particles, and to the volume's faces


@dataclass(frozen=True)
class SimulationSettings:
    """Settings of `simulate`; equal settings give the same tomogram, bit for bit.

    Attributes
    ----------
    shape : (z, y, x) voxels
    voxel_size : ångström
    seed : of everything random; `snr` and the optics don't change where particles stand
    snr : variance of the noise-free signal (after missing wedge and contrast transfer) over the variance of
        the noise, both over the whole volume; None adds no noise
    species : kinds of particles; by default three targets of different size and shape and small distractors
    membranes : number of spherical vesicles, which may reach beyond the volume
    structures : membranes of other forms, filaments, microtubules and gold beads, in the order in which they are placed
    touching : None keeps the particles' bounding spheres apart; a number packs particles by their masks, which never
        overlap, and puts this share of them (0 to 1) against another particle
    cytosol : share of the volume (0 to 0.25) filled with globules of 4 to 9 nm, which overlap nothing and may reach
        beyond the volume
    ice : the shape of the ice and its unevenness; None fills the volume evenly
    tilt_range, tilt_step : degrees; (-90, 90) leaves no missing wedge
    tilt_axis : degrees in the plane of y and x, from the y axis towards the x axis
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
    structures: tuple[Structure, ...] = ()
    touching: float | None = None
    cytosol: float = 0.0
    ice: Ice | None = None
    tilt_range: tuple[float, float] = (-60.0, 60.0)
    tilt_step: float = 3.0
    tilt_axis: float = 0.0
    defocus: float = 3.0
    voltage: float = 300.0
    cs: float = 2.7
    amplitude: float = 0.07
    bfactor: float = 10.0
    phase_flip: bool = True
    contrast: Literal["bright", "dark"] = "bright"

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        require(
            len(shape) == 3 and all(is_count(n) and n >= 16 for n in shape),
            "shape",
            "three whole numbers (z, y, x) of 16 or more",
            self.shape,
        )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "species", tuple(self.species))
        object.__setattr__(self, "structures", tuple(self.structures))
        object.__setattr__(self, "tilt_range", tuple(self.tilt_range))
        self._check_numbers()
        low, high = self._tilts()
        require(-90 <= low < high <= 90, "tilt_range", "-90 <= low < high <= 90 degrees", self.tilt_range)
        require(self.tilt_step <= high - low, "tilt_step", "no more than the tilt range", self.tilt_step)
        require(is_count(self.seed), "seed", "a whole number from 0", self.seed)
        require(is_count(self.membranes), "membranes", "a whole number from 0", self.membranes)
        require(self.contrast in ("bright", "dark"), "contrast", "bright or dark", self.contrast)
        require(isinstance(self.phase_flip, bool), "phase_flip", "true or false", self.phase_flip)
        self._check_species()

    def _tilts(self) -> tuple[float, float]:
        ok = len(self.tilt_range) == 2 and all(is_number(t) for t in self.tilt_range)
        require(ok, "tilt_range", "two angles in degrees", self.tilt_range)
        return self.tilt_range

    def _check_numbers(self) -> None:
        for name in ("voxel_size", "tilt_step", "voltage"):
            value = getattr(self, name)
            require(is_number(value) and value > 0, name, "a number above 0", value)
        for name in ("defocus", "cs", "bfactor"):
            value = getattr(self, name)
            require(is_number(value) and value >= 0, name, "a number from 0", value)
        require(is_number(self.amplitude) and 0 <= self.amplitude <= 1, "amplitude", "0 to 1", self.amplitude)
        require(is_number(self.tilt_axis), "tilt_axis", "degrees", self.tilt_axis)
        share = is_number(self.cytosol) and 0 <= self.cytosol <= 0.25
        require(share, "cytosol", "a share from 0 to 0.25", self.cytosol)
        share = self.touching is None or (is_number(self.touching) and 0 <= self.touching <= 1)
        require(share, "touching", "a share from 0 to 1, or none", self.touching)
        ok = self.snr is None or (is_number(self.snr) and self.snr > 0)
        require(ok, "snr", "a number above 0, or none", self.snr)

    def _check_species(self) -> None:
        names = [s.name for s in self.species]
        require(len(set(names)) == len(names), "species", "a different name for each", names)
        taken = sorted(set(names) & set(CLASSES))
        require(not taken, "species", f"names other than {', '.join(CLASSES)}", taken)
        require(len(names) <= 255 - len(CLASSES), "species", f"at most {255 - len(CLASSES)}", len(names))
        counts = [self.membranes, self.cytosol, *(s.count for s in self.species), *(s.count for s in self.structures)]
        require(any(counts), "species", "something to draw", names)
        side = (min(self.shape) - 2 * GAP_VOXELS) * self.voxel_size / 10
        for s in self.species:
            require(
                s.count == 0 or s.diameter < side,
                f"{s.name}.diameter",
                f"below {side:.1f} nm to fit in {self.shape} voxels",
                s.diameter,
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes; `from_dict` gives the settings back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SimulationSettings:
        """Settings from plain values, e.g. from JSON; unknown names raise SettingsError."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        require(not unknown, ", ".join(unknown), f"one of {', '.join(sorted(known))}", unknown)
        given = dict(values)
        if "structures" in given:
            given["structures"] = tuple(Structure.of(s) for s in given["structures"])
        if isinstance(given.get("ice"), Mapping):
            given["ice"] = Ice.of(given["ice"])
        if "species" in given:
            given["species"] = tuple(Species.of(s) for s in given["species"])
        return cls(**given)
