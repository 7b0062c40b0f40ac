#!/usr/bin/env bash
# Make the certificate that scheduler, workers and drivers of one cluster show each other, in tls/ beside this script (or in
# the folder given). Whoever has the key can run code on the cluster: keep it out of images and repositories.
set -euo pipefail
dir=${1:-$(dirname "$0")/tls}
umask 077
mkdir -p "$dir"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj /CN=cryosam \
  -keyout "$dir/tls.key" -out "$dir/tls.crt" 2>/dev/null
chmod 644 "$dir/tls.crt"
echo "$dir/tls.crt and tls.key, for one year"
