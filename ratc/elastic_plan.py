"""An elastic plan: one global batch on every node count of a range, each resolved by itself. Codes: R369, R370.

The plan's values are those of the most nodes; ``elastic.<nodes>.*`` holds what the other counts have of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ratc import elastic
from ratc import resolve as resolving
from ratc.diagnostics import Diagnostic, Severity, has_errors
from ratc.plan import Plan, Value, Values
from ratc.resolve.infeasible import infeasible
from ratc.units import counted

if TYPE_CHECKING:
    from ratc.memory.decision import Decision

#: The values that a node count has of its own; its row of the lock has them under the last part of the path.
OWN = (
    "parallel.world_size",
    "training.micro_batch_size",
    "training.gradient_accumulation_steps",
    "data.prefetch_factor",
    "memory.peak_allocated_bytes",
    "memory.peak_reserved_bytes",
)
#: A value that a bound on the micro-batch alone decides, if no prediction does.
_OF_FEWEST = ("model.attention_memory",)
#: Numbers of nodes whose reasons are told, beside the first of each kind.
MOST_REASONS = 12
#: Values that follow from the number of processes alone, and those that words are made of.
_FOLLOW = ("parallel.nodes", "fsdp2.shard_size", "memory.margin", *OWN)


def resolve(
    settings: Values, facts: Values, decision: Decision | None = None
) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
    """Resolve settings with a range of nodes on every count of it. Codes: R3xx.

    A count that cannot train the step is left out with a warning; the fewest nodes must be able to.
    """
    counts = range(elastic.fewest(settings), settings.get_as(int, elastic.NODES) + 1)
    plans: dict[int, Plan] = {}
    said: dict[int, tuple[Diagnostic, ...]] = {}
    left_out: dict[int, Diagnostic] = {}
    for nodes in counts:
        own = decision.sizes.get(nodes) if decision else None
        if isinstance(own, Diagnostic):
            left_out[nodes] = own
            continue
        plan, said[nodes] = resolving.resolve(elastic.at(settings, nodes), facts, own)
        if plan is not None:
            plans[nodes] = plan
        elif why := infeasible(said[nodes], by_nodes=True):
            left_out[nodes] = why
        else:
            return None, said[nodes]
    if counts[0] in plans:
        plans = {nodes: _like(plan, plans[counts[0]]) for nodes, plan in plans.items()}
    for nodes, why in _others(plans, settings):
        del plans[nodes]
        left_out[nodes] = why
    if counts[0] in left_out:
        return None, (_fewest(counts[0], left_out[counts[0]], sorted(plans), settings),)
    most = max(plans)
    found = said[most] if not left_out else (*said[most], _missing(counts, left_out, plans, settings))
    sizes = tuple(plans[nodes] for nodes in sorted(plans))
    values = {**plans[most].values, **{path: value for plan in sizes for path, value in _row(plan)}}
    return None if has_errors(found) else Plan(Values(values), settings, facts, sizes), found


def _like(plan: Plan, fewest: Plan) -> Plan:
    """Return a plan with what the fewest nodes decide for all: their micro-batch is the largest."""
    shared = {path: fewest.values[path] for path in _OF_FEWEST if path in fewest.values}
    return replace(plan, values=Values({**plan.values, **shared}))


def _row(plan: Plan) -> Iterator[tuple[str, Value]]:
    """Yield the values of a node count of its own, under paths of their own."""
    nodes = plan.values.get_as(int, "parallel.nodes")
    own = {path: f"elastic.{nodes}.{path.rpartition('.')[2]}" for path in OWN}
    for path, of_row in own.items():
        if path in plan.values:
            value = plan.values[path]
            inputs = tuple(own.get(one, one) for one in value.inputs)
            if path == "parallel.world_size":
                inputs = (f"spec:{elastic.FEWEST}", f"spec:{elastic.NODES}", "parallel.processes_per_node")
            yield of_row, replace(value, origin="derived", inputs=inputs)


def _others(plans: Mapping[int, Plan], settings: Values) -> list[tuple[int, Diagnostic]]:
    """Return the node counts whose plan differs from that of the most nodes in more than the split of the batch."""
    if not plans:
        return []
    found, most = [], plans[max(plans)].values
    for nodes, plan in plans.items():
        both = [path for path in {**most, **plan.values} if path not in _FOLLOW]
        odd = [path for path in both if _bare(most, path) != _bare(plan.values, path)]
        if odd:
            value = _bare(plan.values, odd[0])
            message = f"`{odd[0]}` would be {value} instead of {_bare(most, odd[0])}"
            found.append((nodes, Diagnostic("R369", message, settings[elastic.NODES].span)))
    return found


def _bare(values: Values, path: str) -> object:
    return values[path].value if path in values else None


def _fewest(nodes: int, why: Diagnostic, possible: Sequence[int], settings: Values) -> Diagnostic:
    message = f"{counted(nodes, 'node')}, the fewest of the range, cannot train this: {why.message}"
    able = f"of the range {_listed(possible)} can" if possible else "no count of the range can"
    helps = (f"use `min: {possible[0]}`",) if possible else ()
    return Diagnostic("R369", message, settings[elastic.NODES].span, (able, *why.notes), (*helps, *why.helps))


def _missing(
    counts: range, left_out: Mapping[int, Diagnostic], plans: Mapping[int, Plan], settings: Values
) -> Diagnostic:
    """Return the warning that names the counts of the range that are left out, each with its reason; of many the first
    of each kind.
    """
    out = sorted(left_out)
    message = f"of {counts[0]} to {counts[-1]} nodes, {_listed(out)} cannot train this step: a job that gets so many "
    message += f"nodes leaves some of them idle, and takes the next smaller of {_listed(sorted(plans))}"
    codes = [left_out[nodes].code for nodes in out]
    told = [nodes for place, nodes in enumerate(out) if place < MOST_REASONS or codes[place] not in codes[:place]]
    notes = tuple(f"{counted(nodes, 'node')}: {left_out[nodes].message}" for nodes in told)
    return Diagnostic("R370", message, settings[elastic.NODES].span, notes, severity=Severity.WARNING)


def _listed(numbers: Sequence[int]) -> str:
    """``2, 4 and 8``; the first ones of many."""
    shown = [str(number) for number in numbers[:12]]
    if len(numbers) == len(shown) + 1:
        shown = [str(number) for number in numbers]
    if len(numbers) > len(shown):
        return f"{', '.join(shown)} and {len(numbers) - len(shown)} more"
    return " and ".join(part for part in (", ".join(shown[:-1]), shown[-1]) if part)
