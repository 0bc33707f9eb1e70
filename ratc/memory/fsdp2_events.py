"""The allocations and frees of FSDP2, in the order of its own code.

Read in torch 2.13's distributed/fsdp/_fully_shard/_fsdp_param_group.py and _fsdp_collectives.py. A shard is taken as
the whole divided by the group's processes, rounded up; torch pads the first dimension, which is more for a weight of
fewer rows than processes. Sizes are bytes.
"""

from __future__ import annotations

from ratc.memory.zero import BYTES, Layout
from ratc.memory.zero_events import COMMUNICATION, Composer, Engine

#: The stream of the reduce-scatter: the shards of gradients lie in its pool.
REDUCTION = 2
#: A number for each parameter, as the count of steps, is not sharded.
LARGEST_NUMBER = 8
#: Gradients are reduced in fp32, and so are the shards.
WIDTH = 4
#: The key of a buffer of a unit that is gathered again.
_OLD = "(before)"


class FullyShard(Engine):
    """Shards from the start on, and units that are gathered while a module of theirs runs."""

    owns_gradients = True
    watches = True

    def __init__(self, program: Composer, layout: Layout) -> None:
        super().__init__(program, layout)
        strategy = self.strategy
        self.bytes_of = {unit.name: unit.bytes_ for unit in layout.units}
        self.names = sorted((name for name in self.bytes_of if name), key=len, reverse=True)
        self.part = 0.0 if strategy.offload_optimizer else 1 / strategy.shards
        self.unit_of_module: dict[str, str] = {}
        self.active: str | None = None
        self.is_forward = False
        self.order: list[str] = []  # of the forward pass
        self.gathered: dict[str, int] = {}
        self.buffers: dict[str, int] = {}  # of all-gathers: the last of the forward pass, or one ahead
        self.copied: str | None = None  # the unit whose buffer is kept although its weights are there
        self.whole: dict[str, list[int]] = {}  # gradients of this pass
        self.shards: list[int] = []  # of gradients, until the update
        self.reducing: int | None = None

    def shard(self, op: int) -> None:
        """Make a traced block of the optimizer, or of a weight, the part of one rank."""
        size = self.program.fixed[op]
        if size > LARGEST_NUMBER:
            self.program.fixed[op] = float(-int(-size * self.part // 1))

    def unit(self, module: str) -> str:
        """Return the innermost unit that a module belongs to; "" is the model's own."""
        if module not in self.unit_of_module:
            inside = (name for name in self.names if module == name or module.startswith(f"{name}."))
            self.unit_of_module[module] = next(inside, "")
        return self.unit_of_module[module]

    def allocated(self, op: int, kind: str, phase: str, module: str) -> None:
        """A traced block is about to be allocated."""
        if kind in ("parameter", "optimizer") or phase in ("clip", "optimizer"):
            self.shard(op)
        elif phase == "forward":
            self._forward(self.unit(module))
        elif phase == "backward":
            self._backward(self.unit(module))
            if kind == "gradient":
                self.whole.setdefault(self.unit(module), []).append(op)

    def _forward(self, unit: str) -> None:
        self.is_forward = True
        self._gather("")
        if unit == self.active:
            return
        if self.active and self.strategy.shard != "grads":
            self._reshard(self.active)
        self.active = unit
        if unit:
            if unit not in self.order:
                self.order.append(unit)
            self._gather(unit)

    def _backward(self, unit: str) -> None:
        if self.is_forward:
            self.is_forward = False
            if self.active and self.strategy.shard != "grads":
                self._reshard(self.active)
            self.active = None
        if unit in ("", self.active):
            return
        if self.active:
            self._reduce(self.active)
        self.active = unit
        self._gather(unit, keep=False)
        at = self.order.index(unit) if unit in self.order else 0
        if at and self.order[at - 1] not in self.gathered:  # `_backward_prefetch`
            self._start(self.order[at - 1])

    def _start(self, unit: str) -> None:
        """`foreach_all_gather`: one buffer for the whole unit."""
        if unit == self.copied:  # its buffer of the forward pass is not used again
            self.copied = _OLD
            self.buffers[_OLD] = self.buffers.pop(unit)
        if unit not in self.buffers and self.bytes_of[unit]:
            self.buffers[unit] = self.program.add(
                "all-gathered unit", "bucket", self._gathered_bytes(unit), COMMUNICATION
            )

    def _gather(self, unit: str, keep: bool = True) -> None:
        """`unshard` and `wait_for_unshard`: a buffer is copied to the weights. In forward it is kept until the next one
        is copied, so that the host need not wait; in backward it is freed.
        """
        if unit in self.gathered or not self.bytes_of.get(unit):
            return
        self._start(unit)
        self.gathered[unit] = self.program.add("gathered weights", "parameter", self._gathered_bytes(unit))
        if self.copied in self.buffers:
            self.program.drop(self.buffers.pop(self.copied))
        self.copied = unit if keep else None
        if not keep:
            self.program.drop(self.buffers.pop(unit))

    def _gathered_bytes(self, unit: str) -> int:
        return self.bytes_of[unit] * BYTES[self.strategy.gathered] // WIDTH

    def _reshard(self, unit: str) -> None:
        if unit in self.gathered:
            self.program.drop(self.gathered.pop(unit))

    def _reduce(self, unit: str) -> None:
        """`post_backward` and `foreach_reduce`: the input of a reduce-scatter lives until the next one begins."""
        self._reshard(unit)
        if unit in self.buffers:
            self.program.drop(self.buffers.pop(unit))
        gradients = self.whole.pop(unit, [])
        size = round(sum(self.program.fixed[op] for op in gradients)) or self.bytes_of.get(unit, 0)
        if self.reducing is not None:
            self.program.drop(self.reducing)
        self.reducing = None
        if not size:
            return
        # In a later pass of a step the trace has no whole gradients of its own.
        alone = None if gradients else self.program.add("whole gradients", "gradient", size)
        self.reducing = self.program.add("reduced unit", "bucket", size)
        for op in gradients:
            self.program.drop(op)
        if alone is not None:
            self.program.drop(alone)
        shard = int(size / self.strategy.shards) + 1
        made = self.program.add(
            "gradient shard", "gradient", 0 if self.strategy.offload_optimizer else shard, REDUCTION
        )
        if gradients:
            self.shards.append(made)
        else:
            self.program.drop(made)

    def gradient(self, op: int, number: int) -> None:
        self.program.drop(op)

    def backward_ended(self, last: bool) -> None:
        """`_root_post_backward_final_callback`: everything is resharded, and reductions are waited for."""
        for unit in [self.active or "", *self.whole, ""]:
            if unit in self.gathered or unit in self.whole:
                self._reduce(unit)
        for unit in [*self.gathered]:
            self._reshard(unit)
        for op in self.buffers.values():
            self.program.drop(op)
        if self.reducing is not None:
            self.program.drop(self.reducing)
        self.buffers, self.reducing, self.active, self.copied, self.order = {}, None, None, None, []

    def update(self) -> None:
        for op in self.shards:
            self.program.drop(op)
        self.shards = []
