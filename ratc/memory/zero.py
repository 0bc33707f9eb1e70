"""How the parallel engines lay out what they hold: DDP's buckets and DeepSpeed's ZeRO partitions, in bytes on one rank.

Read in torch/nn/parallel/distributed.py and in DeepSpeed 0.19's runtime/zero/stage_1_and_2.py, stage3.py and
fp16/unfused_optimizer.py; each line names the attribute it stands for. P are parameter elements, N is the world size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ratc.memory.trace import Trace

Engine: TypeAlias = Literal["torch", "deepspeed"]

#: Elements of a DeepSpeed bucket, as the emitted deepspeed.json has them (ratc/targets/deepspeed.py) before clamping.
BUCKET = 50_000_000
#: `stage3_max_live_parameters` and `stage3_max_reuse_distance` as emitted, elements.
MAX_LIVE = 1_000_000_000
#: `DistributedDataParallel`'s bucket_cap_mb, and `_DEFAULT_FIRST_BUCKET_BYTES`.
DDP_BUCKET, DDP_FIRST_BUCKET = 25 << 20, 1 << 20
#: `nccl_start_alignment_factor` x N elements is what a flat group is padded to.
ALIGNMENT = 2
MASTER = MOMENT = 4
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a step is spread over ranks. ``bucket`` is in elements; ``overlap`` is `overlap_comm`."""

    engine: Engine = "torch"
    world_size: int = 1
    zero_stage: int = 0
    offload_optimizer: bool = False
    precision: str = "fp32"
    bucket: int = BUCKET
    overlap: bool = True
    accumulates: bool = False


@dataclass(frozen=True, slots=True)
class Block:
    """One allocation of an engine: what it is, of which kind, and its bytes."""

    name: str
    kind: str
    bytes_: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What an engine adds to a traced step, and what it does with the step's own parameters and gradients.

    ``persistent`` from before the first step; ``backward`` from the start of each backward pass to its end; ``update``
    from there to the end of the step. ``parameters``: the traced blocks are kept, replaced (dropped), or gathered for
    the step. ``gradients``: the traced blocks live as traced, until the update, or until ``pending_bytes`` of them are
    reduced. ``host_bytes`` is page-locked or plain host memory of this rank.
    """

    persistent: tuple[Block, ...] = ()
    backward: tuple[Block, ...] = ()
    update: tuple[Block, ...] = ()
    parameters: Literal["kept", "replaced", "gathered"] = "kept"
    gradients: Literal["traced", "until_update", "reduced"] = "traced"
    pending_bytes: int = 0
    host_bytes: int = 0
    notes: tuple[str, ...] = field(default=())


def bucket_elements(trainable: int, most: int = BUCKET) -> int:
    """Elements of a bucket that is no larger than the model: DeepSpeed allocates a bucket in full, whatever the model's
    size.
    """
    return max(1, min(most, trainable))


def pinned(size: int) -> int:
    """Bytes of page-locked host memory: torch's CachingHostAllocator takes the next power of two."""
    return 1 << max(0, size - 1).bit_length() if size else 0


def partition(elements: int, world_size: int) -> int:
    """Elements of one rank's part of a flat group: `flatten_dense_tensors_aligned` pads to a multiple of 2 x N."""
    unit = ALIGNMENT * world_size
    return -(-elements // unit) * ALIGNMENT


def layout(trace: Trace, strategy: Strategy) -> Layout:
    """The layout of an engine for a model. Raises ValueError for a combination that DeepSpeed does not have."""
    if strategy.engine == "torch":
        return _ddp(trace) if strategy.world_size > 1 else Layout()
    if strategy.zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"ZeRO has no stage {strategy.zero_stage}")
    if strategy.offload_optimizer and strategy.zero_stage == 0:
        raise ValueError("the optimizer is offloaded from ZeRO stage 1 on")
    return (_unpartitioned, _one_and_two, _one_and_two, _three)[strategy.zero_stage](trace, strategy)


def gradient_sizes(trace: Trace) -> list[int]:
    """Bytes of the gradients, in the order in which a backward pass makes them."""
    program = trace.program
    kind, end = program.kinds.index("gradient"), (*trace.steps, len(program.ops))[1]
    made = [op for op in program.ops[trace.steps[0] : end] if op >= 0 and program.kind[op] == kind]
    return [round(program.fixed[op]) for op in made]


def _ddp(trace: Trace) -> Layout:
    # The reducer's buckets are copies of all gradients (gradient_as_bucket_view is False by default); with unused
    # parameters looked for, buckets follow `_compute_bucket_assignment_by_size` in parameter order and are never
    # rebuilt.
    buckets, open_bytes, limit = [], 0, DDP_FIRST_BUCKET
    for size in reversed(gradient_sizes(trace)):
        open_bytes += size
        if open_bytes >= limit:
            buckets.append(open_bytes)
            open_bytes, limit = 0, DDP_BUCKET
    buckets += [open_bytes] if open_bytes else []
    return Layout(persistent=tuple(Block("DDP gradient bucket", "bucket", size) for size in buckets))


def _unpartitioned(trace: Trace, strategy: Strategy) -> Layout:
    # FP16_UnfusedOptimizer: fp16_groups, fp32_groups, both moments; fp32 gradients in `step`. In fp32 torch's optimizer
    # alone. `buffered_allreduce_fallback` flattens up to 5e8 gradient elements before the update.
    count, width = trace.trainable, _BYTES[strategy.precision]
    states = [Block("exp_avg", "optimizer", MOMENT * count), Block("exp_avg_sq", "optimizer", MOMENT * count)]
    update = [Block("flattened gradients", "bucket", width * min(count, 500_000_000))]
    if width < MASTER:
        states.insert(0, Block("fp32 weights", "optimizer", MASTER * count))
        update.append(Block("fp32 gradients", "gradient", MASTER * count))
    return Layout(tuple(states), (), tuple(update), "kept", "until_update")


def _one_and_two(trace: Trace, strategy: Strategy) -> Layout:
    count, width = trace.trainable, _BYTES[strategy.precision]
    part = partition(count, strategy.world_size)
    buckets = 2 if strategy.overlap else 1
    # bit16_groups_flat: the weights themselves, padded; the module's parameters become views of it. Frozen ones stay as
    # they are.
    persistent = [Block("flat weights", "parameter", width * part * strategy.world_size)]
    if trace.count > count:
        persistent.append(Block("frozen weights", "parameter", max(0, trace.parameter_bytes - width * count)))
    # ipg_buckets: made at the start of each backward pass (`setup_buckets`), dropped at its end; two where
    # communication overlaps.
    backward = [Block("reduce bucket", "bucket", width * strategy.bucket)] * buckets
    if strategy.zero_stage == 2:
        # `copy_grads_in_partition`: this rank's share of the gradients, collected during backward.
        backward.append(Block("gradient partition", "gradient", width * part))
    if strategy.accumulates and strategy.zero_stage == 2:
        persistent.append(Block("accumulated gradient partition", "gradient", width * part))  # all_grad_tensors
    update: list[Block] = []
    host = 0
    if strategy.offload_optimizer:
        # temp_grad_buffer_for_gpu_offload holds the largest parameter; the rest is on the host: master, moments and
        # gradients in fp32, the bit16 copy back, and accumulated gradients.
        backward.append(Block("offload staging", "bucket", width * (max(gradient_sizes(trace), default=0) // width)))
        host = pinned(MASTER * part) * 2 + 2 * MOMENT * part + pinned(width * part) * (2 if strategy.accumulates else 1)
    else:
        # single_partition_of_fp32_groups (a copy in fp32 training too) and its two moments.
        persistent += [
            Block("fp32 weights", "optimizer", MASTER * part),
            Block("exp_avg", "optimizer", MOMENT * part),
            Block("exp_avg_sq", "optimizer", MOMENT * part),
        ]
        # averaged_gradients, flattened, turned to fp32 (`step`). The fused AdamW takes nothing of its own.
        update = [Block("averaged gradients", "gradient", width * part)]
        if width < MASTER:
            update.append(Block("fp32 gradients", "gradient", MASTER * part))
    pending = width * strategy.bucket * (2 if strategy.overlap else 1)
    kept: Literal["until_update", "reduced"] = "until_update" if strategy.zero_stage == 1 else "reduced"
    return Layout(tuple(persistent), tuple(backward), tuple(update), "replaced", kept, pending, host)


def _three(trace: Trace, strategy: Strategy) -> Layout:
    count, width = trace.trainable, _BYTES[strategy.precision]
    part = partition(count, strategy.world_size)
    every = partition(trace.count, strategy.world_size)
    # lp_param_buffer, the IPG bucket (one, for good) and grad_partitions_flat_buffer.
    persistent = [
        Block("partition of the weights", "parameter", width * every),
        Block("reduce bucket", "bucket", width * strategy.bucket),
    ]
    update: list[Block] = []
    host = 0
    if strategy.offload_optimizer:
        host = pinned(MASTER * part) * 2 + 2 * MOMENT * part + pinned(width * part)
    else:
        persistent += [
            Block("partition of the gradients", "gradient", width * part),
            Block("fp32 weights", "optimizer", MASTER * part),
            Block("exp_avg", "optimizer", MOMENT * part),
            Block("exp_avg_sq", "optimizer", MOMENT * part),
        ]
        update = [Block("averaged gradients", "gradient", width * part)]
        if width < MASTER:
            update.append(Block("fp32 gradients", "gradient", MASTER * part))
    notes: tuple[str, ...] = ()
    if trace.count <= MAX_LIVE:
        # `__params_to_release` keeps what is used again within max_reuse_distance elements: here everything, from
        # forward on.
        notes = ("gathered weights stay for the whole step: the model is smaller than stage3_max_reuse_distance",)
    pending = width * strategy.bucket
    return Layout(tuple(persistent), (), tuple(update), "gathered", "reduced", pending, host, notes)
