#!/usr/bin/env bash
# Install into a fresh virtual environment and pass all checks. `bash tests/run.sh [FOLDER for the environment]`.
# (tests/lowest.sh passes the tests with the lowest versions that pyproject.toml allows.)
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
environment=${1:-$work/venv}
python3 -m venv "$environment"
# What is imported is compiled as it is imported, once for all processes, and into a folder that goes when this ends. pip
# would compile all that it installs, which is fifty times as much.
export PYTHONDONTWRITEBYTECODE='' PYTHONPYCACHEPREFIX=$work/compiled
install() {
  "$environment/bin/pip" install --no-compile --no-color --progress-bar off "$@"
}
install --quiet --upgrade pip
# moto's boto3 has to be as old as the botocore that s3fs' aiobotocore takes. pip would try each boto3 from the newest on.
install s3fs > "$work/s3fs"
botocore=$("$environment/bin/pip" list --format freeze | sed -n 's/^botocore==//p')
install '.[test,s3]' "boto3<=$botocore" > "$work/all"
"$environment/bin/python" tests/versions_tried.py "$work/s3fs" "$work/all"
"$environment/bin/ruff" check .
"$environment/bin/ruff" format --check .
"$environment/bin/mypy" &
types=$!
# As many processes as cores, so one thread each: more would wait for each other.
OMP_NUM_THREADS=1 "$environment/bin/pytest" -q -n 3 --dist loadfile
wait "$types"
