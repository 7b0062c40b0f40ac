#!/usr/bin/env bash
# What a GPU reaches, in ten minutes at most: models of full size with random weights, nothing is downloaded.
#   bash tests/benchmarks/gpu.sh OUT.json [--device cuda] [--tiny]
# OUT.json gets all figures; `python tests/benchmarks/gpu.py page OUT.json` writes them into docs/gpu.md.
# --tiny takes models that a CPU is done with in a minute or two, to see that all of it runs.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" measure "$@"
