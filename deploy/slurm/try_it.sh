#!/usr/bin/env bash
# cryosam on SLURM, seen to work on this machine alone; as root, with cryosam and its extra [slurm] installed.
#   try_it.sh [--shape Z,Y,X] [DIR]
# Starts SLURM (one_machine.sh), simulates a tomogram and runs it twice: in one process, and in jobs of two minutes.
# In the middle of the second run one job is cancelled, one is killed outright, one has its walltime cut so that SLURM
# ends it, and others leave before theirs ends. Both runs must give the same arrays, byte for byte. Then a GPU's job is
# asked for. Takes about six minutes on two cores.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
shape=128,512,512
if [ "${1:-}" = --shape ]; then
  shape=$2
  shift 2
fi
dir=$(mkdir -p "${1:-$(mktemp -d)}" && cd "${1:-$_}" && pwd)
export SLURM_CONF=$dir/slurm/slurm.conf OMP_NUM_THREADS=1
table='%.6i %.12j %.9P %.10T %.6M %R'
driver=

say() { echo; echo "== $*"; }

clean_up() {
  [ -z "$driver" ] || kill "$driver" 2>/dev/null || true
  bash "$here/one_machine.sh" stop "$dir/slurm"
}

running() { squeue --noheader --states=RUNNING --name="$1" --format=%i; }

wait_for() { # a job of this name that runs
  for _ in $(seq 120); do
    if [ -n "$(running "$1")" ]; then return; fi
    kill -0 "$driver" 2>/dev/null || return
    sleep 0.5
  done
}

trap clean_up EXIT
say "SLURM in $dir/slurm"
bash "$here/one_machine.sh" start "$dir/slurm"
sinfo

sed "s#SHARED#$dir/shared#" "$here/one_machine.yaml" >"$dir/cluster.yaml"
say "the jobs, before any is submitted"
cryosam cluster "$dir/cluster.yaml" --dry-run

say "a tomogram of $shape voxels"
point=$(cryosam simulate "$dir/tomo.mrc" --shape "$shape" --snr 1 | grep -oE -- '--point [0-9.,]+' | cut -d' ' -f2)
common=("$dir/tomo.mrc" --point "$point" --models builtin --count 6)

say "in one process"
SECONDS=0
cryosam run "${common[@]}" --out "$dir/serial.zarr" --workers 0
echo "$SECONDS s"

say "in jobs"
SECONDS=0
cryosam --verbose run "${common[@]}" --out "$dir/slurm.zarr" --cluster "$dir/cluster.yaml" 2>"$dir/run.log" &
driver=$!
wait_for cryosam-cpu
sleep 10
squeue --format="$table"
set -- $(running cryosam-cpu)
say "scancel $1; scancel --signal=KILL --full ${2:-none}; walltime of ${3:-none} cut to one minute"
scancel "$1"
[ -z "${2:-}" ] || scancel --signal=KILL --full "$2"
[ -z "${3:-}" ] || scontrol update "JobId=$3" TimeLimit=1
while kill -0 "$driver" 2>/dev/null; do
  sleep 15
  squeue --format="$table"
done
wait "$driver"
driver=
echo "$SECONDS s"

say "all jobs, as SLURM saw them end"
sed -E 's/.*(JobId=[0-9]+).* Name=([^ ]+) JobState=([^ ]+) .*TimeLimit=([0-9]+) StartTime=[^T]*T([^ ]+) EndTime=[^T]*T([^ ]+) .*/\1 \2 \3 limit \4 min  \5 - \6/' \
  "$dir/slurm/log/jobs.txt"
grep -E "WARNING|failed|ended" "$dir/run.log" || true

say "the same labels and picks?"
python "$here/../same_arrays.py" "$dir/serial.zarr" "$dir/slurm.zarr"

say "a job with a GPU (of which there is none: SLURM hands out its number)"
python - "$dir/cluster.yaml" <<'PY'
import os
import subprocess
import sys

from cryosam_dask.executors.clusters import open_cluster

if __name__ == "__main__":
    with open_cluster(sys.argv[1]) as executor:
        seen = executor.client.submit(os.getenv, "CUDA_VISIBLE_DEVICES", resources={"GPU": 1})
        print(f"CUDA_VISIBLE_DEVICES={seen.result(timeout=120)}")
        subprocess.run(["squeue"], check=True)
PY
cryosam info "$dir/slurm.zarr" | head -n 30
