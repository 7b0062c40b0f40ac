"""Simulated cryo-ET tomograms with known truth: what is where, and which voxels belong to it."""

from __future__ import annotations

from cryosam_dask.simulate.ice import Ice
from cryosam_dask.simulate.maps import DensityMap, density_map, map_species
from cryosam_dask.simulate.presets import PRESETS, preset, random_species
from cryosam_dask.simulate.scene import StructureTruth
from cryosam_dask.simulate.settings import SimulationSettings
from cryosam_dask.simulate.simulation import simulate
from cryosam_dask.simulate.species import DISTRACTORS, TARGETS, Species
from cryosam_dask.simulate.splits import families_of, require_split, split_of_seed
from cryosam_dask.simulate.structures import Structure
from cryosam_dask.simulate.tomogram import Particle, SimulatedTomogram

__all__ = [
    "DISTRACTORS", "PRESETS", "TARGETS", "DensityMap", "Ice", "Particle", "SimulatedTomogram", "SimulationSettings",
    "Species", "Structure", "StructureTruth", "density_map", "families_of", "map_species", "preset", "random_species",
    "require_split", "simulate", "split_of_seed",
]  # fmt: skip
