"""The whole job in one call, from a tomogram and clicks to labels and picks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryosam_dask.executors.dask import UNIT_TIMEOUT
from cryosam_dask.executors.progress import Progress
from cryosam_dask.io.arrays import ArraySource
from cryosam_dask.io.frame import TomogramSource
from cryosam_dask.io.source import open_tomogram
from cryosam_dask.models import registry
from cryosam_dask.models.catalog import encoder_info, segmenter_entry
from cryosam_dask.models.presets import PRESETS, check, parse_models, preset
from cryosam_dask.pipeline.driver import Driver
from cryosam_dask.pipeline.kinds import Points, Source, kinds_of
from cryosam_dask.settings import Settings
from cryosam_dask.stages import borrow
from cryosam_dask.stages.borrow import Loan
from cryosam_dask.storage.address import public
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.types import Volume

if TYPE_CHECKING:
    from distributed import Client, Security


def settings_for(models: str, overrides: dict[str, Any] | None = None) -> Settings:
    """Return the settings of a models spec ("builtin", "paper", "ENCODER+SEGMENTER"), with dotted overrides."""
    encoder, segmenter = parse_models(models)
    settings = preset(models, encoder, segmenter).replace(overrides or {})
    check(settings)
    return settings


def models_of(store: RunStore) -> str:
    """Return the preset whose encoder made a run's features; "paper" without features or such a preset."""
    encoder = store.info.get("features", {}).get("encoder")
    return next((name for name in PRESETS if parse_models(name)[0] == encoder), "paper")


def chosen_settings(models: str | None, loan: Loan | None) -> Settings:
    """Return the settings of the named models; without names, those of the borrowed query, or "paper"."""
    return loan.settings if loan is not None and models is None else settings_for(models or "paper")


def uses_torch_of(settings: Settings) -> bool:
    """Whether a model of these settings runs in torch and could use a GPU."""
    segmenter, _ = segmenter_entry(settings.propagation.segmenter)
    return encoder_info(settings.features.encoder).uses_torch or segmenter.uses_torch


def name_of(tomogram: str | Path | Volume, source: TomogramSource) -> str:
    """A tomogram, as errors call it."""
    return source.name if isinstance(source, ArraySource) else public(tomogram)


def run(
    tomogram: str | Path | Volume,
    points: Points | Mapping[str, Points] | None,
    out: str | Path,
    *,
    negatives: Points | None = None,
    query: Source | Sequence[Source] | Mapping[str, Loan] | None = None,
    name: str | Sequence[str] | None = None,
    models: str | None = None,
    settings: Settings | None = None,
    client: Client | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    device: str = "auto",
    cluster: str | Path | None = None,
    security: Security | None = None,
    unit_timeout: float | None = UNIT_TIMEOUT,
    voxel_size: float | Sequence[float] | None = None,
    unsigned: bool | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Driver:
    """Segment every particle like the one(s) at `points`, or like those of a query of another run.

    Parameters
    ----------
    tomogram : MRC, OME-Zarr, TIFF, HDF5, NumPy or an address in a copick project; MRC and OME-Zarr also by URL. Or an
        array: `xarray.DataArray` with the dimensions z, y, x in any order, whose coordinates (evenly spaced, with
        `units`) or attributes (`voxel_size`, `units`) tell the voxel size; or one of NumPy or Dask, (z, y, x), with
        `voxel_size`. What is lazy is computed by Dask where the run is, and never whole in memory
    points : (n, 3) voxels (z, y, x), zero-based, all on particles of one kind; or such points by the name of each of
        several kinds, which then compete: each voxel and pick goes to the best kind. None with `query`
    out : the run's store, a folder or fsspec URL; an existing run with the same settings is continued
    negatives : (n, 3) voxels (z, y, x) on what is not wanted; with several kinds, on what is of none of them
    query : path or URL of a run that has a finished query of that name, made with the same models and settings in a
        tomogram of the same voxel size. Or a query's file (.json), or several of these
    name : name of the query, "particle" if there is none; one store may hold several. With `query` also several names,
        of a run's queries or one for each file; a file's query is else called as the file says
    models : "builtin", "paper" or "ENCODER+SEGMENTER"; None: "paper", or with `query` the settings it was made with
    settings : instead of the models' preset
    client, workers, scheduler, device, cluster, security, unit_timeout : where to run, see
        `executors.choice.make_executor`
    voxel_size : ångström, instead of the file's; unsigned : how to read 8-bit MRC voxels
    overwrite : replace what was made with other settings

    Returns the closed `Driver`, whose `url` and `timings` say where the results are and what each unit took.
    """
    from cryosam_dask.executors.choice import make_executor

    kinds = kinds_of(points, negatives, query, name)
    chosen = settings or chosen_settings(models, kinds.loan)
    source = open_tomogram(tomogram, voxel_size=voxel_size, unsigned=unsigned)
    kinds.check(source.shape)
    for model in (chosen.features.encoder, chosen.propagation.segmenter):
        registry.ensure_weights(model)
    for loan in kinds.loans.values():
        borrow.check(loan, chosen, source.voxel_size, name_of(tomogram, source))
    with make_executor(
        *(workers, scheduler, device, client),
        uses_torch=uses_torch_of(chosen),
        cluster=cluster,
        security=security,
        unit_timeout=unit_timeout,
    ) as executor:
        driver = Driver(out, executor, progress, overwrite=overwrite)
        with driver.command(f"run {', '.join(kinds.names)}"):
            driver.ingest(tomogram, voxel_size=voxel_size, unsigned=unsigned)
            driver.features(chosen)
            kinds.query(driver, chosen)
            kinds.find(driver)
    return driver
