"""The score of the CZII challenge: F-beta with β = 4, per-class radii and class weights.

"CZII - CryoET Object Identification", Kaggle, November 2024 to February 2025
(https://www.kaggle.com/competitions/czii-cryo-et-object-identification, metric czi-cryoet-84969). Its organisers keep
the metric in https://github.com/czimaginginstitute/czii_cryoet_mlchallenge_winning_models
(`src/topcup/postprocess/metric.py`) and its radii and weights in the copick configuration of that repository's README.
Tomograms and picks are on the CryoET Data Portal, datasets 10445 and 10446.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cryosam_dask.errors import InputError
from cryosam_dask.evaluate.detection import Float64, f_beta, positions, rank_picks

Matching = Literal["competition", "one-to-one"]


class CziiObject(NamedTuple):
    """A class of the challenge: its radius in Å, and what its F-beta weighs in the score."""

    name: str
    radius: float
    weight: float


CZII_OBJECTS = (
    CziiObject("apo-ferritin", 60.0, 1.0),
    CziiObject("beta-amylase", 65.0, 0.0),
    CziiObject("beta-galactosidase", 90.0, 2.0),
    CziiObject("ribosome", 150.0, 1.0),
    CziiObject("thyroglobulin", 130.0, 2.0),
    CziiObject("virus-like-particle", 135.0, 1.0),
)
CZII_BETA = 4.0
CZII_SHARE = 0.5
"""A pick is a hit within this share of the radius."""


class Counts(NamedTuple):
    """Numbers of hits, of picks that are not hits, and of particles that were missed."""

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def precision(self) -> float:
        """Hits among the picks; 0 without picks."""
        picks = self.true_positives + self.false_positives
        return self.true_positives / picks if picks > 0 else 0.0

    @property
    def recall(self) -> float:
        """Hits among the particles; 0 without particles."""
        truth = self.true_positives + self.false_negatives
        return self.true_positives / truth if truth > 0 else 0.0


@dataclass(frozen=True)
class CziiClass:
    """One class over all tomograms: what is in `Counts`, F-beta, and its weight."""

    name: str
    true_positives: int
    false_positives: int
    false_negatives: int
    precision: float
    recall: float
    f_beta: float
    weight: float


@dataclass(frozen=True)
class CziiScore:
    """score : Σ weight · F-beta / Σ weight over all classes; classes : each of them, in the order of the table."""

    score: float
    beta: float
    matching: str
    classes: tuple[CziiClass, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"classes": [asdict(c) for c in self.classes]}


def competition_counts(found: ArrayLike, truth: ArrayLike, radius: float) -> Counts:
    """The challenge's counts, which are not those of a one-to-one matching.

    Parameters
    ----------
    found, truth : (N, 3), (M, 3) in the unit of `radius`

    A particle is found when any pick is within the radius; that many are the true positives, all other picks are false
    ones. So further picks at one particle are false positives, as in a one-to-one matching. But a pick between two
    particles that are both within the radius finds both: true positives can be more than the picks, and false
    positives below 0. Both ways of counting agree where particles are more than two radii apart. A particle that is
    listed several times at the same place counts once.
    """
    from scipy.spatial import cKDTree

    places, targets = positions(found, "picks"), np.unique(positions(truth, "truth"), axis=0)
    if len(places) == 0 or len(targets) == 0:
        return Counts(0, len(places), len(targets))
    near = cKDTree(places).query_ball_point(targets, radius, return_length=True)
    hits = int(np.count_nonzero(near))
    return Counts(hits, len(places) - hits, len(targets) - hits)


def one_to_one_counts(found: ArrayLike, truth: ArrayLike, radius: float) -> Counts:
    """Counts of the largest one-to-one matching; arguments as in `competition_counts`."""
    ranked = rank_picks(found, None, truth, radius)
    hits = int(ranked.hits.sum())
    return Counts(hits, len(ranked.scores) - hits, ranked.truth - hits)


def czii_score(
    found: Mapping[str, Mapping[str, ArrayLike]],
    truth: Mapping[str, Mapping[str, ArrayLike]],
    *,
    matching: Matching = "competition",
    objects: Sequence[CziiObject] = CZII_OBJECTS,
    beta: float = CZII_BETA,
    share: float = CZII_SHARE,
) -> CziiScore:
    """The challenge's score.

    Parameters
    ----------
    found, truth : {tomogram: {class: (N, 3) Å (z, y, x)}}; only tomograms with any true particle count
    matching : how hits are counted, see `competition_counts`; "one-to-one" is the rule of `evaluate_picks`
    objects, beta, share : classes with radii (Å) and weights; a pick is a hit within `share` of the radius

    Counts are summed over tomograms for each class, F-beta is taken of the sums, and averaged with the weights of all
    classes: one without any true particle counts 0. Raises InputError for classes that are not in `objects`.
    """
    known = {o.name: o for o in objects}
    total = sum(o.weight for o in objects)
    if not total > 0:
        raise InputError("czii: expected a class with a weight above 0")
    for side, what in ((found, "picks"), (truth, "truth")):
        unknown = sorted({kind for kinds in side.values() for kind in kinds} - set(known))
        if unknown:
            raise InputError(f"{what} of {', '.join(unknown)}: no class of the challenge; those are {', '.join(known)}")
    counted = {t: kinds for t, kinds in truth.items() if any(len(_of(kinds, name)) for name in kinds)}
    count = competition_counts if matching == "competition" else one_to_one_counts
    classes = []
    for name, species in known.items():
        parts: list[Counts] = []
        if any(len(_of(kinds, name)) for kinds in counted.values()):  # the challenge leaves out classes without truth
            for tomogram, kinds in counted.items():
                parts.append(count(_of(found.get(tomogram, {}), name), _of(kinds, name), share * species.radius))
        sums = Counts(*(sum(values) for values in zip(*parts, strict=True))) if parts else Counts(0, 0, 0)
        value = f_beta(sums.precision, sums.recall, beta)
        classes.append(CziiClass(name, *sums, sums.precision, sums.recall, value, species.weight))
    score = sum(c.f_beta * c.weight for c in classes) / total
    return CziiScore(float(score), float(beta), matching, tuple(classes))


def _of(kinds: Mapping[str, ArrayLike], name: str) -> Float64:
    return positions(kinds.get(name, ()), name)
