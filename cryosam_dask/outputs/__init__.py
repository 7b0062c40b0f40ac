"""Results of a run: files that other programs read, figures against a truth, a description."""

from cryosam_dask.outputs.copick_export import CopickChoice, export_copick
from cryosam_dask.outputs.description import describe, describe_in_words
from cryosam_dask.outputs.evaluation import RunsEvaluation, evaluate, evaluate_runs
from cryosam_dask.outputs.evaluation_files import write_curves, write_figures
from cryosam_dask.outputs.files import export
from cryosam_dask.outputs.labels import WHATS
from cryosam_dask.outputs.results import single_name
from cryosam_dask.outputs.review import review_figures, review_in_words, review_sentence

__all__ = [
    "WHATS",
    "CopickChoice",
    "RunsEvaluation",
    "describe",
    "describe_in_words",
    "evaluate",
    "evaluate_runs",
    "export",
    "export_copick",
    "review_figures",
    "review_in_words",
    "review_sentence",
    "single_name",
    "write_curves",
    "write_figures",
]
