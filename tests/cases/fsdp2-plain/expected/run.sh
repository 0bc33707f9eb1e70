#!/usr/bin/env bash
# Trains case on this machine: 4 processes on a100-80, bf16, global batch 64 = 8 x 2 x 4.
# Compiled by ratc from ../spec.yaml: review it, do not edit it.
# Again, from this folder: ratc compile ../spec.yaml --target local -o .
set -euo pipefail
unset CDPATH

ratc_here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# RAT_DATA_DIR and RAT_OUTPUT_DIR may replace the folders of data and results; everything else is as compiled.
[ -z "${RAT_DATA_DIR:-}" ] || RAT_DATA_DIR=$(realpath -m -- "$RAT_DATA_DIR")
[ -z "${RAT_OUTPUT_DIR:-}" ] || RAT_OUTPUT_DIR=$(realpath -m -- "$RAT_OUTPUT_DIR")
cd -- "$ratc_here"/..  # the spec's folder, where its relative paths start
ratc_data_dir=data
ratc_output_dir=outputs/case
ratc_data_dir=${RAT_DATA_DIR:-$ratc_data_dir}
ratc_output_dir=${RAT_OUTPUT_DIR:-$ratc_output_dir}

ratc_doing=''
# shellcheck disable=SC2317,SC2329  # the trap calls it
ratc_end() {
  local ratc_last=$?
  if [ -n "$ratc_doing" ]; then
    echo "error[R560]: the environment is not set up: $ratc_doing ended with status $ratc_last" >&2
    if [ "$ratc_last" = 0 ]; then exit 1; fi
  fi
}
trap ratc_end EXIT
ratc_refuse() { ratc_doing=''; echo "error[R560]: the environment is not set up: $*" >&2; exit 1; }

# Environment
export OMP_NUM_THREADS=1
ratc_python=${RATC_PYTHON:-python3}
command -v -- "$ratc_python" >/dev/null || ratc_refuse "there is no $ratc_python"

# Remove variables that launchers and their libraries would use instead of the lock: from your shell, or from sourced files.
ratc_over=("${!ACCELERATE_@}" "${!FSDP_@}" "${!MEGATRON_LM_@}" "${!PARALLELISM_CONFIG_@}" "${!PET_@}" "${!TORCHELASTIC_@}" "${!TORCH_ELASTIC_@}")
for ratc_name in RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_NAME ROLE_RANK ROLE_WORLD_SIZE NODE_RANK CROSS_RANK CROSS_SIZE LOCAL_SIZE MASTER_ADDR MASTER_PORT FORK_LAUNCHED DS_ACCELERATOR PYTHON_EXEC NVIDIA_TF32_OVERRIDE PYTORCH_NO_CUDA_MEMORY_CACHING TORCHDYNAMO_DISABLE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE TORCH_COMPILE_DISABLE; do
  if [ -n "${!ratc_name+set}" ]; then ratc_over+=("$ratc_name"); fi
done
if [ "${#ratc_over[@]}" -gt 0 ]; then
  echo "ratc: not for this run, the lock decides: ${ratc_over[*]}" >&2
  unset "${ratc_over[@]}"
fi
unset "${!OMPI_COMM_WORLD_@}" "${!MV2_COMM_WORLD_@}" "${!PMI_@}" "${!PMIX_@}" "${!JSM_NAMESPACE_@}" MPI_LOCALRANKID MPI_LOCALNRANKS SLURM_PROCID SLURM_LOCALID
# With this variable, `python -m` (3.11 and later) imports nothing from the working folder, such as a file torch.py there.
export PYTHONSAFEPATH=1

# Check that the files are the reviewed ones, and that the hardware is the one of the lock.
"$ratc_python" -m ratc_runtime.preflight "$ratc_here/lock.yaml" --data-dir="$ratc_data_dir" "$@"
# Settings of the CUDA allocator. Which of the two variables torch reads depends on its version.
export PYTORCH_ALLOC_CONF=expandable_segments:False PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False

# A signal makes the file STOP; the run then saves a checkpoint at the next step and ends.
rm -f -- "$ratc_output_dir/STOP" 2>/dev/null || true  # the run itself reports problems of the folder
# If the file cannot be written, the run goes on; this script still exits with its status.
trap 'ratc_signal=1; { mkdir -p -- "$ratc_output_dir" && touch -- "$ratc_output_dir/STOP"; } || true' INT TERM USR2
"$ratc_python" -m torch.distributed.run --standalone --nproc_per_node 4 \
  -m ratc_runtime.train --lock "$ratc_here/lock.yaml" --data-dir="$ratc_data_dir" --output-dir="$ratc_output_dir" "$@" &
ratc_job=$!
while :; do  # a signal ends `wait`, not the job
  ratc_signal='' ratc_status=0
  wait "$ratc_job" || ratc_status=$?
  [ -n "$ratc_signal" ] || break
done
exit "$ratc_status"
