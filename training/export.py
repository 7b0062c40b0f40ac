"""Writes the averaged weights of a checkpoint as the package's: `python training/export.py OUT/checkpoint.pt`.

They are stored in half precision, with the number of steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from cryosam_dask.models.particle_info import WEIGHTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--last", action="store_true", help="the last step's weights instead of the average")
    chosen = parser.parse_args()
    state = torch.load(chosen.checkpoint, weights_only=True)
    weights = state["net" if chosen.last else "averaged"]
    averaged = {name.removeprefix("module."): value for name, value in weights.items() if name != "n_averaged"}
    # counts of batches are of no use, and no statistic of a batch norm is beyond half precision's range
    kept = {name: value.half().contiguous() for name, value in averaged.items() if not name.endswith("_tracked")}
    save_file(kept, chosen.out, {"steps": str(state["step"])})
    print(f"{chosen.out}: {chosen.out.stat().st_size / 1e6:.1f} MB, {state['step']} steps")


if __name__ == "__main__":
    main()
