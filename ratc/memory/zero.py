"""How the parallel engines divide their memory: DDP's buckets and DeepSpeed's ZeRO partitions, on one rank.

Read in torch/nn/parallel/distributed.py and in DeepSpeed 0.19's runtime/zero/stage_1_and_2.py, stage3.py and
fp16/unfused_optimizer.py; each line names the attribute it stands for. When the blocks are allocated and freed stands
in `zero_events.py`. N is the world size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ratc.memory.trace import Trace

Engine: TypeAlias = Literal["torch", "deepspeed", "fsdp2"]

#: Elements of a DeepSpeed bucket, as the emitted deepspeed.json has them (ratc/targets/deepspeed.py) before clamping.
BUCKET = 50_000_000
#: `stage3_max_live_parameters` and `stage3_max_reuse_distance` as emitted, elements.
MAX_LIVE = 1_000_000_000
#: `DistributedDataParallel`'s bucket_cap_mb, and `_DEFAULT_FIRST_BUCKET_BYTES`.
DDP_BUCKET, DDP_FIRST_BUCKET = 25 << 20, 1 << 20
#: `sub_group_size` of stage 3, elements (runtime/zero/config.py): larger groups are updated part by part.
SUB_GROUP = 1_000_000_000
#: A flat group is padded to a multiple of `nccl_start_alignment_factor` x N elements.
ALIGNMENT = 2
MASTER = MOMENT = 4
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a step is spread over ranks. ``bucket`` is in elements; ``overlap`` is `overlap_comm`, and ``round_robin`` is
    `round_robin_gradients` of ZeRO 2, which plans for a range of nodes switch off.

    Of FSDP2 are ``shard`` (`full`, `grads` or `hybrid`), ``shards`` (processes of a group), ``wrap`` (classes of the
    units, None for those of repeated layers) and ``gathered`` (precision of gathered weights); ``offload_optimizer`` is
    of all shards.
    """

    engine: Engine = "torch"
    world_size: int = 1
    zero_stage: int = 0
    offload_optimizer: bool = False
    precision: str = "fp32"
    bucket: int = BUCKET
    overlap: bool = True
    round_robin: bool = True
    accumulates: bool = False
    shard: str = "full"
    shards: int = 1
    wrap: tuple[str, ...] | None = None
    gathered: str = "fp32"

    @property
    def process_groups(self) -> int:
        """Process groups of which each has a communicator: none for one process, else that of all processes.

        DeepSpeed clones it (`_clone_world_group` of utils/groups.py). A mesh of one dimension uses it, one of two has a
        group for each of them (`_init_one_process_group` of torch/distributed/device_mesh.py).
        """
        if self.world_size == 1:
            return 0
        if self.engine == "fsdp2":
            return 1 if self.shards == self.world_size else 3
        return 2 if self.engine == "deepspeed" else 1


@dataclass(frozen=True, slots=True)
class Block:
    """One allocation of an engine: its name, its kind, and its bytes."""

    name: str
    kind: str
    bytes_: int


@dataclass(frozen=True, slots=True)
class ShardedUnit:
    """A module that FSDP2 gathers by itself, by its name ("" is the model's own rest), and the bytes of its weights."""

    name: str
    bytes_: int


@dataclass(frozen=True, slots=True)
class Group:
    """A group of the optimizer as DeepSpeed flattens it, in elements.

    ``blocks`` are the traced allocations of its parameters and ``parameters`` their elements, in the same order;
    ``part`` is this rank's partition, and ``parts`` is the same, cut if stage 3 updates it in several turns.
    """

    blocks: tuple[int, ...]
    parameters: tuple[int, ...]
    part: int
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The blocks that an engine adds to a traced step.

    Without ZeRO ``persistent`` lives from before the first step, ``update`` at the end of each one. With it ``groups``
    are the flattened weights; ``owned`` are the elements of all parameters of which the rank with most has a share;
    ``frozen`` are the traced allocations of parameters that are not trained. ``host_bytes`` is page-locked or plain
    host memory of this rank. ``units`` are those of FSDP2.
    """

    strategy: Strategy
    persistent: tuple[Block, ...] = ()
    update: tuple[Block, ...] = ()
    groups: tuple[Group, ...] = ()
    frozen: tuple[int, ...] = ()
    owned: int = 0
    host_bytes: int = 0
    notes: tuple[str, ...] = ()
    units: tuple[ShardedUnit, ...] = ()


def bucket_elements(trainable: int, most: int = BUCKET) -> int:
    """Return the elements of a bucket that is no larger than the model: DeepSpeed allocates a bucket in full for any
    model.
    """
    return max(1, min(most, trainable))


def pinned(size: int) -> int:
    """Return the bytes of page-locked host memory for ``size`` bytes: the next power of two, as torch's
    CachingHostAllocator takes it.
    """
    return 1 << max(0, size - 1).bit_length() if size else 0


def partition(elements: int, world_size: int) -> int:
    """Elements of one rank's part of a flat group: `flatten_dense_tensors_aligned` pads to a multiple of 2 x N."""
    unit = ALIGNMENT * world_size
    return -(-elements // unit) * ALIGNMENT


def owned_elements(parameters: Sequence[int], world_size: int, round_robin: bool) -> int:
    """Return the elements of all parameters that reach into a rank's partition, whole, on the rank with the most.

    `copy_grads_in_partition` of stage_1_and_2.py makes room for them; `_round_robin_reorder` deals them out before.
    """
    if round_robin:
        parameters = [size for rank in range(world_size) for size in parameters[rank::world_size]]
    part = partition(sum(parameters), world_size)
    owned = [0] * world_size
    start = 0
    for size in parameters:
        for rank in range(start // part, (start + size - 1) // part + 1 if size else 0):
            owned[rank] += size
        start += size
    return max(owned)


def layout(trace: Trace, strategy: Strategy) -> Layout:
    """Return the blocks that an engine adds to a traced step.

    Raises ValueError for a ZeRO stage other than 0 to 3, and for an offloaded optimizer at stage 0.
    """
    if strategy.engine == "fsdp2":
        return _sharded(trace, strategy)
    if strategy.engine == "torch":
        return _ddp(trace, strategy) if strategy.world_size > 1 else Layout(strategy)
    if strategy.zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"ZeRO has no stage {strategy.zero_stage}")
    if strategy.offload_optimizer and strategy.zero_stage == 0:
        raise ValueError("the optimizer is offloaded from ZeRO stage 1 on")
    return _partitioned(trace, strategy) if strategy.zero_stage else _unpartitioned(trace, strategy)


def _sharded(trace: Trace, strategy: Strategy) -> Layout:
    classes = trace.wrap if strategy.wrap is None else strategy.wrap
    names = sorted((name for name, of in trace.classes.items() if of in classes), key=len, reverse=True)
    sizes = dict.fromkeys((*names, ""), 0.0)
    program = trace.program
    kind = program.kinds.index("parameter")
    for op in program.ops[: trace.steps[0]]:
        if op >= 0 and program.kind[op] == kind:
            module = program.modules[program.module[op]]
            inside = (name for name in names if module == name or module.startswith(f"{name}."))
            sizes[next(inside, "")] += program.fixed[op]
    units = tuple(ShardedUnit(name, round(size)) for name, size in sizes.items())
    part = -(-trace.parameter_bytes // strategy.shards)
    host = 2 * pinned(part) + 2 * part if strategy.offload_optimizer else 0
    return Layout(strategy, units=units, host_bytes=host)


def gradient_sizes(trace: Trace) -> list[int]:
    """Bytes of the gradients, in the order in which a backward pass makes them."""
    program = trace.program
    kind, end = program.kinds.index("gradient"), (*trace.steps, len(program.ops))[1]
    made = [op for op in program.ops[trace.steps[0] : end] if op >= 0 and program.kind[op] == kind]
    return [round(program.fixed[op]) for op in made]


def _ddp(trace: Trace, strategy: Strategy) -> Layout:
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
    return Layout(strategy, tuple(Block("DDP gradient bucket", "bucket", size) for size in buckets))


def _unpartitioned(trace: Trace, strategy: Strategy) -> Layout:
    # FP16_UnfusedOptimizer: fp16_groups, fp32_groups, both moments; fp32 gradients in `step`. In fp32 torch's optimizer
    # alone. `buffered_allreduce_fallback` flattens up to 5e8 gradient elements before the update.
    count, width = trace.trainable, BYTES[strategy.precision]
    states = [Block("exp_avg", "optimizer", MOMENT * count), Block("exp_avg_sq", "optimizer", MOMENT * count)]
    update = [Block("flattened gradients", "bucket", width * min(count, 500_000_000))]
    if width < MASTER:
        states.insert(0, Block("fp32 weights", "optimizer", MASTER * count))
        update.append(Block("fp32 gradients", "gradient", MASTER * count))
    return Layout(strategy, tuple(states), tuple(update))


def _partitioned(trace: Trace, strategy: Strategy) -> Layout:
    width, size, stage = BYTES[strategy.precision], strategy.world_size, strategy.zero_stage
    program = trace.program
    kind = program.kinds.index("parameter")
    made = [op for op in program.ops[: trace.steps[0]] if op >= 0 and program.kind[op] == kind]
    groups, owned, frozen = [], 0, []
    for number in sorted({*trace.groups} - {-1}):
        blocks = [op for op, group in zip(made, trace.groups, strict=True) if group == number]
        parameters = [round(program.fixed[op] / width) for op in blocks]
        parts = _sub_groups([-(-elements // size) for elements in parameters]) if stage == 3 else []
        part = sum(parts) if stage == 3 else partition(sum(parameters), size)
        owned += part if stage == 3 else owned_elements(parameters, size, stage == 2 and strategy.round_robin)
        groups.append(Group(tuple(blocks), tuple(parameters), part, tuple(parts) or (part,)))
    frozen = [op for op, group in zip(made, trace.groups, strict=True) if group < 0]
    host = _host_bytes(sum(group.part for group in groups), strategy) if strategy.offload_optimizer else 0
    notes: tuple[str, ...] = ()
    if stage == 3 and size > 1 and trace.count <= MAX_LIVE:
        # `__params_to_release` keeps parameters that are used again within max_reuse_distance elements: here all, from
        # forward on.
        notes = ("gathered weights stay for the whole step: the model is smaller than stage3_max_reuse_distance",)
    return Layout(strategy, (), (), tuple(groups), tuple(frozen), owned, host, notes)


def _sub_groups(parts: Sequence[int]) -> list[int]:
    """Elements of the sub-groups of stage 3, from those of each parameter's partition: `_create_fp16_sub_groups`."""
    if sum(parts) <= SUB_GROUP:
        return [sum(parts)]
    found, open_elements = [], 0
    for part in parts:
        open_elements += part
        if open_elements >= SUB_GROUP:
            found.append(open_elements)
            open_elements = 0
    return [*found, open_elements] if open_elements else found


def _host_bytes(part: int, strategy: Strategy) -> int:
    """Master weights and gradients in fp32 are page-locked, moments are not; the 16-bit copy and, in stages 1 and 2
    with accumulation, `accumulated_grads_in_cpu` are page-locked too.
    """
    width = BYTES[strategy.precision]
    copies = 2 if strategy.accumulates and strategy.zero_stage < 3 else 1
    return pinned(MASTER * part) * 2 + 2 * MOMENT * part + pinned(width * part) * copies
