"""The buffers of a compiled graph: hand-written graphs, each for one of Inductor's rules."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("needs the runtime extra", allow_module_level=True)

import operator

import torch
from ratc_runtime.trace.compiled_buffers import ordered, padded, planned
from torch import fx

aten = torch.ops.aten


def names(nodes: object) -> set[str]:
    return {node.name for node in nodes}  # type: ignore[attr-defined]


class Written:
    """A graph under construction; `call` adds a node with a name."""

    def __init__(self, *inputs: str) -> None:
        self.graph = fx.Graph()
        self.at = {name: self.graph.placeholder(name) for name in inputs}

    def call(self, name: str, target: object, *args: object) -> None:
        given = tuple(self.at.get(arg, arg) if isinstance(arg, str) else arg for arg in args)
        self.at[name] = self.graph.create_node("call_function", target, given, name=name)

    def returns(self, *results: str) -> fx.Graph:
        self.graph.output([self.at[name] for name in results])
        return self.graph


def test_pointwise_operators_between_two_products_make_one_buffer() -> None:
    made = Written("x", "w")
    made.call("one", aten.mm.default, "x", "w")
    made.call("sin", aten.sin.default, "one")
    made.call("cos", aten.cos.default, "one")
    made.call("product", aten.mul.Tensor, "sin", "cos")
    made.call("turned", aten.permute.default, "product", [1, 0])
    made.call("two", aten.mm.default, "turned", "w")
    plan = planned(made.returns("two"))
    assert names(plan.buffers) == {"x", "w", "one", "product", "two"}
    assert names(plan.sources[made.at["product"]]) == {"one"}
    assert names(plan.sources[made.at["two"]]) == {"product", "w"}


def test_a_reduction_is_fused_with_the_operators_that_it_reads() -> None:
    """The mean and the variance of x + y: the sum itself is nowhere written."""
    made = Written("x", "y")
    made.call("sum_of_both", aten.add.Tensor, "x", "y")
    made.call("statistics", aten.var_mean.correction, "sum_of_both", [1])
    made.call("variance", operator.getitem, "statistics", 0)
    made.call("mean", operator.getitem, "statistics", 1)
    made.call("centred", aten.sub.Tensor, "sum_of_both", "mean")
    plan = planned(made.returns("centred", "variance"))
    assert names(plan.buffers) == {"x", "y", "statistics", "variance", "mean", "centred"}
    assert names(plan.sources[made.at["centred"]]) == {"x", "y", "mean"}


@pytest.mark.parametrize(("reads", "written"), [(4, False), (5, True)])
def test_a_value_beyond_the_read_threshold_of_two_kernels_is_a_buffer(reads: int, written: bool) -> None:
    """`realize_reads_threshold` of torch/_inductor/config.py is 4; between the two kernels a product is computed."""
    inputs = [f"x{number}" for number in range(reads)]
    made = Written(*inputs)
    made.call("s1", aten.add.Tensor, "x0", "x1")
    for number in range(2, reads):
        made.call(f"s{number}", aten.add.Tensor, f"s{number - 1}", f"x{number}")
    total = f"s{reads - 1}"
    made.call("first", aten.sin.default, total)
    made.call("product", aten.mm.default, "first", "first")
    made.call("second", aten.add.Tensor, total, "product")
    plan = planned(made.returns("second"))
    assert (total in names(plan.buffers)) is written
    assert names(plan.sources[made.at["second"]]) == ({total} if written else {*inputs}) | {"product"}


def test_a_value_read_by_one_kernel_is_no_buffer() -> None:
    """Nine reads are too many for any value, but the sum of them is read in one place, by a kernel that follows."""
    inputs = [f"x{number}" for number in range(9)]
    made = Written(*inputs)
    made.call("s1", aten.add.Tensor, "x0", "x1")
    for number in range(2, 9):
        made.call(f"s{number}", aten.add.Tensor, f"s{number - 1}", f"x{number}")
    made.call("last", aten.sin.default, "s8")
    plan = planned(made.returns("last"))
    assert names(plan.buffers) == {*inputs, "last"}
    assert names(plan.sources[made.at["last"]]) == {*inputs}


def test_an_unknown_operator_reads_and_writes_buffers() -> None:
    made = Written("x")
    made.call("doubled", aten.mul.Tensor, "x", 2)
    made.call("ranked", aten.sort.default, "doubled")
    made.call("values", operator.getitem, "ranked", 0)
    plan = planned(made.returns("values"))
    assert names(plan.buffers) == {"x", "doubled", "ranked", "values"}


def test_returned_gradients_are_cast_at_the_end_of_the_graph() -> None:
    """The caller alone reads it: Inductor makes it at the graph's end, and keeps the product until then."""
    made = Written("x", "w")
    made.call("gradient", aten.mm.default, "x", "w")
    made.call("wide", torch.ops.prims.convert_element_type.default, "gradient", torch.float32)
    made.call("other", aten.mm.default, "w", "x")
    made.call("beside", torch.ops.prims.convert_element_type.default, "other", torch.float32)
    made.call("sum_of_other", aten.sum.dim_IntList, "other", [0])
    plan = planned(made.returns("wide", "beside", "sum_of_other"))
    order = [node.name for node in ordered(plan)]
    assert order[-2:] == ["wide", "output"]
    assert order.index("beside") < order.index("sum_of_other")  # one kernel makes both


@pytest.mark.parametrize(
    ("size", "stride", "itemsize", "wanted"),
    [
        ((8192, 50257), (50257, 1), 2, (50304, 1)),  # 786.00 MiB, as recorded on an H100
        ((8192, 768), (768, 1), 2, (768, 1)),  # a multiple of 128 bytes
        ((8192, 1000), (1000, 1), 2, (1000, 1)),  # not longer than 1,024 elements
        ((50257, 8192), (1, 50257), 4, (1, 50272)),
        ((4, 5, 5), (25, 5, 1), 4, (25, 5, 1)),
        ((), (), 4, ()),
    ],
)
def test_strides_of_long_rows_are_padded(
    size: tuple[int, ...], stride: tuple[int, ...], itemsize: int, wanted: object
) -> None:
    assert padded(size, stride, itemsize) == wanted
