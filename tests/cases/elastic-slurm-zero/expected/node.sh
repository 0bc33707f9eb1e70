#!/usr/bin/env bash
# Every node of the job runs this script. Trains case on 2, 4 or 8 nodes: 8, 16 or 32 processes on h100, bf16, global batch 64.
# Compiled by ratc from ../spec.yaml: review it, do not edit it.
# Again, from this folder: ratc compile ../spec.yaml --target slurm --no-predict -o .
# Called by job.sbatch: node.sh LOCK HEAD PORT ID; RAT_DATA_DIR and RAT_OUTPUT_DIR are set.
set -euo pipefail
unset CDPATH
ulimit -c 0
ulimit -l unlimited 2>/dev/null || echo "ratc: $(ulimit -l) KiB of memory may be locked, InfiniBand may need more" >&2
# The batch script asks the run to stop; these signals must not end the launcher before the run has saved.
trap '' TERM USR2
ratc_lock=$1 ratc_id=$4 ratc_rank=${SLURM_NODEID:?}
ratc_head=$2 ratc_port=$3
ratc_here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd -- "$ratc_here"/..  # the spec's folder, where its relative paths start
ratc_data_dir=$RAT_DATA_DIR ratc_output_dir=$RAT_OUTPUT_DIR ratc_tmp=''

ratc_doing=''
# shellcheck disable=SC2317,SC2329  # the trap calls it
ratc_end() {
  local ratc_last=$?
  if [ -n "$ratc_tmp" ]; then rm -rf -- "$ratc_tmp"; fi
  if [ -n "$ratc_doing" ]; then
    echo "error[R560]: the environment is not set up: $ratc_doing ended with status $ratc_last" >&2
    if [ "$ratc_last" = 0 ]; then exit 1; fi
  fi
}
trap ratc_end EXIT
ratc_refuse() { ratc_doing=''; echo "error[R560]: the environment is not set up: $*" >&2; exit 1; }

# Environment
ratc_root=$PWD
set +eu  # sourced files may fail a test or read unset variables; the result is checked instead
ratc_venv=.venv
ratc_doing="sourcing $ratc_venv/bin/activate"
[ -r "$ratc_venv/bin/activate" ] || ratc_refuse "there is no $ratc_venv/bin/activate"
# shellcheck disable=SC1090,SC1091
source -- "$ratc_venv/bin/activate"
if [ -e "$ratc_venv/pyvenv.cfg" ] && ! [ "${VIRTUAL_ENV:-}" -ef "$ratc_venv" ]; then
  ratc_refuse "$ratc_venv/bin/activate activates ${VIRTUAL_ENV:-nothing}"
fi
ratc_doing=''
set -euo pipefail
cd -- "$ratc_root"  # the lines above may have changed the folder
export OMP_NUM_THREADS=4
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export NCCL_IB_HCA=mlx5
ratc_python=python3  # the one of the environment that the spec names
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
export RAT_DATA_DIR=$ratc_data_dir RAT_OUTPUT_DIR=$ratc_output_dir

# Make a temporary folder for this start, which is removed at its end. Remove those of earlier starts that were killed.
for ratc_folder in "${TMPDIR:-/tmp}" /tmp; do
  for ratc_left in "$ratc_folder/ratc-${ratc_id%.*}".*-"n$ratc_rank".*; do
    if [ -O "$ratc_left" ] && [ ! -L "$ratc_left" ]; then rm -rf -- "$ratc_left" || true; fi
  done
  ratc_tmp=$(mktemp -d -- "$ratc_folder/ratc-$ratc_id-n$ratc_rank.XXXXXX" 2>/dev/null) && break
done
[ -n "$ratc_tmp" ] || { echo "ratc: no temporary folder can be made on $(hostname)" >&2; exit 1; }
export TMPDIR=$ratc_tmp

# The output of every node goes to a file; that of the first node also to the job's log.
ratc_log=$RAT_OUTPUT_DIR/logs/$ratc_id-node$ratc_rank.log
ratc_keep() {
  if [ "$ratc_rank" = 0 ]; then tee -a -- "$ratc_log"; else cat >>"$ratc_log"; fi
}
ratc_run() {
  # Check that the files are the reviewed ones, and that the hardware is the one of the lock.
  "$ratc_python" -m ratc_runtime.preflight "$ratc_lock" || return
  "$ratc_python" -m ratc_runtime.meeting "$ratc_head" "$ratc_port" "$ratc_rank" || return
  # Settings of the CUDA allocator. Which of the two variables torch reads depends on its version.
  export PYTORCH_ALLOC_CONF=expandable_segments:False PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False
  ratc_train=(ratc_runtime.train --lock "$ratc_lock" --data-dir="$RAT_DATA_DIR" --output-dir="$RAT_OUTPUT_DIR")
  # For torchrun, which Accelerate calls: an id for this start, and SIGTERM is left to the ranks.
  export PET_RDZV_ID=$ratc_id PET_SIGNALS_TO_HANDLE=SIGINT
  ratc_config=$ratc_here/accelerate.yaml
  "$ratc_python" -m accelerate.commands.launch --quiet --config_file "$ratc_config" \
    --num_machines "$RATC_NODES" --num_processes "$((RATC_NODES * 4))" \
    --machine_rank "$ratc_rank" --main_process_ip "$ratc_head" --main_process_port "$ratc_port" \
    -m "${ratc_train[@]}"
}
ratc_status=0
ratc_run 2>&1 | ratc_keep || ratc_status=${PIPESTATUS[0]}
if [ "$ratc_status" != 0 ] && [ "$ratc_rank" != 0 ]; then
  echo "node $ratc_rank ($(hostname)) failed with status $ratc_status; its findings, and the end of $ratc_log:" >&2
  grep -A 2 -E '^error\[R[0-9]+\]' -- "$ratc_log" >&2 || true
  tail -n 20 -- "$ratc_log" >&2
fi
exit "$ratc_status"
