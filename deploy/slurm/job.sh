#!/usr/bin/env bash
# A study as a batch job:
#   sbatch job.sh BIDS_DIR OUT [PROFILE]
# With a profile (profiles.yaml) this job submits more of them for the workers; without, the
# workers are the cores of this job. Killed or out of time, submit the same again: it goes on.
# What stands in #SBATCH lines, SBATCH_PARTITION, SBATCH_ACCOUNT or options of sbatch change. They
# are of this job alone: those of the workers are what the profile says.
#SBATCH --job-name=scalebrain
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --output=scalebrain-%j.log
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

bids=${1:?usage: sbatch job.sh BIDS_DIR OUT [PROFILE]}
out=${2:?usage: sbatch job.sh BIDS_DIR OUT [PROFILE]}
if [ $# -ge 3 ]; then
  workers=(--scheduler "slurm:$3")
else
  workers=(--n-workers "${SLURM_CPUS_PER_TASK:-1}")
fi

# The jobs of the workers are submitted from here, and to sbatch a variable counts more than a line
# of theirs: they would go to the partition of this job, with its time, whatever the profile says.
unset "${!SBATCH_@}"

status=0
scalebrain run "$bids" "$out" "${workers[@]}" || status=$?
if [ "$status" -eq 3 ]; then
  echo "done; who was rejected, and why: $out/cohort.zarr/ingest/rejected.tsv"
  status=0
fi
exit "$status"
