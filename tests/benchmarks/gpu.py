"""What a GPU reaches with bare models and with our stages, in one file, and the page of the documentation with it.

    python tests/benchmarks/gpu.py measure OUT.json [--device cuda] [--tiny] [--minutes 10]
    python tests/benchmarks/gpu.py page OUT.json [--docs docs/gpu.md]

`measure` runs the benchmarks beside this one, each in a process of its own that is ended when its share of the time is
over; one that fails or is ended is recorded with its error, and the others go on. OUT.json is written after each. Its
keys: `device`, `versions`, `tiny`, and `parts`, the JSON line of each benchmark with the seconds that it took:

- features: the feature stage beside the encoder's own forward passes (`features.py`)
- tokens: what the stage takes for a token, with a stand-in in the encoder's place (`tokens.py`)
- planes: SAM's embeddings and prompts, beside the published code (`sam.py`)
- decoding: prompts a second with a decoder that costs nothing (`decoding.py`)
- segmenters: planes and prompts a second of the others (`segmenters.py`)
- device: transfers, and how far half precision on the device is from single precision on the CPU (here)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
BYTES = 256 << 20
"""Of a transfer."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A benchmark. share : of the time; full, tiny : its arguments"""

    script: str
    share: float
    full: str
    tiny: str


PARTS = {
    "features": Part(
        "features.py",
        0.25,
        "--encoder dinov2-vitl14 --precision bfloat16 --shape 64,924,952 --units 3 --only stage,overlap",
        "--encoder dinov2-vits14 --shape 16,112,112 --only stage",
    ),
    "tokens": Part("tokens.py", 0.15, "", "--plane 112,126 --channels 64 --units 2 --repeats 1"),
    "planes": Part(
        "sam.py", 0.25, "--kind vit_h --dtypes float32,bfloat16 --prompts 32", "--kind tiny --prompts 2 --repeats 1"
    ),
    "decoding": Part("decoding.py", 0.1, "--batch 32", "--plane 112,126 --planes 3 --prompts 2 --repeats 1"),
    "segmenters": Part(
        "segmenters.py",
        0.15,
        "--models sam-vitb,mobile-sam,sam2.1-tiny,sam2.1-large --dtypes bfloat16",
        "--models mobile-sam --dtypes float32 --repeats 1",
    ),
    "device": Part("gpu.py", 0.1, "device --encoder dinov2-vitl14", "device --encoder dinov2-vits14 --size 112"),
}


def measure(options: argparse.Namespace) -> None:
    row: Row = about(options.device) | {"tiny": options.tiny, "parts": {}}
    for name, part in PARTS.items():
        command = [sys.executable, str(FOLDER / part.script), *(part.tiny if options.tiny else part.full).split()]
        row["parts"][name] = run([*command, "--device", options.device], 60 * options.minutes * part.share)
        options.out.write_text(json.dumps(row, indent=1) + "\n")
        print(f"{name}: {row['parts'][name].get('error', 'done')}, {row['parts'][name]['seconds']} s", flush=True)
    if failed := [name for name, part in row["parts"].items() if "error" in part]:
        sys.exit(f"{', '.join(failed)}: not measured; see {options.out}")


def run(command: list[str], seconds: float) -> Row:
    """The JSON line that a benchmark prints last, or why there is none."""
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        lines = done.stdout.strip().splitlines()
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        row: Row = json.loads(lines[-1]) if done.returncode == 0 and lines else {"error": last}
    except subprocess.TimeoutExpired:
        row = {"error": f"ended after {seconds:.0f} s"}
    except ValueError as error:
        row = {"error": f"no JSON line: {error}"}
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def about(device: str) -> Row:
    import torch

    if device == "cpu":
        name = f"cpu, {torch.get_num_threads()} threads"
    elif not torch.cuda.is_available():
        sys.exit("no GPU is found here; --device cpu --tiny shows that all of it runs")
    else:
        name = torch.cuda.get_device_name(device)
    return {"device": name, "versions": {"torch": torch.__version__, "python": sys.version.split()[0]}}


def device(options: argparse.Namespace) -> None:
    """Transfers, and how far the device's results are from the CPU's in single precision."""
    import numpy as np
    import torch
    from features import random_encoder

    from cryosam_dask.models.registry import preferred_precision

    cuda = options.device != "cpu"
    row: Row = {}
    if cuda:
        there = torch.empty(BYTES, dtype=torch.uint8, device=options.device)
        for kind, pinned in (("pinned", True), ("pageable", False)):
            here = torch.empty(BYTES, dtype=torch.uint8, pin_memory=pinned)
            row[kind] = {
                "to_host": rate(lambda a=here: a.copy_(there)),
                "to_device": rate(lambda a=here: there.copy_(a)),
            }
    precision = preferred_precision(options.device)
    slices = np.random.default_rng(0).standard_normal((2, options.size, options.size)).astype(np.float32)
    exact = random_encoder(options.encoder, "cpu", "float32").encode(slices)
    close = random_encoder(options.encoder, options.device, precision).encode(slices)
    away = np.linalg.norm((close - exact).reshape(-1, exact.shape[-1]), axis=1)
    relative = away / np.linalg.norm(exact.reshape(-1, exact.shape[-1]), axis=1)
    row["parity"] = {
        "precision": precision,
        "mean": float(f"{relative.mean():.2g}"),
        "max": float(f"{relative.max():.2g}"),
    }
    print(json.dumps(row))


def rate(copy: Any) -> float:
    """GB a second of a transfer, the best of five."""
    import torch

    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        copy()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return round(BYTES / best / 1e9, 1)


def page(options: argparse.Namespace) -> None:
    """Write the figures of a file into the page, in the place of those that are there."""
    text = options.docs.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not after:
        sys.exit(f"{options.docs}: has no lines {BEGIN} and {END} to write between")
    table = figures(json.loads(options.file.read_text()))
    options.docs.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")


def figures(row: Row) -> str:
    """A Markdown table of what was measured."""
    parts = {name: part for name, part in row["parts"].items() if "error" not in part}
    lines = [f"Device: {row['device']}; torch {row['versions']['torch']}."]
    if row["tiny"]:
        lines[0] += " The models were tiny ones: these figures show that all of it runs, and nothing else."
    lines += ["", "| what | figure |", "|---|---|"]

    def put(what: str, figure: str) -> None:
        lines.append(f"| {what} | {figure} |")

    for axis, told in parts.get("features", {}).get("stage", {}).items():
        put(f"features, units of the {axis} view: the model alone, and the stage", seconds_of(told))
    if "tokens" in parts:
        busy = parts["tokens"]["device"]
        put(f"a device of {busy['microseconds_a_token']:g} µs a token is busy", f"{busy['busy']:.0%} of the time")
        for axis, kinds in parts["tokens"]["processor"].items():
            for kind, steps in kinds.items():
                put(f"processor time a token, {axis} view, {kind}", f"{steps['total']} µs")
    for dtype, told in parts.get("planes", {}).get("embed", {}).items():
        put(
            f"SAM's planes a second, {dtype}: published code, ours",
            f"{told['published_per_second']}, {told['per_second']}",
        )
        put(f"memory beside the weights, {dtype}", f"{told['mib']} MiB")
        put(f"distance from {next(iter(parts['planes']['embed']))}", f"{told['distance']:g}")
    if "decoding" in parts:
        put("processor time of a prompt on a plane", f"{parts['decoding']['decode']['processor_ms']} ms")
    for told in parts.get("segmenters", {}).get("models", []):
        speeds = ", ".join(f"{told[dtype]['planes']} ({dtype})" for dtype in ("float32", "bfloat16") if dtype in told)
        put(f"{told['model']}: planes a second; prompts a second", f"{speeds}; {1 / max(told['prompt'], 1e-9):.0f}")
    if "device" in parts:
        for kind in ("pinned", "pageable"):
            if kind in parts["device"]:
                told = parts["device"][kind]
                put(
                    f"transfer, {kind} memory: to the host, to the device",
                    f"{told['to_host']}, {told['to_device']} GB/s",
                )
        parity = parts["device"]["parity"]
        put(f"features in {parity['precision']} against the CPU in float32", f"{parity['mean']:g} of their length")
    lines += [f"| {name} | not measured: {part['error']} |" for name, part in row["parts"].items() if "error" in part]
    return "\n".join(lines)


def seconds_of(told: Row) -> str:
    return f"{told['forward_seconds']} s, {told['unit_seconds']} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    here = commands.add_parser("measure")
    here.add_argument("out", type=Path)
    here.add_argument("--device", default="cuda")
    here.add_argument("--tiny", action="store_true")
    here.add_argument("--minutes", type=float, default=10.0)
    here.set_defaults(run=measure)
    shown = commands.add_parser("page")
    shown.add_argument("file", type=Path)
    shown.add_argument("--docs", type=Path, default=FOLDER.parents[1] / "docs" / "gpu.md")
    shown.set_defaults(run=page)
    part = commands.add_parser("device")
    part.add_argument("--device", default="cuda")
    part.add_argument("--encoder", default="dinov2-vitl14")
    part.add_argument("--size", type=int, default=518)
    part.set_defaults(run=device)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
