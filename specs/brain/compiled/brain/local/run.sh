#!/usr/bin/env bash
# Trains brain on this machine: 1 process on the CPU, fp32, global batch 8 = 4 x 2 x 1.
# Compiled by ratc from ../../../config.yaml: review it, do not edit it.
# Again, from this folder: ratc compile ../../../config.yaml --target local
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# Where data and results lie may be said when this runs; everything else was decided when it was compiled.
[ -z "${RAT_DATA_DIR:-}" ] || RAT_DATA_DIR=$(realpath -m -- "$RAT_DATA_DIR")
[ -z "${RAT_OUTPUT_DIR:-}" ] || RAT_OUTPUT_DIR=$(realpath -m -- "$RAT_OUTPUT_DIR")
cd -- "$here"/../../..  # the spec's folder: its relative paths start here
data_dir=data
output_dir=outputs/brain
data_dir=${RAT_DATA_DIR:-$data_dir}
output_dir=${RAT_OUTPUT_DIR:-$output_dir}

# Environment
export OMP_NUM_THREADS=2
python=${RATC_PYTHON:-python3}

# The files here are those that were reviewed, and the hardware is what they were compiled for.
"$python" -m ratc_runtime.preflight "$here/lock.yaml"

# A signal leaves a stop file; the run saves at the next step and ends by itself.
rm -f -- "$output_dir/STOP"
trap 'mkdir -p -- "$output_dir" && touch -- "$output_dir/STOP"' INT TERM USR2
"$python" -m accelerate.commands.launch --quiet --config_file "$here/accelerate.yaml" \
  -m ratc_runtime.train --lock "$here/lock.yaml" --data-dir "$data_dir" --output-dir "$output_dir" "$@" &
job=$!
while :; do
  status=0
  wait "$job" || status=$?
  kill -0 "$job" 2>/dev/null || break
done
exit "$status"
