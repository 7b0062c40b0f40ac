#!/usr/bin/env bash
# Audit the package's dependencies for known vulnerabilities. `bash tests/audit.sh [EXTRA,...]`, e.g. `s3,test`.
#
# The dependencies are resolved and installed as a user would get them today, in a temporary environment (or they are
# those of an environment that exists: AUDIT_PYTHON=/path/to/its/python), and looked up by pip-audit in the advisory
# database of the Python Packaging Authority. This needs the network: the package index itself, or OSV's database with
# AUDIT_SERVICE=osv; a mirror of packages alone has no advisories. Exit status: 0 nothing is known, 1 something is,
# 2 there was no audit (no network, or a package that could not be looked up).
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:+[$1]}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

give_up() {
    echo "audit: $1; this was no audit" >&2
    exit 2
}

product=${AUDIT_PYTHON:-$work/product/bin/python}
if [[ -z ${AUDIT_PYTHON:-} ]]; then
    python3 -m venv "$work/product" && "$product" -m pip install --quiet ".$extras" ||
        give_up "the dependencies could not be installed"
fi
"$product" -m pip list --format=freeze --exclude cryosam-dask > "$work/frozen" || give_up "no list of packages"
# Local versions (torch 2.9.0+cpu) are builds of the public ones, under which advisories are filed.
sed -E 's/\+[A-Za-z0-9.]+$//' "$work/frozen" > "$work/requirements.txt"
echo "audit: $(wc -l < "$work/requirements.txt") packages"

python3 -m venv "$work/audit" && "$work/audit/bin/pip" install --quiet pip-audit ||
    give_up "pip-audit could not be installed"
status=0
"$work/audit/bin/pip-audit" --strict --no-deps --disable-pip --progress-spinner off \
    --vulnerability-service "${AUDIT_SERVICE:-pypi}" --requirement "$work/requirements.txt" \
    2> "$work/errors" || status=$?
if ((status)) && grep -q -E "Max retries|ConnectionError|Failed to resolve|could not be audited" "$work/errors"; then
    tail -n 1 "$work/errors" >&2
    give_up "not every package could be looked up"
fi
cat "$work/errors" >&2
exit "$status"
