"""Simulate a tomogram, click once, and look at the result with xarray.

python examples/one_click.py OUTPUT_FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import cryosam_dask as cs
from cryosam_dask.demo import write_simulation


def main(folder: Path) -> None:
    made = write_simulation(
        folder / "tomogram.mrc", "ribosome", {"shape": (64, 128, 128), "snr": 1.0, "membranes": 0}, species="ribosome"
    )
    point = tuple(float(v) for v in made.click.split(","))
    cs.run(made.tomogram, [point], folder / "run.zarr", name="ribosome", models="builtin", workers=0, overwrite=True)

    tree = cs.open_run(folder / "run.zarr")
    picks = tree["picks/ribosome"].to_dataset().to_dataframe()
    print(picks[["position_z", "position_y", "position_x", "score", "size"]].round(2).to_string())

    labels = tree["labels/ribosome/scale0"]["labels"]
    share = float((labels > 0).mean())
    print(f"{len(picks)} ribosomes fill {100 * share:.1f} % of the volume")

    features = cs.FeatureVolume.open(folder / "run.zarr")
    own = features.pool(labels == 1)
    similarity = features.similarity(own, 4, center=True)
    profile = similarity.max(("y", "x")).compute()
    print(f"places most like instance 1 lie at z = {float(profile.idxmax()):.0f} Å")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
