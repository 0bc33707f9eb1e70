#!/usr/bin/env bash
# Trains case on this machine: 1 process on the CPU, fp32, global batch 4 = 4 x 1 x 1.
# Compiled by ratc from ../spec.yaml: review it, do not edit it.
# Again, from this folder: ratc compile ../spec.yaml --target local --set data.data_dir=../elsewhere --set training.learning_rate=0.0002 --set training.epochs=3 --set seed=7 --set 'training.betas=[0.8, 0.99]' --set 'description=two words' -o .
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# Where data and results lie may be said when this runs; everything else was decided when it was compiled.
[ -z "${RAT_DATA_DIR:-}" ] || RAT_DATA_DIR=$(realpath -m -- "$RAT_DATA_DIR")
[ -z "${RAT_OUTPUT_DIR:-}" ] || RAT_OUTPUT_DIR=$(realpath -m -- "$RAT_OUTPUT_DIR")
cd -- "$here"/..  # the spec's folder: its relative paths start here
data_dir=../elsewhere
output_dir=outputs/case
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
