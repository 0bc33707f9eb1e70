#!/usr/bin/env bash
# Trains quoting on this machine: 1 process on the CPU, fp32, global batch 1 = 1 x 1 x 1.
# Compiled by ratc from ../spec.yaml: review it, do not edit it.
# Again, from this folder: ratc compile ../spec.yaml --target local -o .
set -euo pipefail
unset CDPATH

ratc_here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# Where data and results lie may be said when this runs; everything else was decided when it was compiled.
[ -z "${RAT_DATA_DIR:-}" ] || RAT_DATA_DIR=$(realpath -m -- "$RAT_DATA_DIR")
[ -z "${RAT_OUTPUT_DIR:-}" ] || RAT_OUTPUT_DIR=$(realpath -m -- "$RAT_OUTPUT_DIR")
cd -- "$ratc_here"/..  # the spec's folder: its relative paths start here
ratc_data_dir='a '"'"'folder'"'"' with "quotes", $(touch pwned) and `ticks`; rm -rf $HOME'
ratc_output_dir=$'-out\nnext line'
ratc_data_dir=${RAT_DATA_DIR:-$ratc_data_dir}
ratc_output_dir=${RAT_OUTPUT_DIR:-$ratc_output_dir}

# Environment
set +u  # what these source may read variables that are not set
module load cuda/12.4
module load 'odd name;x'
# shellcheck disable=SC1090,SC1091
source -- 'my venv/$(touch pwned)'/bin/activate
set -u
export OMP_NUM_THREADS=2
export OMP_WAIT_POLICY=passive
export PLAIN=1
export SPACED='a b'
export TRICKY=$'$(touch pwned)\'"\n'
: "${WANDB_API_KEY:?is named under secrets in the spec and must be set}"
ulimit -n 4096
ratc_python=python3  # of the environment that the spec names

# The files here are those that were reviewed, and the hardware is what they were compiled for.
"$ratc_python" -m ratc_runtime.preflight "$ratc_here/lock.yaml"

# A signal leaves a stop file; the run saves at the next step and ends by itself.
rm -f -- "$ratc_output_dir/STOP"
trap 'ratc_signal=1; mkdir -p -- "$ratc_output_dir" && touch -- "$ratc_output_dir/STOP"' INT TERM USR2
"$ratc_python" -m accelerate.commands.launch --quiet --config_file "$ratc_here/accelerate.yaml" \
  -m ratc_runtime.train --lock "$ratc_here/lock.yaml" --data-dir="$ratc_data_dir" --output-dir="$ratc_output_dir" "$@" &
ratc_job=$!
while :; do  # a signal ends `wait`, not the job
  ratc_signal='' ratc_status=0
  wait "$ratc_job" || ratc_status=$?
  [ -n "$ratc_signal" ] || break
done
exit "$ratc_status"
