#!/usr/bin/env bash
# Install the lowest versions that pyproject.toml allows and pass the tests with them. `bash tests/lowest.sh [PYTEST'S
# ARGUMENTS]`, e.g. `tests/io -x`. PYTHON=/path/to/python3.11 says with which Python: best the oldest one allowed.
#
# Not part of tests/run.sh: the oldest torch alone takes 7 GB. Run it when a bound changes, or when the program begins to
# use something that a library got late. Where a test fails, raise the bound to the lowest version that passes. Linters are
# not run: they check the code, with the newest versions.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/uv" && "$work/uv/bin/pip" install --quiet uv
uv=$work/uv/bin/uv
"$uv" venv --quiet --seed --python "${PYTHON:-python3}" "$work/venv"
# The lowest versions of what the program itself uses, also where a tool of the tests would ask for a newer one.
"$uv" pip compile --quiet --no-deps --no-annotate --no-header --resolution lowest-direct \
  --python "$work/venv/bin/python" --extra s3 --extra slurm --output-file "$work/lowest.txt" pyproject.toml
"$uv" pip install --quiet --python "$work/venv/bin/python" \
  --resolution lowest-direct --override "$work/lowest.txt" '.[test,s3,slurm]'
cat "$work/lowest.txt"
OMP_NUM_THREADS=1 "$work/venv/bin/pytest" -q -n "${WORKERS:-2}" --dist loadfile "$@"
