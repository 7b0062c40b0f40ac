"""What comes of a run: files that other programs read, figures against a truth, a description."""

from cryosam_dask.outputs.description import describe, describe_in_words
from cryosam_dask.outputs.evaluation import evaluate
from cryosam_dask.outputs.files import export
from cryosam_dask.outputs.results import single_name

__all__ = ["describe", "describe_in_words", "evaluate", "export", "single_name"]
