"""Settings: frozen, validated, JSON-able. What serves a pair of models is in `models.presets`.

A setting that changes a stage's result is part of that stage's fingerprint; nothing else in the program is tunable.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cryosam_dask.errors import SettingsError

Ratio = Literal[2, 4, 8, 16]
Odd = Annotated[int, Field(ge=1, le=31)]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def _check_odd(name: str, value: int) -> None:
    if value % 2 == 0:
        raise ValueError(f"{name} must be odd (so many slices around each), got {value}")


class FeatureSettings(_Settings):
    """How slices become tokens.

    encoder : name of the slice encoder, optionally `NAME=PATH` of its weights
    slice_size : side of the encoder's square input in pixels; None for one pixel per voxel
    ratios : pyramid ratios that are stored; dense_ratios : those also written as 3C-channel arrays
    thickness : slices averaged into each (1: none), against noise
    standardize : "none"; "scale": unit deviation per channel over the tomogram; "whiten": also uncorrelated
    tile, halo : tokens of a side in one forward pass, and extra ones around that are cropped
    batch : slices in one forward pass
    precision : the type that the encoder computes in; "auto" is half precision if the device gains from it
    """

    encoder: str
    slice_size: int | None = Field(default=None, ge=16)
    ratios: tuple[Ratio, ...] = (4, 8, 16)
    dense_ratios: tuple[Ratio, ...] = (16,)
    thickness: Odd = 1
    standardize: Literal["none", "scale", "whiten"] = "none"
    tile: int = Field(default=96, ge=8)
    halo: int = Field(default=8, ge=0)
    batch: int = Field(default=4, ge=1)
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_odd("thickness", self.thickness)
        if missing := set(self.dense_ratios) - set(self.ratios):
            raise ValueError(f"dense_ratios {sorted(missing)} are not among ratios {self.ratios}")
        if self.halo * 2 >= self.tile:
            raise ValueError(f"halo {self.halo} must be less than half of tile {self.tile}")
        return self


class PropagationRules(_Settings):
    """How walkers stop and how planes are merged.

    Attributes
    ----------
    tau_iou : a mask must have a larger IoU than this with the mask on the plane before. Lobed particles change
        quickly between planes: with the guards in force, 0.3 follows them to their ends
    max_area : a mask must have fewer pixels than this; None: any
    rule : "plain" stops by these two alone, as published. "guarded" also stops where the mask is no longer like
        the start plane's, by the next five
    min_contrast : of the start mask's contrast with its surroundings. Half is the same criterion along the walk
        as the threshold between two classes is in the plane
    min_area_ratio, max_area_ratio : of the start mask's area
    max_drift : how far the centre may be from the start mask's, in radii of the start mask; some radii, since
        a tube or a wall that crosses the planes at a slant is to be followed some way
    max_reach : how many planes one walker may go, in diameters of the start mask
    merge : "union" of the three axes' stacks, as published; "agreement" keeps voxels that are in at least `min_votes`
    """

    tau_iou: float = Field(default=0.5, ge=0, le=1)
    max_area: int | None = Field(default=None, ge=1)
    rule: Literal["plain", "guarded"] = "guarded"
    min_contrast: float = Field(default=0.5, ge=0, le=1)
    min_area_ratio: float = Field(default=0.1, ge=0, le=1)
    max_area_ratio: float = Field(default=2.0, ge=1)
    max_drift: float = Field(default=4.0, gt=0)
    max_reach: float = Field(default=4.0, gt=0)
    merge: Literal["union", "agreement"] = "agreement"
    min_votes: int = Field(default=2, ge=1, le=3)


class PropagationSettings(PropagationRules):
    """How a point becomes a 3D mask: the rules, the model, and how the work is divided.

    Attributes
    ----------
    segmenter : name of the prompted segmenter, optionally `NAME=PATH` of its weights
    plane_thickness : slices averaged into each plane (1: none), against noise
    precision : the type that the segmenter embeds in, as for features
    group : prompts in one unit of work
    """

    segmenter: str
    plane_thickness: Odd = 1
    precision: Precision = "auto"
    group: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_odd("plane_thickness", self.plane_thickness)
        return self


class MatchSettings(_Settings):
    """How places that are like the query are found.

    ratios : from coarse to fine; `(1,)` is the naive matching
    tau_sim : similarity that a cell must reach to be evaluated on the next ratio, and to become a proposal
    rank : how proposals are ordered: by their "similarity", as published; by the "profile" of the density around
        them in the tomogram, which distinguishes particles that differ in size or amplitude (`kernels.likeness`); or
        by the "descriptor" that a segmenter of volumes gives them (`kernels.descriptors`)
    count : K, the number of prompts to keep, or "auto", which finds a cut from the scores (`stages.cut`), and says so
        where nothing stands out
    center : cosine of F − μ and F_Q − μ instead of F and F_Q
    nms_radius : least distance of two prompts in voxels; None: from the ratio and the prompted instance's size
    structure : "particle", which has a size; "extended", as a membrane or a filament, which has none
        (`stages.structure`); "auto": by the prompted masks
    """

    ratios: tuple[Literal[1, 2, 4, 8, 16], ...] = (16, 8, 4)
    tau_sim: float = Field(default=0.5, ge=-1, lt=1)
    rank: Literal["similarity", "profile", "descriptor"] = "similarity"
    count: Annotated[int, Field(ge=1)] | Literal["auto"] = 512
    center: bool = False
    nms_radius: float | None = Field(default=None, gt=0)
    structure: Literal["auto", "particle", "extended"] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.ratios or list(self.ratios) != sorted(set(self.ratios), reverse=True):
            raise ValueError(f"ratios go from coarse to fine, each once, as 16,8,4; got {self.ratios}")
        return self


class LabelSettings(_Settings):
    """Which instances are kept.

    overlap : an instance with more than this share of its voxels inside a better one is a duplicate
    """

    overlap: float = Field(default=0.8, gt=0, le=1)


class Settings(_Settings):
    """All settings of a run."""

    preset: str
    features: FeatureSettings
    propagation: PropagationSettings
    match: MatchSettings = MatchSettings()
    label: LabelSettings = LabelSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if missing := set(self.match.ratios) - {1} - set(self.features.ratios):
            raise ValueError(f"match.ratios {sorted(missing)} are not among features.ratios {self.features.ratios}")
        return self

    def replace(self, values: dict[str, Any]) -> Settings:
        """A copy with dotted settings changed: `{"match.tau_sim": 0.4}`. `SettingsError` for a wrong name or value."""
        data = self.model_dump()
        for name, value in values.items():
            section, _, key = name.partition(".")
            if section not in data or not key or not isinstance(data[section], dict) or key not in data[section]:
                known = ", ".join(f"{s}.{k}" for s, v in data.items() if isinstance(v, dict) for k in v)
                raise SettingsError(f"no setting {name!r}; known: {known}")
            data[section][key] = value
        return _validated(data)


def _validated(data: dict[str, Any]) -> Settings:
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part.isidentifier())
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"setting {where or '(combination)'}: {message}, got {first['input']!r:.80}") from None
