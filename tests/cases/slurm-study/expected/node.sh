#!/usr/bin/env bash
# What every node of a study's job runs. Runs the study demo on 2 nodes: 5 trials, each on 2 GPUs and 24 cores.
# Compiled by ratc from ../spec.yaml: review it, do not edit it.
# Again, from this folder: ratc compile ../spec.yaml --target slurm --set training.weight_decay=0.02 --set 'description=it'"'"'s a study' -o .
# Called by job.sbatch: node.sh LOCK HEAD PORT ID; RAT_DATA_DIR and RAT_OUTPUT_DIR are set.
set -euo pipefail
unset CDPATH
# The batch script asks the study to stop; Ray must not be ended before the trials have saved.
trap '' TERM USR2
ratc_head=$2 ratc_port=$3 ratc_id=$4 ratc_rank=${SLURM_NODEID:?}
ratc_here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd -- "$ratc_here"/..  # the spec's folder: its relative paths start here

# Environment
export NCCL_SOCKET_IFNAME=ib0
export GLOO_SOCKET_IFNAME=ib0
export NCCL_IB_HCA=mlx5
ratc_python=${RATC_PYTHON:-python3}

# The first node's output goes to the job's own log too, that of every node to a file.
ratc_log=$RAT_OUTPUT_DIR/logs/$ratc_id-node$ratc_rank.log
ratc_keep() {
  if [ "$ratc_rank" = 0 ]; then tee -a -- "$ratc_log"; else cat >>"$ratc_log"; fi
}
ratc_run() {
  # Where the first node says that the study is over; Ray's sockets need a short path.
  ratc_ray=(
    ratc.cli.ray_node --rank "$ratc_rank" --head "$ratc_head" --port "$ratc_port" --cpus 48 --gpus 4
    --over "$RAT_OUTPUT_DIR/study/over-$ratc_id" --sockets "/tmp/ratc-ray-$UID-$ratc_id"
    --log "$RAT_OUTPUT_DIR/logs/$ratc_id-ray$ratc_rank.log" --
  )
  if [ "$ratc_rank" = 0 ]; then
    # The files here are those that were reviewed: compiled again, they are the same.
    (cd -- "$ratc_here" && env -u RAT_DATA_DIR -u RAT_OUTPUT_DIR "$ratc_python" -m ratc compile ../spec.yaml --target slurm --set training.weight_decay=0.02 --set 'description=it'"'"'s a study' -o . --check) || return
  fi
  "$ratc_python" -m "${ratc_ray[@]}" \
    "$ratc_python" -m ratc tune spec.yaml --facts "$ratc_here/facts.yaml" --set training.weight_decay=0.02 --set 'description=it'"'"'s a study' --ray-address "$ratc_head:$ratc_port"
}
ratc_status=0
ratc_run 2>&1 | ratc_keep || ratc_status=${PIPESTATUS[0]}
if [ "$ratc_status" != 0 ] && [ "$ratc_rank" != 0 ]; then
  echo "node $ratc_rank ($(hostname)) failed with status $ratc_status; the end of $ratc_log:" >&2
  tail -n 20 -- "$ratc_log" >&2
fi
exit "$ratc_status"
