"""The table of the micro-batches that fit on each card, for `ratc fit` and `ratc report`, and the drawing of a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ratc import elastic, facts
from ratc.fitting.checkpointing import choose
from ratc.fitting.nothing_fits import of_each
from ratc.fitting.plan_step import device_for, leanest_of, own_stages, strategy_of, under, variants
from ratc.memory.allocators import Taken
from ratc.memory.choose import Choice, Searcher, Variant, leanest
from ratc.memory.estimate import timeline
from ratc.memory.rat import full_at_least, fused_runs_on
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy
from ratc.plan import Plan
from ratc.render.fit import Row
from ratc.render.timeline import Drawing
from ratc.units import counted

#: Shown if no card is named.
COMMON = ("t4", "v100-32", "rtx4090", "a100-40", "a100-80", "h100")
_STAGES = (0, 1, 2, 3)


def table(
    plan: Plan,
    wanted: Iterable[tuple[facts.Card, Sequence[str]]],
    allowed: Mapping[str, Searcher],
    other: Strategy | None = None,
) -> tuple[list[Row], tuple[Taken, Drawing] | None]:
    """Return a row for each card, precision and ZeRO stage, and the choice of the plan's own stage on the first card
    that it fits. ``allowed`` are the searchers of each allocator that the spec allows. With ``other``, all are under
    that strategy, and not under the plan's.

    Raises ``ratc.fitting.traces.NoTrace`` if the model cannot be traced.
    """
    own, allowed_stages = (other, (other.zero_stage,)) if other else (strategy_of(plan), own_stages(plan))
    stages: tuple[int, ...] = (0,)
    if own.engine == "deepspeed":
        stages = tuple(stage for stage in _STAGES if stage or not own.offload_optimizer)
    rows: list[Row] = []
    first: tuple[Taken, Drawing] | None = None
    model = plan.values.get_as(str, "model.name")
    for card, precisions in wanted:
        device = device_for(plan, card)
        for precision in precisions:
            ways = [under(own, way) for way in variants(plan, device, precision)]
            strategy = replace(own, precision=precision)
            for stage in stages:
                shown = stage if own.engine == "deepspeed" else None
                at_stage = replace(strategy, zero_stage=stage)
                taken, _ = choose(allowed, ways, at_stage, device, (stage,))
                rows.append(
                    _row(card, shown, taken) if taken else _without(card, shown, allowed, ways, at_stage, device)
                )
            taken, _ = choose(allowed, ways, strategy, device, allowed_stages) if first is None else (None, None)
            if taken:
                used = taken.choice.estimate.strategy
                first = taken, drawing(model, allowed[taken.allocator], taken.variant, used, taken.choice)
    return rows, first


def own_card(plan: Plan) -> facts.Card | None:
    """Return the plan's card: the catalogue's, or one that a facts file describes. None on the CPU."""
    values = plan.values
    name, memory = values["hardware.card"].value, values["hardware.memory_bytes"].value
    capability = values["hardware.compute_capability"].value
    if name is None:
        return None
    found = facts.find_card(name)
    if isinstance(found, facts.Card) and (found.memory_bytes, found.compute_capability) == (memory, capability):
        return found
    return facts.describe_card(name, memory, capability)


def unpredictable(plan: Plan, card: facts.Card) -> str:
    """Return the reason why a card has no prediction; empty if it has one."""
    if not card.compute_capability:
        return "ratc does not know its attention kernels and libraries; it predicts for NVIDIA cards only"
    fused = plan.settings["model.attention_memory"].value == "fused" and full_at_least(plan.settings)
    if fused and not fused_runs_on(card.compute_capability):
        return "there are no kernels of `attention_memory: fused` for it"
    if card.is_slice and plan.values.get_as(int, "parallel.processes_per_node") > 1:
        return "CUDA shows a process one slice of a card (MIG), so a node has one"
    return ""


def note(plan: Plan) -> str:
    """Return a line with the table's conditions: global batch, GPUs, units and margin."""
    world, total = plan.values.get_as(int, "parallel.world_size"), plan.values["training.global_batch_size"].value
    nodes = counted(plan.values.get_as(int, "parallel.nodes"), "node")
    where = f", on {nodes}, the fewest of the range" if elastic.is_range(plan.settings) else ""
    return (
        f"Global batch {total} on {counted(world, 'GPU')}{where}. Sizes in GiB, predicted, not measured; "
        "a margin is kept free, which `ratc explain SPEC memory.margin` explains."
    )


def drawing(model: str, searcher: Searcher, wanted: Variant, strategy: Strategy, choice: Choice) -> Drawing:
    """Return the drawing of one step of a choice: the bytes in use over the step's allocations."""
    found = choice.estimate
    program = searcher.predictor(wanted, strategy, found.micro_batch).program
    size = " x ".join(map(str, wanted.image_size))
    title = f"{model}, {size}, {wanted.precision}, on {found.device.name}: micro-batch {found.micro_batch}"
    title += f", ZeRO {strategy.zero_stage}" if strategy.engine == "deepspeed" else ""
    told = "One optimizer step, predicted"
    told += f"; two of its {choice.accumulation} micro-batches are drawn" if choice.accumulation > 2 else ""
    steps = max(1, len(program.ops) - program.start)
    marks = [((index - program.start) / steps, phase) for index, phase in program.marks]
    points = timeline(program, found.micro_batch, slower=found.slower)
    return Drawing(title, told, program.kinds, points, marks, found.cap_bytes, found.peak_reserved_bytes)


def _row(card: facts.Card, stage: int | None, taken: Taken) -> Row:
    used, choice = taken.variant, taken.choice
    found = choice.estimate
    return Row(
        card.id,
        card.memory_bytes,
        used.precision,
        stage,
        found.micro_batch,
        choice.accumulation,
        found.peak_allocated_bytes,
        found.peak_reserved_bytes,
        found.predicted_bytes,
        None,
        found.host_bytes,
        used.attention_memory,
        used.activation_checkpointing,
        taken.allocator,
    )


def _without(
    card: facts.Card,
    stage: int | None,
    allowed: Mapping[str, Searcher],
    ways: Sequence[Variant],
    strategy: Strategy,
    device: Device,
) -> Row:
    """Return the row of a card on which nothing fits, with the bytes that the leanest allowed step would need."""
    least, need = leanest(of_each(allowed, [(one, strategy) for one in leanest_of(ways)]), device)
    used = least.variant
    how = (used.attention_memory, used.activation_checkpointing)
    return Row(card.id, card.memory_bytes, used.precision, stage, None, None, None, None, None, need, 0, *how)
