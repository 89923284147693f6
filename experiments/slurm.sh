#!/usr/bin/env bash
# A Slurm of one node on this machine, for trying out launch.py. It uses no cluster, and touches nothing outside its folder.
#
#   bash experiments/slurm.sh start [FOLDER]     start what does not run yet, and print the SLURM_CONF to export
#   bash experiments/slurm.sh status [FOLDER]    what runs, the node, the jobs
#   bash experiments/slurm.sh stop [FOLDER]      cancel its jobs, and end the daemons that were started here
#
# Any user may; started by root, it takes jobs of all users. Debian, Ubuntu: apt-get install slurm-wlm munge (their services need not run).
# Tried with Debian 12, Slurm 22.05, in a container without systemd.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # where munged, slurmctld and slurmd are

# ---------------------------------------------------------------- knobs
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
command=${1:-help}
folder=$(realpath -m "${2:-$repository/_runs/slurm}") # configuration, key, socket, state, logs, pid files
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) # which listens to these
memory_mb=$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024))
gpus=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' | sort)
controller_port=16817 # not the usual 6817 and 6818: a Slurm that is there already is left alone
node_port=16818
patience_s=30 # for the node to come up, and for cancelled jobs to go
# ----------------------------------------------------------------------

export SLURM_CONF=$folder/slurm.conf
daemons=(slurmd slurmctld munged) # in the order in which they stop

fail() { echo "slurm.sh: $*" >&2; exit 1; }

runs() { # runs NAME: the process of NAME's pid file is a NAME, and alive (a zombie has nobody to bury it, and is dead)
  [ -s "$folder/$1.pid" ] || return 1
  local status; status=$(cat "/proc/$(cat "$folder/$1.pid")/status" 2>/dev/null) || return 1
  [[ $status =~ ^Name:[[:space:]]*$1$'\n' && ! $status =~ State:[[:space:]]*Z ]]
}

eventually() { # eventually COMMAND...: until it succeeds, or patience ends
  local end=$((SECONDS + patience_s))
  until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done
}

check() {
  local missing=()
  for tool in munged mungekey slurmctld slurmd sbatch squeue scontrol; do command -v $tool >/dev/null || missing+=("$tool"); done
  [ ${#missing[@]} -eq 0 ] || fail "not found: ${missing[*]}. Debian, Ubuntu: apt-get install slurm-wlm munge"
  [ ${#folder} -le 90 ] || fail "$folder is ${#folder} characters long; a socket goes there, whose path must stay under 108: name a shorter folder"
  [ "${folder//[[:space:]]/}" = "$folder" ] || fail "$folder has white space in it, which slurm.conf cannot hold: name another folder"
}

configure() {
  mkdir -p "$folder"/{state,spool}
  chmod 755 "$folder"
  [ -s "$folder/munge.key" ] || mungekey --create --keyfile="$folder/munge.key"
  local host count=0 line
  host=$(hostname -s)
  line="NodeName=$host NodeAddr=127.0.0.1 Port=$node_port CPUs=$cores RealMemory=$memory_mb State=UNKNOWN"
  : >"$folder/gres.conf"
  for device in $gpus; do echo "Name=gpu File=$device" >>"$folder/gres.conf"; count=$((count + 1)); done
  [ $count -eq 0 ] || line="GresTypes=gpu"$'\n'"$line Gres=gpu:$count"
  cat >"$SLURM_CONF" <<END
# Written by experiments/slurm.sh
ClusterName=onenode
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
# no control groups: they are often out of reach in a container
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
# jobs share the node by cores
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# quick turns, for a handful of jobs
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
KillWait=5
# there is no accounting: the queue remembers for a day how jobs ended
MinJobAge=86400
ReturnToService=2
$line
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
}

node_is_up() { sinfo --noheader --format=%t 2>/dev/null | grep -qE '^(idle|mix|alloc)$'; }
queue_is_empty() { [ -z "$(squeue --noheader 2>/dev/null)" ]; }
all_stopped() { for name in "${daemons[@]}"; do ! runs "$name" || return 1; done; }

start() {
  check
  if ! runs slurmctld && ! runs slurmd; then configure; fi
  runs munged || munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed" || fail "munged did not start: $folder/munged.log"
  runs slurmctld || slurmctld -i || fail "slurmctld did not start: $folder/slurmctld.log"
  runs slurmd || slurmd || fail "slurmd did not start: $folder/slurmd.log"
  eventually node_is_up || fail "the node did not come up in $patience_s s: $folder/slurmctld.log, $folder/slurmd.log"
  echo "Slurm runs in $folder: $cores cores, $memory_mb MB, $(wc -l <"$folder/gres.conf") GPUs. To use it:" >&2
  echo "export SLURM_CONF=$SLURM_CONF"
}

status() {
  for name in munged slurmctld slurmd; do
    if runs "$name"; then echo "$name runs (process $(cat "$folder/$name.pid"))"; else echo "$name does not run"; fi
  done
  runs slurmctld && runs munged || exit 1
  echo "export SLURM_CONF=$SLURM_CONF"
  sinfo
  squeue --array --states=all
}

stop() {
  if runs slurmctld && runs munged; then
    local jobs; jobs=$(squeue --noheader --format=%A | sort -u)
    [ -z "$jobs" ] || scancel $jobs
    eventually queue_is_empty || echo "slurm.sh: some jobs are still there after $patience_s s" >&2
  fi
  for name in "${daemons[@]}"; do ! runs "$name" || kill "$(cat "$folder/$name.pid")"; done
  eventually all_stopped || fail "not all have ended after $patience_s s (slurm.sh status $folder)"
  rm -f "$folder"/*.pid
  echo "nothing of it runs; logs and state are in $folder"
}

case $command in
  start | status | stop) $command ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; [ "$command" = help ] || exit 2 ;;
esac
