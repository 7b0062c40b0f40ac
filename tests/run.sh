#!/usr/bin/env bash
# Install into a fresh virtual environment and pass all checks. `bash tests/run.sh [FOLDER for the environment]`.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -eq 0 ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  environment=$folder/venv
else
  environment=$1
fi
python3 -m venv "$environment"
"$environment/bin/pip" install --quiet --upgrade pip
"$environment/bin/pip" install --quiet '.[test,s3]'
"$environment/bin/ruff" check .
"$environment/bin/ruff" format --check .
"$environment/bin/mypy"
"$environment/bin/pytest" -q -n 2 --dist loadfile
