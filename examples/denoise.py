"""Denoise a tomogram lazily with Dask, run on it without writing it down first, and look at densities along z.

python examples/denoise.py OUTPUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import dask.array as da
import mrcfile
import numpy as np
import xarray as xr
from scipy.ndimage import gaussian_filter

import cryosam_dask as cs
from cryosam_dask import analysis
from cryosam_dask.demo import write_simulation


def read(path: Path) -> xr.DataArray:
    """An MRC as a lazy array: Dask reads each chunk from the file when it is needed. Coordinates are in nm."""
    with mrcfile.open(path, header_only=True) as file:
        size = float(file.voxel_size.x) / 10
    voxels = da.from_array(mrcfile.mmap(path, mode="r").data, chunks=(32, 64, 64))
    coords = {axis: (axis, np.arange(n) * size, {"units": "nm"}) for axis, n in zip("zyx", voxels.shape, strict=True)}
    return xr.DataArray(voxels, dims=("z", "y", "x"), coords=coords, name=path.stem)


def main(folder: Path) -> None:
    made = write_simulation(
        folder / "tomogram.mrc", "ribosome", {"shape": (64, 128, 128), "snr": 0.5, "membranes": 0}, species="ribosome"
    )
    point = tuple(float(v) for v in made.click.split(","))

    raw = read(folder / "tomogram.mrc")
    smooth = raw.data.map_overlap(gaussian_filter, sigma=1.0, depth=4, boundary="nearest", dtype="f4")
    denoised = raw.copy(data=smooth)  # nothing is computed until here
    denoised.cryosam.run(
        [point], folder / "run.zarr", name="ribosome", models="builtin", workers=0, overwrite=True
    )  # fmt: skip

    tree = cs.open_run(folder / "run.zarr")
    picks = tree["picks/ribosome"].to_dataset()
    lower = picks.cryosam.sel(z=slice(0, 320))  # ångström
    print(f"{picks.sizes['pick']} ribosomes, {lower.sizes['pick']} of them below z = 320 Å")

    tomogram, labels = tree["scale0"]["tomogram"], tree["labels/ribosome/scale0"]["labels"]
    along = xr.Dataset({"all": tomogram.mean(("y", "x")), "ribosomes": tomogram.where(labels > 0).mean(("y", "x"))})
    print(along.coarsen(z=16).mean().compute().to_dataframe().round(2))

    mean = tomogram.cryosam.sel_picks(picks, size=300).mean("pick")
    print(
        f"the mean particle is {float(mean.sel(z=0, y=0, x=0)):.2f} in its middle, {float(mean.min()):.2f} at the least"
    )
    print(
        analysis.density(folder / "run.zarr", analysis.slabs(folder / "run.zarr", "z", 32))
        .number.to_series()
        .to_string()
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
