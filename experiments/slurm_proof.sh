#!/usr/bin/env bash
# Proof that the launcher works on a real Slurm: starts one on this machine, runs what it is told, asks Slurm how every task ended, stops it.
#
#   bash experiments/slurm_proof.sh train register evaluate --specimens 1 2 -- --out _runs/proof  train,register: --data FILE.h5
#
# The words are launch.py's. PYTHON=python3.12 chooses the interpreter. The exit code is 0 if all tasks succeeded, and Slurm says so too.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ $# -gt 0 ] || { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }

folder=$(mktemp -d)
trap 'bash "$here/slurm.sh" stop "$folder"' EXIT
setting=$(bash "$here/slurm.sh" start "$folder") || exit 1
eval "$setting"
trap 'bash "$here/slurm.sh" stop "$folder" && rm -r "$folder"' EXIT # its logs are of no use where it started

"${PYTHON:-python3}" "$here/launch.py" --cluster slurm --wait "$@"
code=$?

echo
squeue --array --states=all --sort=i --format='%.8i  %.18j  %.12T  %.10M  %.24R'
ended=$(squeue --array --states=all --noheader --format=%T)
completed=$(grep -c '^COMPLETED$' <<<"$ended")
echo "Slurm: $completed of $(grep -c . <<<"$ended") tasks completed; launch.py: exit code $code"
[ "$code" -eq 0 ] && [ "$completed" -gt 0 ] && ! grep -qv '^COMPLETED$' <<<"$ended"
