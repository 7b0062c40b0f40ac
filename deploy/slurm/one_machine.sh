#!/usr/bin/env bash
# SLURM on this machine alone, for trying things out: a controller and a node on the loopback, all of it in one folder.
#   one_machine.sh start DIR    write the configuration, start munge, slurmctld and slurmd (as root), wait for the node
#   one_machine.sh stop DIR     cancel its jobs and stop them again
# Afterwards: export SLURM_CONF=DIR/slurm.conf; sinfo; squeue
# The node claims four processors whatever there is, and one GPU that does not exist.
set -euo pipefail

action=${1:?start or stop}
dir=$(mkdir -p "${2:?a folder}" && cd "$2" && pwd)
export SLURM_CONF=$dir/slurm.conf

say() { echo "one_machine.sh: $*" >&2; }

configure() {
  local node memory
  node=$(hostname -s)
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.8)}' /proc/meminfo)
  mkdir -p "$dir"/{state,spool,log,munge}
  chmod 700 "$dir/munge"
  cat >"$dir/slurm.conf" <<CONF
ClusterName=one_machine
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobs.txt
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=2,bf_interval=5
KillWait=5
MinJobAge=600
ReturnToService=2
InactiveLimit=0
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=4 RealMemory=$memory Gres=gpu:1 State=UNKNOWN
PartitionName=cpu Nodes=$node Default=YES MaxTime=60 State=UP
PartitionName=gpu Nodes=$node MaxTime=60 State=UP
CONF
  echo "Name=gpu File=/dev/null" >"$dir/gres.conf"
  dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 status=none
  chmod 400 "$dir/munge/key"
}

start() {
  if [ "$(id -u)" -ne 0 ]; then
    say "the daemons of SLURM need root; as another user, use a cluster that is there"
    exit 1
  fi
  if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    say "installing slurm-wlm and munge"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >"$dir/apt.log" 2>&1
  fi
  configure
  munged --force --socket="$dir/munge/socket" --key-file="$dir/munge/key" --pid-file="$dir/munge/pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" 2>/dev/null
  slurmctld -f "$SLURM_CONF"
  slurmd -f "$SLURM_CONF"
  for _ in $(seq 60); do
    if sinfo --noheader --format=%t 2>/dev/null | grep -qE '^(idle|mix|alloc)$'; then
      return
    fi
    sleep 0.5
  done
  say "the node did not become idle:"
  sinfo >&2 || true
  tail -n 5 "$dir"/log/slurm*.log >&2
  exit 1
}

stop() {
  scancel --user="$(id -un)" 2>/dev/null || true
  for pid_file in "$dir/slurmd.pid" "$dir/slurmctld.pid" "$dir/munge/pid"; do
    if [ -s "$pid_file" ]; then
      local pid
      pid=$(cat "$pid_file")
      kill "$pid" 2>/dev/null || true
      for _ in $(seq 20); do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.25
      done
    fi
  done
}

case $action in
  start) start ;;
  stop) stop ;;
  *) say "start or stop, not $action" && exit 1 ;;
esac
