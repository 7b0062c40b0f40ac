"""Compares what was found with the truth: picks, instance and semantic masks, data sets, the CZII challenge's score."""

from cryosam_dask.evaluate.czii import CZII_OBJECTS, CziiObject, CziiScore, competition_counts, czii_score
from cryosam_dask.evaluate.dataset import DatasetEvaluation, TomogramPicks, evaluate_dataset
from cryosam_dask.evaluate.detection import CurvePoint, Evaluation, evaluate_picks, f_beta
from cryosam_dask.evaluate.masks import (
    MaskEvaluation,
    SemanticEvaluation,
    dice,
    evaluate_masks,
    evaluate_semantic,
    panoptic_quality,
)
from cryosam_dask.evaluate.radius import Radius, parse_radii, parse_radius
from cryosam_dask.evaluate.spread import Summary, bootstrap, summarise

__all__ = [
    "CZII_OBJECTS",
    "CurvePoint",
    "CziiObject",
    "CziiScore",
    "DatasetEvaluation",
    "Evaluation",
    "MaskEvaluation",
    "Radius",
    "SemanticEvaluation",
    "Summary",
    "TomogramPicks",
    "bootstrap",
    "competition_counts",
    "czii_score",
    "dice",
    "evaluate_dataset",
    "evaluate_masks",
    "evaluate_picks",
    "evaluate_semantic",
    "f_beta",
    "panoptic_quality",
    "parse_radii",
    "parse_radius",
    "summarise",
]
