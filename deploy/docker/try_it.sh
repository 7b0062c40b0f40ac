#!/usr/bin/env bash
# The image and the compose file, seen to work on this machine alone; as root, with podman 4 or newer and podman-compose.
#   try_it.sh [DIR]
# Builds the image, runs the demo in it, and runs one tomogram twice: in one container, and on a scheduler and two workers that
# the compose file starts, each in a network namespace of its own, of which one is killed on the way. Both must give the same
# arrays, byte for byte. Says of each part whether it works, failed, or is refused by this machine, and why; exits with 1 if a
# part failed. Images and settings of podman are kept apart from this machine's own, in DIR or, without one, in a folder that is
# removed at the end.
# Takes 10 to 20 minutes on two cores, and 20 GB. What may be set:
#   BASE            the image it is built on [python:3.12-slim]
#   DEBIAN_MIRROR   where no registry is reached: debootstrap makes the base from this mirror of Debian
#   TORCH_INDEX     see the Dockerfile; without CUDA libraries 6 GB are enough
#   PIP_CONF        a pip.conf for the build
#   STORAGE_DRIVER  podman's [overlay]; vfs where the kernel has no overlay, with several times the space
#   BUILD_OPTIONS   further options of `podman build`, such as --volume for certificates of a proxy
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${1:-}" ]; then
  temporary=$(mktemp -d)
  set -- "$temporary"
fi
dir=$(mkdir -p "$1" && cd "$1" && pwd)
if [ -n "$(ls -A "$dir")" ] && [ ! -f "$dir/settings/storage.conf" ]; then
  echo "$dir holds other files; give a folder that is empty, new, or of this script" >&2
  exit 2
fi
mkdir -p "$dir/settings" "$dir/data"
locked=(--read-only --cap-drop=all --security-opt=no-new-privileges --tmpfs=/tmp:size=4g,mode=1777)
failed=
summary=()
declare -A works

settings() { # of podman, with containers run by the program $1
  export CONTAINERS_CONF=$dir/settings/containers.conf CONTAINERS_STORAGE_CONF=$dir/settings/storage.conf
  cat >"$CONTAINERS_CONF" <<EOF
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "$1"
[network]
network_config_dir = "$dir/settings/networks"
EOF
  cat >"$CONTAINERS_STORAGE_CONF" <<EOF
[storage]
driver = "${STORAGE_DRIVER:-overlay}"
graphroot = "$dir/store"
runroot = "$dir/run"
EOF
}

compose() {
  podman-compose --profile run --file "$dir/compose.yaml" "$@" 2> >(grep -vE "systemd|syslog" >&2)
}

clean_up() {
  podman rm --all --force --time 0 &>"$dir/clean_up.log" || true
  podman pod rm --all --force &>>"$dir/clean_up.log" || true
  podman network prune --force &>>"$dir/clean_up.log" || true
  if [ -n "${temporary:-}" ]; then
    podman rmi --all --force &>>"$dir/clean_up.log" || true
    umount "$dir/store/overlay" &>>"$dir/clean_up.log" || true
    rm -rf "$temporary"
  fi
}

refuse() { # the reason
  echo "refused: $*"
  exit 77
}

part() { # its name and its function; the function runs in a shell of its own, and exits with 77 where the machine refuses
  local status=0 name=$1
  echo
  echo "== $name"
  set +e
  (
    set -e
    "$2"
  )
  status=$?
  set -e
  case $status in
    0) summary+=("works    $name") works[$2]=yes ;;
    77) summary+=("refused  $name") ;;
    *) summary+=("FAILED   $name") failed=yes ;;
  esac
  return 0
}

after() { # parts that must work before
  local earlier
  for earlier; do
    [ -n "${works[$earlier]:-}" ] || refuse "it takes the part '$earlier', which does not work"
  done
}

base() {
  command -v podman >/dev/null || refuse "podman is not installed"
  if [ -n "${DEBIAN_MIRROR:-}" ] && ! podman image exists localhost/base; then
    command -v debootstrap >/dev/null || refuse "DEBIAN_MIRROR wants debootstrap"
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$dir/base" "$DEBIAN_MIRROR" \
      >"$dir/base.log" || refuse "debootstrap: $(tail -n 1 "$dir/base.log")"
    rm -rf "$dir"/base/var/cache/apt/* "$dir"/base/var/lib/apt/lists/*
    tar --directory "$dir/base" --create . | podman import --quiet - localhost/base
    rm -rf "$dir/base"
  elif [ -z "${DEBIAN_MIRROR:-}" ]; then
    podman pull --quiet "${BASE:-docker.io/library/python:3.12-slim}" >"$dir/base.log" 2>&1 \
      || refuse "no registry is reached (set DEBIAN_MIRROR, or BASE): $(tail -n 1 "$dir/base.log")"
    podman tag "${BASE:-docker.io/library/python:3.12-slim}" localhost/base
  fi
  podman image inspect --format 'built on {{.Size}} bytes, {{.Os}} {{.Architecture}}' localhost/base
}

containers() { # with crun where that works, else with runc
  after base
  local runtime why
  for runtime in crun runc; do
    settings "$runtime"
    if why=$(podman run --rm --network=none --user=10001 --init "${locked[@]}" localhost/base python3 --version 2>&1); then
      echo "by $runtime: $why as user 10001, without capabilities, on a read-only root"
      return
    fi
    echo "not by $runtime: $(tail -n 1 <<<"$why")"
  done
  refuse "no container runs"
}

networks() {
  after containers
  podman network create --internal tried &>"$dir/networks.log" || refuse "$(tail -n 1 "$dir/networks.log")"
  podman run --detach --name=tried --network=tried localhost/base python3 -m http.server 8000 &>>"$dir/networks.log" \
    || refuse "$(tail -n 1 "$dir/networks.log")"
  sleep 2
  podman run --rm --network=tried localhost/base \
    python3 -c 'import urllib.request; urllib.request.urlopen("http://tried:8000", timeout=5)' \
    &>>"$dir/networks.log" || refuse "containers do not find each other by name: $(tail -n 1 "$dir/networks.log")"
  podman rm --force --time 0 tried >>"$dir/networks.log"
  podman network rm tried >>"$dir/networks.log"
  echo "two containers, each in a network namespace of its own, find each other by name"
}

image() {
  after base
  local secret=() isolation=oci
  [ -n "${works[containers]:-}" ] || isolation=chroot
  [ -z "${PIP_CONF:-}" ] || secret=(--secret "id=pip.conf,src=$PIP_CONF")
  # shellcheck disable=SC2086 # options are words
  podman build --isolation="$isolation" --network=host --file "$here/../Dockerfile" --tag cryosam_dask \
    --build-arg BASE=localhost/base --build-arg TORCH_INDEX="${TORCH_INDEX:-}" "${secret[@]}" ${BUILD_OPTIONS:-} "$here/../.." >"$dir/build.log" 2>&1 \
    || { tail -n 20 "$dir/build.log" && return 1; }
  echo "$(($(podman image inspect --format '{{.Size}}' cryosam_dask) / 1000000)) MB"
  podman history --format '{{.Size}}  {{.CreatedBy}}' cryosam_dask | grep -vE '^0 B' | cut -c1-100
}

demo() {
  after containers image
  podman run --rm --network=none "${locked[@]}" cryosam_dask sh -c 'set -e
    echo "user $(id -u), $(grep CapEff /proc/self/status)"
    if touch "$HOME/file" 2>/dev/null; then echo "the root is not read-only"; exit 1; fi
    python -c "import torch; print(\"torch\", torch.__version__)"
    cryosam demo --out /tmp/demo'
}

in_driver() { # without the services that compose would start first, which run already
  compose run --rm -T --no-deps driver "$@"
}

cluster() {
  after networks image
  command -v podman-compose >/dev/null || refuse "podman-compose is not installed (pip install podman-compose)"
  [ "$(id -u)" = 0 ] || refuse "only root can give the data to the user of the containers"
  cp "$here/compose.yaml" "$dir/compose.yaml"
  [ -f "$dir/tls/tls.key" ] || bash "$here/certificate.sh" "$dir/tls"
  export CRYOSAM_USER=10001:10001 CRYOSAM_DATA=$dir/data
  chown -R 10001:10001 "$dir/data" "$dir/tls"
  rm -rf "$dir"/data/*
  compose up --detach --no-build --scale worker=2 scheduler worker >"$dir/up.log" 2>&1 || { tail "$dir/up.log" && return 1; }
  for _ in $(seq 60); do
    if podman healthcheck run cryosam_scheduler_1 &>/dev/null; then break; fi
    sleep 1
  done
  podman healthcheck run cryosam_scheduler_1 # as Docker does by itself
  podman ps --format '{{.Names}} {{.Networks}} {{.Status}}'

  local point common
  point=$(in_driver cryosam simulate /data/tomo.mrc --shape 64,256,256 --snr 1 | grep -oE -- '--point [0-9.,]+' | cut -d' ' -f2)
  common=(cryosam run /data/tomo.mrc --point "$point" --models builtin --count 6)
  in_driver "${common[@]}" --out /data/serial.zarr --workers 0
  in_driver "${common[@]}" --out /data/cluster.zarr --scheduler tls://scheduler:8786 &
  sleep 20
  echo "-- a worker's container is killed"
  kill -0 $! || echo "after the end of the run, which this machine did too fast for that"
  podman kill cryosam_worker_2
  wait $!
  podman run --rm --interactive --user=10001 --volume "$dir/data:/data:ro" cryosam_dask \
    python - /data/serial.zarr /data/cluster.zarr <"$here/../same_arrays.py"
  podman logs cryosam_scheduler_1 2>&1 | grep -oE '(Register|Remove) worker addr: [^ ]+'

  echo "-- who gets in, and out"
  in_driver sh -c '! grep -qE "^[^[:space:]]+[[:space:]]00000000" /proc/net/route' || { echo "the driver has a way out" && return 1; }
  podman run --rm --interactive --network=cryosam_inside cryosam_dask python - <<'PY'
import socket
import ssl

stranger = ssl.create_default_context()
stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
try:
    with socket.create_connection(("scheduler", 8786), timeout=10) as plain, stranger.wrap_socket(plain) as end:
        end.recv(1)
except ssl.SSLError as error:
    print(f"no way out; the scheduler, to one without a certificate: {error.reason}")
else:
    raise SystemExit("one without a certificate gets in")
PY
  compose down >"$dir/down.log" 2>&1
}

settings crun
trap clean_up EXIT
part "a base image with Python" base
part "containers as the compose file asks for them" containers
part "networks as the compose file asks for them" networks
part "the image" image
part "the demo, as the image's own user, with a read-only root" demo
part "scheduler, two workers and driver of the compose file" cluster
echo
printf '%s\n' "${summary[@]}"
[ -z "$failed" ]
