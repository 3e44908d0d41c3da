#!/usr/bin/env bash
# An ingest as an array job, without Dask, for sites where a scheduler of one's own is not allowed:
#   ./ingest_array.sh N SOURCE STORE [options of scalebrain ingest]
# On the login node this submits N tasks and, behind them, the job that finishes the store. The
# tasks need not run at the same time. What failed ones left undone is done by that job alone; when
# that is too much for one, cancel it and run the same again: what is written stays.
# What stands in #SBATCH lines, SBATCH_PARTITION, SBATCH_ACCOUNT or SBATCH_TIMELIMIT change.
#SBATCH --job-name=scalebrain-ingest
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=12:00:00
#SBATCH --output=scalebrain-ingest-%j.log
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

usage="usage: ingest_array.sh N SOURCE STORE [options of scalebrain ingest]"
n=${1:?$usage}
if ! [[ $n =~ ^[1-9][0-9]*$ ]] || [ $# -lt 3 ]; then
  echo "$usage" >&2
  exit 2
fi
here=(--scheduler threads --n-workers "${SLURM_CPUS_PER_TASK:-1}")

case "${SCALEBRAIN_STEP:-submit}" in
  submit)
    array=$(sbatch --parsable --array="1-$n" --export=ALL,SCALEBRAIN_STEP=part "$0" "$@")
    last=$(sbatch --parsable --dependency="afterany:${array%%;*}" \
      --export=ALL,SCALEBRAIN_STEP=finish "$0" "$@")
    echo "tasks ${array%%;*}, then ${last%%;*} finishes the store: squeue --me"
    ;;
  part)
    exec scalebrain ingest "${@:2}" --part "$SLURM_ARRAY_TASK_ID/$n" "${here[@]}"
    ;;
  finish)
    status=0
    scalebrain ingest "${@:2}" "${here[@]}" || status=$?
    if [ "$status" -eq 3 ]; then
      echo "done; who was rejected, and why: STORE/ingest/rejected.tsv"
      status=0
    fi
    exit "$status"
    ;;
esac
