#!/usr/bin/env bash
# Debian packages that some tests need: a real T1w scan in MNI space (mricron-data), a
# browser for the report, the font its pictures are checked with, R with the packages whose
# numbers the statistics must equal, and SLURM, which runs on the loopback interface. Without apt or root it says so and goes on; the tests that
# need them then say what is missing.
set -euo pipefail

packages=(
  mricron-data chromium fonts-dejavu-core r-base-core r-cran-lme4 r-cran-lmertest r-cran-lavaan
  r-cran-jsonlite slurmctld slurmd slurm-client munge
)

missing=()
for package in "${packages[@]}"; do
  if ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed'; then
    missing+=("$package")
  fi
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "system packages: all there (${packages[*]})"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
  else
    echo "note: not root, so these stay missing: ${missing[*]}"
    exit 0
  fi
fi
if ! command -v apt-get >/dev/null; then
  echo "note: no apt-get here, so these stay missing: ${missing[*]}"
  exit 0
fi

export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
