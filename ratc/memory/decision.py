"""The decision of a prediction for a plan: `resolve` puts it among the plan's values with its reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ratc.diagnostics import Diagnostic
from ratc.memory.choose import Choice
from ratc.units import counted, size_text


@dataclass(frozen=True, slots=True)
class Unit:
    """The modules of one class, each of which is a unit of FSDP2: their number, and the bytes of the largest."""

    name: str
    count: int
    largest_bytes: int

    @property
    def text(self) -> str:
        """The class, the number of modules and the size of the largest, as text."""
        return f"{self.count} x {self.name} of up to {size_text(self.largest_bytes)}"


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A block that is recomputed in backward: the bytes that this frees at the peak of the plain step, and the seconds
    that it adds to an optimizer step; None if they are not known.
    """

    name: str
    bytes_: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Fewest:
    """The fewest nodes of an elastic plan, and their choice."""

    nodes: int
    choice: Choice


@dataclass(frozen=True, slots=True)
class Decision:
    """The micro-batch that fits, and the settings that it fits with.

    ``plain_need_bytes`` is the need of a step without activation checkpointing at ``plain_micro_batch``; None unless it
    was rejected because it does not fit. ``recomputed`` are the blocks that make it fit.
    """

    choice: Choice
    attention_memory: str
    attention_reason: str = "it fits"
    activation_checkpointing: bool | tuple[str, ...] = False
    plain_need_bytes: int | None = None
    plain_micro_batch: int = 1
    recomputed: tuple[Recomputed, ...] = ()
    #: The number of blocks that could be recomputed, and the time that recomputing adds to a step, in words.
    blocks: int = 0
    longer: str = ""
    #: Whether the spec gives the micro-batch, so that nothing but the checkpointing is decided.
    is_given: bool = False
    #: The date and the version of torch of the choice's measurement; None for a prediction.
    measured: str | None = None
    #: The kind of allocator, and the reason for it.
    allocator: str = "native"
    allocator_reason: str = ""
    #: The strategy that `auto` takes, and the reason for it.
    strategy: str = ""
    strategy_reason: str = ""
    #: The units of FSDP2.
    units: tuple[Unit, ...] = ()
    #: Of an elastic plan: the fewest nodes, whose step decided all but the choice of the others.
    fewest: Fewest | None = None
    #: Of an elastic plan: the decision of each node count, or the finding if nothing fits with so many.
    sizes: Mapping[int, Decision | Diagnostic] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The words before a reason: on how many nodes it holds, if those of an elastic plan have several."""
        return f"on {counted(self.fewest.nodes, 'node')}, the fewest: " if self.fewest else ""

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage of the prediction; 0 without DeepSpeed."""
        return self.choice.estimate.strategy.zero_stage
