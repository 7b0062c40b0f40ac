#!/usr/bin/env bash
# The image and the compose file, seen to work on this machine alone; as root, with podman 4 or newer and podman-compose.
#   try_it.sh [DIR]
# Builds the image, runs the demo in it, and runs one tomogram twice: in one container, and on a scheduler and two workers that
# the compose file starts, each in a network namespace of its own. Both must give the same arrays, byte for byte. Says of each
# part whether it works, failed, or is refused by this machine, and why; exits with 1 if a part failed. Images and settings of
# podman are kept apart from this machine's own, in DIR or, without one, in a folder that is removed at the end.
# Takes about ten minutes on two cores, and 15 GB. What may be set:
#   BASE            the image it is built on [python:3.12-slim]
#   DEBIAN_MIRROR   where no registry is reached: debootstrap makes the base from this mirror of Debian
#   TORCH_INDEX     see the Dockerfile; without CUDA libraries it takes 6 GB
#   PIP_CONF        a pip.conf for the build
#   BUILD_OPTIONS   further options of `podman build`, such as --volume for certificates of a proxy
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${1:-}" ]; then
  temporary=$(mktemp -d)
  set -- "$temporary"
fi
dir=$(mkdir -p "$1" && cd "$1" && pwd)
mkdir -p "$dir/settings" "$dir/data"
locked=(--read-only --cap-drop=all --security-opt=no-new-privileges --tmpfs=/tmp:size=4g,mode=1777)
failed=

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
runroot = "$dir/store-run"
EOF
}

compose() {
  podman-compose --profile run --file "$dir/compose.yaml" "$@" 2> >(grep -vE "systemd|not a TTY|syslog" >&2)
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
    0) summary+=("works    $name") ;;
    77) summary+=("refused  $name") ;;
    *) summary+=("FAILED   $name") failed=yes ;;
  esac
  return 0
}

need() { # that an earlier part made image $1
  podman image exists "$1" || refuse "there is no image $1"
}

base() {
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
  podman run --rm --network=none localhost/base python3 --version
}
