#!/usr/bin/env bash
# What every node of a job runs. Trains demo on 64 nodes: 512 processes on h100, bf16, global batch 4096 = 4 x 2 x 512.
# Compiled by ratc from ../spec.yaml: review it, do not edit it.
# Again, from this folder: ratc compile ../spec.yaml --target slurm -o .
# Called by job.sbatch: node.sh LOCK HEAD PORT ID; RAT_DATA_DIR and RAT_OUTPUT_DIR are set.
set -euo pipefail
unset CDPATH
# The batch script asks the run to stop; the launcher must not be ended before it has saved.
trap '' TERM USR2
ratc_lock=$1 ratc_id=$4 ratc_rank=${SLURM_NODEID:?}
ratc_head=$2 ratc_port=$3
ratc_here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd -- "$ratc_here"/..  # the spec's folder: its relative paths start here

# Environment
set +u  # what these source may read variables that are not set
# shellcheck disable=SC1090,SC1091
source "$(conda info --base)/etc/profile.d/conda.sh"
conda activate rat
set -u
export OMP_NUM_THREADS=4
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export NCCL_IB_HCA=mlx5
ratc_python=python3  # of the environment that the spec names

# The first node's output goes to the job's own log too, that of every node to a file.
ratc_log=$RAT_OUTPUT_DIR/logs/$ratc_id-node$ratc_rank.log
ratc_keep() {
  if [ "$ratc_rank" = 0 ]; then tee -a -- "$ratc_log"; else cat >>"$ratc_log"; fi
}
ratc_run() {
  # The files here are those that were reviewed, and the hardware is what they were compiled for.
  "$ratc_python" -m ratc_runtime.preflight "$ratc_lock" || return
  # How the CUDA allocator takes memory. Which of the two torch reads depends on its version.
  export PYTORCH_ALLOC_CONF=expandable_segments:False PYTORCH_CUDA_ALLOC_CONF=expandable_segments:False
  ratc_train=(ratc_runtime.train --lock "$ratc_lock" --data-dir="$RAT_DATA_DIR" --output-dir="$RAT_OUTPUT_DIR")
  export PET_SIGNALS_TO_HANDLE=SIGINT  # TERM is left to the ranks
  "$ratc_python" -m torch.distributed.run --nproc-per-node 8 \
    --nnodes 64 --node-rank "$ratc_rank" --rdzv-backend static --rdzv-id "$ratc_id" \
    --rdzv-endpoint "$ratc_head:$ratc_port" \
    -m "${ratc_train[@]}"
}
ratc_status=0
ratc_run 2>&1 | ratc_keep || ratc_status=${PIPESTATUS[0]}
if [ "$ratc_status" != 0 ] && [ "$ratc_rank" != 0 ]; then
  echo "node $ratc_rank ($(hostname)) failed with status $ratc_status; the end of $ratc_log:" >&2
  tail -n 20 -- "$ratc_log" >&2
fi
exit "$ratc_status"
