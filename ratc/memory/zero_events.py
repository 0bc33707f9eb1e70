"""The allocations and frees of DeepSpeed, in the order of its own code.

An allocator's reserved bytes depend on the order of allocations, so each method follows a function of DeepSpeed 0.19's
runtime/zero/stage_1_and_2.py or stage3.py, and names it. Blocks of a few bytes (norms, flags, scales) are left out.
Sizes are bytes.
"""

from __future__ import annotations

from typing import Protocol

from ratc.memory.zero import BYTES, MASTER, MOMENT, Layout

#: `reduction_stream` and `reduce_and_partition_stream`: blocks cached on it serve no other stream.
COMMUNICATION = 1
#: Bytes of an element of a gradient as its norm is computed: `get_norm_dtype` of runtime/zero/utils.py.
NORM = 8


class Composer(Protocol):
    """The operations of an engine on the program that is being composed. ``fixed`` are bytes by allocation."""

    fixed: list[float]

    def add(self, name: str, kind: str, size: int, stream: int = 0) -> int:
        """Allocate a block of the engine's own, of ``size`` bytes; return its number."""

    def replace(self, name: str, kind: str, size: int, blocks: tuple[int, ...]) -> int:
        """Allocate a block of ``size`` bytes that replaces others; return its number. The others are moved to the host
        first if the card has no room for both.
        """

    def again(self, op: int) -> None:
        """Allocate a traced block again after it was freed."""

    def drop(self, op: int) -> None:
        """Free a block, if it is alive."""

    def flush(self) -> None:
        """Empty the allocator's cache."""


class Engine:
    """An engine that only holds blocks of its own: torch alone and DDP. Gradients live as traced."""

    #: Gradients are freed by the engine, not where the trace frees them.
    owns_gradients = False
    #: Whether `allocated` is called before each traced block is allocated.
    watches = False

    def __init__(self, program: Composer, layout: Layout) -> None:
        self.program, self.layout, self.strategy = program, layout, layout.strategy
        self.width = BYTES[self.strategy.precision]

    def built(self) -> None:
        """The model is on the device, and the engine is made around it."""
        for block in self.layout.persistent:
            self.program.add(block.name, block.kind, block.bytes_)

    def step(self) -> None:
        """A step begins."""

    def allocated(self, op: int, kind: str, phase: str, module: str) -> None:
        """A traced block is about to be allocated, in a phase and by a module."""

    def gradient(self, op: int, number: int) -> None:
        """A gradient is complete, in backward pass ``number`` of the step: the moment of its hook."""
        self.program.drop(op)

    def backward_ended(self, last: bool) -> None:
        """A backward pass is over, the ``last`` of the step or not."""

    def update(self) -> None:
        """The optimizer's step."""

    def elements(self, op: int) -> int:
        """Elements of a gradient."""
        return round(self.program.fixed[op] / self.width)

    def allocate_and_free(self, name: str, kind: str, size: int, stream: int = 0) -> None:
        """Allocate a block of ``size`` bytes and free it at once."""
        self.program.drop(self.program.add(name, kind, size, stream))


class Unpartitioned(Engine):
    """DeepSpeed without ZeRO: gradients live until the update, and are added up in place."""

    owns_gradients = True

    def __init__(self, program: Composer, layout: Layout) -> None:
        super().__init__(program, layout)
        self.held: list[int] = []

    def gradient(self, op: int, number: int) -> None:
        if number:
            self.program.drop(op)
        else:
            self.held.append(op)

    def update(self) -> None:
        blocks = self.layout.update
        for op in [self.program.add(block.name, block.kind, block.bytes_) for block in blocks]:
            self.program.drop(op)
        for op in self.held:
            self.program.drop(op)
        self.held = []


class _Partitioned(Engine):
    """The common parts of ZeRO's stages: the update of each group, and the bucket that gradients are reduced in."""

    owns_gradients = True

    def __init__(self, program: Composer, layout: Layout) -> None:
        super().__init__(program, layout)
        self.elements_in_bucket = self.gradients_in_bucket = 0
        self.waiting: list[int] = []  # gradients that are larger than a bucket, until they are reduced
        self.has_moments = False

    def norms(self) -> None:
        """`get_grad_norm_direct`: a copy of each gradient in double precision, one after the other."""
        for group in self.layout.groups:
            for size in group.parameters:
                self.allocate_and_free("norm of a gradient", "temporary", NORM * self.share(size, group.part))

    def share(self, size: int, part: int) -> int:
        """Elements of a parameter of which this rank has the gradient."""
        return min(size, part)

    def update_part(self, part: int, ready: int | None = None) -> None:
        """Flatten gradients, turn them to fp32, and update a partition; ``ready`` is freed once they are copied."""
        gradient = self.program.add("averaged gradients", "gradient", self.width * part)
        if self.width < MASTER:
            lower, gradient = gradient, self.program.add("fp32 gradients", "gradient", MASTER * part)
            self.program.drop(lower)
        if ready is not None:
            self.program.drop(ready)
        if not self.has_moments:
            self.program.add("exp_avg", "optimizer", MOMENT * part)
            self.program.add("exp_avg_sq", "optimizer", MOMENT * part)
        self.program.drop(gradient)


class StagesOneAndTwo(_Partitioned):
    """`DeepSpeedZeroOptimizer` with `contiguous_gradients` and `reduce_scatter`; both stages reduce alike."""

    def __init__(self, program: Composer, layout: Layout) -> None:
        super().__init__(program, layout)
        self.buckets: list[int] = []
        self.copied: int | None = None  # `grads_in_partition`
        self.accumulated: int | None = None  # `all_grad_tensors`, of earlier micro-batches
        self.held: list[int] = []

    def built(self) -> None:
        """`__init__`: flat weights, master weights, and gradients that the optimizer's states were once made with."""
        strategy, program = self.strategy, self.program
        for group in self.layout.groups:
            program.flush()
            size = self.width * group.part * strategy.world_size
            program.replace("flat weights", "parameter", size, group.blocks)
            masters = self.width < MASTER or strategy.offload_optimizer
            copy = ("copy of the partition", "temporary") if masters else ("fp32 weights", "optimizer")
            copied = program.add(*copy, self.width * group.part)
            if masters and not strategy.offload_optimizer:
                program.add("fp32 weights", "optimizer", MASTER * group.part)
            if masters:
                program.drop(copied)
        if strategy.offload_optimizer:
            largest = max((size for group in self.layout.groups for size in group.parameters), default=0)
            program.add("offload staging", "bucket", self.width * largest)
            return
        made = [program.add("fp32 gradients", "gradient", MASTER * group.part) for group in self.layout.groups]
        for op in made:
            program.drop(op)

    def gradient(self, op: int, number: int) -> None:
        """`process_gradients`, `reduce_independent_p_g_buckets_and_remove_grads`."""
        program, strategy = self.program, self.strategy
        if not self.buckets:  # `setup_buckets`
            size = self.width * strategy.bucket
            buckets = 2 if strategy.overlap else 1
            self.buckets = [program.add("reduce bucket", "bucket", size) for _ in range(buckets)]
        if strategy.zero_stage == 1 and strategy.accumulates:
            # Reduced with the last micro-batch only; until then gradients are added up in place.
            if not number:
                self.held.append(op)
                return
            if self.held:
                program.drop(op)
                op = self.held.pop(0)
        count = self.elements(op)
        if self.elements_in_bucket + count > strategy.bucket:
            self._reduce()
        if count > strategy.bucket:
            self.waiting.append(op)
        else:
            program.drop(op)
        self.elements_in_bucket += count

    def _reduce(self) -> None:
        """`reduce_ipg_grads`: `average_tensor`, then `copy_grads_in_partition`, on the stream of the reduction."""
        program, strategy = self.program, self.strategy
        stream = COMMUNICATION if strategy.overlap else 0
        if not self.elements_in_bucket:
            return
        if strategy.world_size > 1:  # `allreduce_bucket` flattens the slices of several ranks
            self.allocate_and_free("flattened bucket", "bucket", self.width * self.elements_in_bucket, stream)
        if strategy.offload_optimizer:  # `set_norm_for_param_grad_in_gpu`
            largest = min(self.elements_in_bucket, max(group.part for group in self.layout.groups))
            self.allocate_and_free("norm of a gradient", "temporary", NORM * largest, stream)
        elif self.copied is None:
            self.copied = program.add("gradient partition", "gradient", self.width * self.layout.owned, stream)
        for op in self.waiting:
            program.drop(op)
        self.waiting, self.elements_in_bucket = [], 0

    def backward_ended(self, last: bool) -> None:
        """`independent_gradient_partition_epilogue`."""
        if self.strategy.zero_stage == 1 and not last:
            return
        self._reduce()
        for op in self.buckets:
            self.program.drop(op)
        self.buckets = []
        if self.accumulated is not None and self.copied is not None:
            self.program.drop(self.copied)
            self.copied = None
        if self.copied is not None:
            self.accumulated, self.copied = self.copied, None

    def update(self) -> None:
        """`step`."""
        groups = self.layout.groups
        if not self.strategy.offload_optimizer:
            self.norms()
            for group in groups:
                # The gradients of all groups lie in one buffer.
                self.update_part(group.part, self.accumulated if group is groups[-1] else None)
            self.has_moments = True
        self.accumulated = None


class StageThree(_Partitioned):
    """`DeepSpeedZeroOptimizer_Stage3` with `contiguous_gradients` and `reduce_scatter`."""

    def __init__(self, program: Composer, layout: Layout) -> None:
        super().__init__(program, layout)
        #: One rank has all weights in its partition: `_no_gather_coalesced`.
        blocks = tuple(op for group in layout.groups for op in group.blocks)
        self.gathered = sorted((*blocks, *layout.frozen)) if self.strategy.world_size > 1 else []

    def built(self) -> None:
        """`_convert_to_zero_parameters`, `_create_fp16_partitions_with_defragmentation`, `_setup_for_real_optimizer`.

        The whole model lies on the card before it is partitioned.
        """
        program, strategy, groups = self.program, self.strategy, self.layout.groups
        trained = {op for group in groups for op in group.blocks}
        partitions = []
        for op in sorted((*trained, *self.layout.frozen)):
            size = self.width * -(-self.elements(op) // strategy.world_size)
            partition = program.add("partition of the weights", "parameter", size)
            program.drop(op)
            if op in trained:
                partitions.append(partition)
        for op in partitions:
            program.drop(op)
        program.flush()
        part = sum(group.part for group in groups)
        program.add("partition of the weights", "parameter", self.width * part)  # lp_param_buffer
        parts = [size for group in groups for size in group.parts]
        if not strategy.offload_optimizer:
            self._create_masters(parts)
            self.allocate_and_free("fp32 gradients", "gradient", MASTER * max(parts, default=0))
        program.add("reduce bucket", "bucket", self.width * strategy.bucket)
        if not strategy.offload_optimizer:  # grad_partitions_flat_buffer
            program.add("partition of the gradients", "gradient", self.width * part)
        # `create_reduce_and_remove_grad_hooks` gathers each parameter once.
        for group in groups:
            for elements in group.parameters:
                whole = -(-elements // strategy.world_size) * strategy.world_size
                self.allocate_and_free("gathered weights", "parameter", self.width * whole)

    def _create_masters(self, parts: list[int]) -> None:
        """`_create_fp32_partitions`: a converted copy lives until the next one is made."""
        if self.width == MASTER:
            return
        converted = None
        for part in parts:
            made = self.program.add("copy of the partition", "temporary", MASTER * part)
            if converted is not None:
                self.program.drop(converted)
            converted = made
            self.program.add("fp32 weights", "optimizer", MASTER * part)
        if converted is not None:
            self.program.drop(converted)

    def step(self) -> None:
        for op in self.gathered:
            self.program.again(op)

    def gradient(self, op: int, number: int) -> None:
        """`reduce_independent_p_g_buckets_and_remove_grads`, `__add_grad_to_ipg_bucket`."""
        count = self.elements(op)
        if self.elements_in_bucket and self.elements_in_bucket + count > self.strategy.bucket:
            self._reduce()
        if self.elements_in_bucket + count > self.strategy.bucket:
            self.waiting.append(op)
        else:
            self.program.drop(op)
        self.elements_in_bucket += count
        self.gradients_in_bucket += 1

    def _reduce(self) -> None:
        """`__avg_scatter_grads`: `reduce_scatter_coalesced` joins the gradients of a bucket, if they are several."""
        if not self.elements_in_bucket:
            return
        stream = COMMUNICATION if self.strategy.overlap else 0
        if self.gradients_in_bucket > 1 or self.elements_in_bucket % self.strategy.world_size:
            self.allocate_and_free("joined gradients", "bucket", self.width * self.elements_in_bucket, stream)
        for op in self.waiting:
            self.program.drop(op)
        self.waiting, self.elements_in_bucket, self.gradients_in_bucket = [], 0, 0

    def backward_ended(self, last: bool) -> None:
        """`independent_gradient_partition_epilogue`."""
        self._reduce()

    def share(self, size: int, part: int) -> int:
        return -(-size // self.strategy.world_size)

    def update(self) -> None:
        """`step`."""
        strategy, groups = self.strategy, self.layout.groups
        for op in self.gathered:  # `_partition_all_parameters`
            self.program.drop(op)
        if strategy.offload_optimizer:
            return
        if strategy.precision == "fp16":  # `has_overflow`: isinf takes the absolute values first
            stream = COMMUNICATION if strategy.overlap else 0
            self.allocate_and_free(
                "overflow check", "temporary", self.width * sum(group.part for group in groups), stream
            )
        self.norms()
        for group in groups:
            for part in group.parts:
                self.update_part(part)
        self.has_moments = True
