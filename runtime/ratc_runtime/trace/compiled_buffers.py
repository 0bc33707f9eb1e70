"""The values of AOTAutograd's graph that become buffers when Inductor compiles it: Inductor's rules, simplified.

A value of pointwise operators, or of an index that is looked up, is computed inside the kernel that reads it. These are
buffers: operands and results of a library's kernels, results of reductions and of the graph, and values that would read
or compute too much to be computed again. The rules are those of torch/_inductor/graph.py (`run_node`, `output`),
ir.py (`should_realize_on_reuse`, `has_exceeded_max_reads`, `_pad_strides`) and scheduler.py (`fuse_nodes`) of torch
2.13. If in doubt, a value is a buffer.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import fx

aten: Any = torch.ops.aten
Node = fx.Node

#: Pointwise kernels without that tag: Inductor's lowerings (`torch/_inductor/lowering.py`) compute them at an index.
_INLINED = frozenset((
    "aten._to_copy", "aten._unsafe_index", "aten._unsafe_masked_index", "aten.arange", "aten.avg_pool2d",
    "aten.avg_pool2d_backward", "aten.bernoulli", "aten.cat", "aten.clone", "aten.constant_pad_nd", "aten.copy",
    "aten.copy_", "aten.embedding", "aten.empty", "aten.empty_like", "aten.empty_strided", "aten.fill", "aten.flip",
    "aten.full", "aten.full_like", "aten.gather", "aten.index", "aten.index_select", "aten.lift_fresh_copy",
    "aten.max_pool2d_with_indices", "aten.new_empty", "aten.reflection_pad1d", "aten.reflection_pad2d",
    "aten.reflection_pad3d", "aten.repeat", "aten.roll", "aten.scalar_tensor", "aten.select_scatter",
    "aten.slice_scatter", "aten.tril", "aten.triu", "aten.upsample_nearest1d", "aten.upsample_nearest2d",
    "aten.upsample_nearest3d", "prims._low_memory_max_pool_offsets_to_indices",
    "prims._low_memory_max_pool_with_offsets", "prims.convert_element_type", "prims.device_put",
    "prims.inductor_lookup_seed", "prims.inductor_randint", "prims.inductor_random", "prims.iota",
))  # fmt: skip
#: One kernel each, whose operands are computed inside it and whose result is a buffer.
_REDUCTIONS = frozenset((
    "aten._unsafe_index_put", "aten._unsafe_masked_index_put_accumulate", "aten.all", "aten.amax", "aten.amin",
    "aten.any", "aten.argmax", "aten.argmin", "aten.cumprod", "aten.cumsum", "aten.index_put", "aten.max",
    "aten.max_pool2d_with_indices_backward", "aten.mean", "aten.min", "aten.prod", "aten.scatter", "aten.scatter_add",
    "aten.scatter_reduce", "aten.sum", "aten.var", "aten.var_mean", "prims.inductor_seeds", "prims.xor_sum",
))  # fmt: skip
#: Reads, and computations, above which a value that several read becomes a buffer; reads above which any does
#: (`realize_reads_threshold`, `realize_opcount_threshold`, `realize_acc_reads_threshold` of torch/_inductor/config.py).
_READS, _COMPUTATIONS, _ALL_READS = 4, 30, 8
#: Bytes to which rows are padded, and elements from which on (`padding_alignment_bytes`, `padding_stride_threshold`).
_ROW, _LONG = 128, 1024


def _packet(operator: torch._ops.OpOverload) -> str:
    return str(operator.overloadpacket)


def _kind_of(node: Node) -> str:
    """Return the kind of a node: "input", "output", "view", "inlined", "reduction", "library" or "part".

    A part is one of the results of a reduction or of a library's kernel. An unknown operator is a library's.
    """
    if node.op != "call_function":
        return "output" if node.op == "output" else "input"
    if node.target is operator.getitem:
        whole = _kind_of(node.all_input_nodes[0])
        return whole if whole in ("view", "inlined") else "part"
    if not isinstance(node.target, torch._ops.OpOverload):
        return "library"
    returns = node.target._schema.returns
    alias = returns[0].alias_info if returns else None
    if node.target is aten.reshape.default or (alias is not None and not alias.is_write):
        return "view"
    if torch.Tag.pointwise in node.target.tags or _packet(node.target) in _INLINED:
        return "inlined"
    return "reduction" if _packet(node.target) in _REDUCTIONS else "library"


@dataclass
class Plan:
    """The buffers among the nodes of a graph; ``sources[n]`` are the buffers that are read when n is made, n being a
    buffer or the output.
    """

    natures: dict[Node, str]
    buffers: set[Node] = field(default_factory=set)
    sources: dict[Node, tuple[Node, ...]] = field(default_factory=dict)


def planned(graph: fx.Graph) -> Plan:
    """Return the buffers of a graph as Inductor would make them."""
    natures = {node: _kind_of(node) for node in graph.nodes}
    needed = _needed(natures)
    fused: set[Node] = set()
    while True:
        plan = _followed(natures, needed, fused)
        more = _fused(plan, needed)
        if not more:
            return plan
        fused |= more


def _followed(natures: dict[Node, str], needed: set[Node], fused: set[Node]) -> Plan:
    """Return the plan with the buffers that are needed, and those of values that read or compute too much."""
    plan = Plan(natures, set(needed))
    reads: dict[Node, tuple[Node, ...]] = {}
    computed: dict[Node, int] = {}
    for node, nature in natures.items():
        given = tuple(dict.fromkeys(source for one in node.all_input_nodes for source in reads[one]))
        count = sum(computed[one] for one in node.all_input_nodes) + (nature == "inlined")
        several = len(node.users) > 1 and (len(given) > _READS or count > _COMPUTATIONS)
        if nature == "inlined" and node not in fused and (several or len(given) > _ALL_READS):
            plan.buffers.add(node)
        if node in plan.buffers or nature == "output":
            plan.sources[node] = given
        if node in plan.buffers:
            given, count = (node,), 0
        reads[node], computed[node] = given, count
    return plan


def _fused(plan: Plan, needed: set[Node]) -> set[Node]:
    """Return the buffers that one kernel alone reads, with no call of a library between: they are never written."""
    readers: dict[Node, list[Node]] = {}
    for node, sources in plan.sources.items():
        for source in sources:
            readers.setdefault(source, []).append(node)
    calls = accumulate(nature == "library" for nature in plan.natures.values())
    places = dict(zip(plan.natures, calls, strict=True))
    found = set()
    for node in plan.buffers - needed:
        (first, *others) = readers.get(node, [node])
        if not others and plan.natures[first] in ("inlined", "reduction") and places[first] == places[node]:
            found.add(node)
    return found


def base(node: Node, natures: dict[Node, str]) -> Node:
    """Return the node in whose memory a node's result lies."""
    while natures[node] == "view":
        node = node.all_input_nodes[0]
    return node


def ordered(plan: Plan) -> list[Node]:
    """Return the nodes in the order in which they are computed: values that only the caller reads come last, unless a
    kernel that reads the same makes them, too (`GraphLowering.output` of torch/_inductor/graph.py).
    """
    *nodes, output = plan.natures
    readers: dict[Node, set[Node]] = {}
    for node, sources in plan.sources.items():
        if plan.natures[node] in ("inlined", "reduction"):
            for source in sources:
                readers.setdefault(source, set()).add(node)
    late = []
    for node in nodes:
        if plan.natures[node] == "inlined" and [*node.users] == [output]:
            sources = plan.sources[node]
            made = all(_whole(source, plan) in ("library", "input") for source in sources)
            if made and all(readers[source] == {node} for source in sources):
                late.append(node)
    apart = set(late)
    return [*(node for node in nodes if node not in apart), *late, output]


def _whole(node: Node, plan: Plan) -> str:
    nature = plan.natures[node]
    return plan.natures[node.all_input_nodes[0]] if nature == "part" else nature


def _needed(natures: dict[Node, str]) -> set[Node]:
    """Return the nodes that must be buffers, however little they read."""
    found: set[Node] = set()
    for node, nature in natures.items():
        if nature in ("output", "library"):
            found.update(base(one, natures) for one in node.all_input_nodes)
        if nature in ("input", "reduction", "library", "part"):
            found.add(node)
    return found


def padded(size: Sequence[int], stride: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Return a buffer's strides as `FlexibleLayout._pad_strides` of torch/_inductor/ir.py makes them: rows that are
    longer than 1,024 elements and no multiple of 128 bytes are padded to one.
    """
    align = _ROW // itemsize
    order = sorted(range(len(size)), key=lambda dim: (stride[dim], size[dim]))
    new = list(stride)
    changed = False
    for rank, dim in enumerate(order):
        wanted = 1 if rank == 0 else new[order[rank - 1]] * size[order[rank - 1]]
        if wanted > _LONG and wanted % align:
            wanted, changed = -(-wanted // align) * align, True
        new[dim] = wanted
    return tuple(new) if changed else tuple(stride)
