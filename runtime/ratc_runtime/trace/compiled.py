"""The step of a model under `torch.compile`: the buffers that Inductor's code allocates, without making that code.

Dynamo, AOTAutograd, Inductor's decompositions, its passes over the joint graph and its partitioner run as they are, so
the tensors that forward saves for backward are those of a compiled step. Inductor's scheduler and Triton do not run:
the scheduler alone takes longer than all of that. Its rules stand in `compiled_buffers.py`. Both were compared with the
recorded events of three compiled steps on an H100, of torch 2.11 (benchmarks/memory/gap.py).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import fx, nn
from torch.overrides import _pop_mode_temporarily

from ratc_runtime.trace import convolutions
from ratc_runtime.trace.compiled_buffers import base, ordered, padded, planned

aten: Any = torch.ops.aten
Node = fx.Node

#: Operators that torch 2.11 keeps whole and 2.13 makes of others. With this one, forward saves the tensors that were
#: pooled. For torch 2.13, whose steps were not measured, that is too much.
_KEPT = frozenset((aten.max_pool2d_with_indices_backward.default,))
#: Bytes to whose multiple the sides of a product are padded (`get_alignment_size` of fx_passes/pad_mm.py).
_TENSOR_CORE = 16
#: Multiplications for an element read or written above which two ways of a product are timed: half of those that an
#: H100 makes in the time of reading one from its memory (`is_mm_compute_bound` of pad_mm.py; 990 TFLOPS, 3.35 TB/s).
_COMPUTE_BOUND = 147
#: Bytes that are written before each timed kernel to empty the cache: an H100's (`L2_cache_size`).
_CACHE = 50 * 2**20


def import_once() -> None:
    """Import torch's compiler, before the processes part that need it."""
    # Its pool of processes would compile kernels.
    os.environ["TORCH_WARM_POOL"] = "0"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    import torch._dynamo
    import torch._inductor.compile_fx
    from torch._inductor.fx_passes import joint_graph

    joint_graph.lazy_init(torch.device("cpu"))  # the patterns of its passes


def compile_model(model: nn.Module, image: Any, mode: Any, dtype: torch.dtype | None) -> None:
    """Compile a model of fake tensors for an image; ``mode`` then sees a compiled model's allocations in each call.

    ``dtype`` is autocast's, None if there is none. Call it before anything hooks on the model, with no dispatch mode
    active: below one, torch compiles nothing. From then on torch evaluates no guards, so that compiled code runs there.
    """
    import_once()
    model.forward = _without_functions(torch.compile(model.forward, backend=Compiler(mode), dynamic=False))
    with _quickly(), torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        model(image)
    torch.compiler.set_stance(skip_guard_eval_unsafe=True)
    gc.freeze()  # no collection between steps visits the many objects of the compiler


def _without_functions(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is called outside the innermost mode of torch's functions, which Dynamo would trace."""

    def called(*args: Any, **kwargs: Any) -> Any:
        with _pop_mode_temporarily():
            return call(*args, **kwargs)

    return called


@contextlib.contextmanager
def _quickly() -> Iterator[None]:
    """Compile with the same result in less time.

    Torch makes the text of each graph for logs, keeps what it made, collects garbage, and has networkx find the
    smallest set of saved tensors by its slowest algorithm. That set does not depend on the algorithm: it is what still
    reaches the sink after any largest flow.
    """
    import networkx
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch

    cut = functools.partial(networkx.minimum_cut, flow_func=networkx.algorithms.flow.boykov_kolmogorov)
    with (
        mock.patch.object(networkx, "minimum_cut", cut),
        mock.patch.object(fx.GraphModule, "print_readable", return_value=""),
        functorch.patch(enable_autograd_cache=False),
        dynamo.patch(run_gc_after_compile=False),
    ):
        yield


class Compiler:
    """The backend of `torch.compile`: Inductor up to its graphs of forward and backward."""

    def __init__(self, mode: Any) -> None:
        self.mode = mode
        self.channels_last = False
        self.timed: list[list[int]] = []  # bytes that timing the two ways of a product takes, one list for each

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        from torch._inductor import compile_fx
        from torch._inductor.decomposition import select_decomp_table

        table = {operator: rule for operator, rule in select_decomp_table().items() if operator not in _KEPT}
        with self._pads():
            inner: Any = self._inner  # AOTAutograd only calls the result
            return compile_fx.compile_fx(module, inputs, inner_compile=inner, decompositions=table)

    @contextlib.contextmanager
    def _pads(self) -> Iterator[None]:
        """Let Inductor pad products as on a card with tensor cores."""
        from torch._inductor.fx_passes import pad_mm

        with mock.patch.multiple(
            pad_mm, check_device=lambda *_: True, has_triton=lambda: True, _should_pad=self._should_pad
        ):
            yield

    def _should_pad(self, match: Any, one: torch.Tensor, other: torch.Tensor, product: Any, bias: Any = None) -> bool:
        """Pad if Inductor would time both ways. It times them on the card; the padded one takes more memory."""
        m, k, n = one.shape[-2], one.shape[-1], other.shape[-1]
        if m * n * k <= _COMPUTE_BOUND * (m * k + k * n + m * n):
            return False
        rows, inner, columns = (size + -size % (_TENSOR_CORE // one.itemsize) for size in (m, k, n))
        batch = one.numel() // (m * k)
        padded = batch * rows * inner, batch * inner * columns, batch * rows * columns
        self.timed.append([_CACHE, *(size * one.itemsize for size in (one.numel(), other.numel(), *padded))])
        return True

    def _inner(self, module: fx.GraphModule, inputs: Any, **options: Any) -> Callable[[list[Any]], list[Any]]:
        """Return a function that AOTAutograd calls for a graph, in place of Inductor's code."""
        from torch._inductor.graph import GraphLowering, mark_nodes_dislike_padding

        backward = bool(options.get("is_backward"))
        mark_nodes_dislike_padding(module.graph, {})
        if not backward:
            inference = bool(options.get("is_inference"))
            with torch.backends.mkldnn.flags(enabled=False):
                self.channels_last = GraphLowering.decide_layout_opt(module, is_inference=inference)
        graph = Graph(module.graph, self.mode, backward, self.channels_last, self.timed)
        self.timed = []

        def run(args: list[Any]) -> list[Any]:
            return graph(args)

        run._boxed_call = True  # type: ignore[attr-defined]  # it gets its arguments in a list, and empties that
        return run


class Graph:
    """A compiled graph: it allocates and frees the buffers of Inductor's code, and computes nothing."""

    def __init__(self, graph: fx.Graph, mode: Any, backward: bool, channels_last: bool, timed: list[list[int]]) -> None:
        self.mode, self.backward, self.channels_last, self.timed = mode, backward, channels_last, timed
        self.fresh = True  # it has not run as part of a step yet
        self.plan = planned(graph)
        self.nodes = ordered(self.plan)
        last: dict[Node, Node] = {}
        for node in self.nodes:
            for source in self.plan.sources.get(node, ()):
                last[source] = node
            if node in self.plan.buffers:
                last.setdefault(node, node)
        self.dying: dict[Node, list[Node]] = {}
        for source, node in last.items():
            self.dying.setdefault(node, []).append(source)
        output = self.nodes[-1]
        self.results: tuple[Any, ...] = tuple(output.args[0])  # type: ignore[arg-type]  # an output has a tuple
        self.shown = {self.results[place] for place in output.meta.get("user_visible_output_idxs", ())}

    def __call__(self, args: list[Any]) -> list[Any]:
        given = iter(args)
        alive: dict[Node, Any] = {node: next(given) for node in self.nodes if node.op == "placeholder"}
        args.clear()
        del given
        with contextlib.nullcontext() if self.mode.recording else self.mode.fake:
            self._time()
            for node in self.nodes[:-1]:
                if node in self.plan.buffers:
                    if node not in alive:
                        self._make(node, alive)
                        self._choose(node)
                    for source in self.dying.get(node, ()):
                        alive.pop(source, None)
            self.fresh = self.fresh and not self.mode.recording
            return [self._result(one, alive) for one in self.results]

    def _time(self) -> None:
        """Note the memory for timing two ways of a product: once, when the graph is compiled."""
        if self.fresh and self.mode.recording:
            for sizes in self.timed:
                self._for_a_while(*sizes)

    def _choose(self, node: Node) -> None:
        """Note the memory for timing a kernel of Triton in several forms: once, when it first runs."""
        if self.fresh and self.mode.recording and self.plan.natures[node] in ("inlined", "reduction"):
            self._for_a_while(_CACHE)

    def _for_a_while(self, *sizes: int) -> None:
        blocks = [self.mode.ledger.allocate(size, "", "workspace") for size in sizes]
        for block in blocks:
            self.mode.ledger.release(block)

    def _make(self, node: Node, alive: dict[Node, Any]) -> None:
        """Allocate a buffer, or all results of a kernel that has several."""
        nature, value = self.plan.natures[node], node.meta.get("val")
        with self.mode.owners.within(_owner(node)):
            if nature == "library":
                made = self._call(node)
            elif isinstance(value, torch.Tensor):
                old = self._written_over(node, alive) if nature == "inlined" else None
                made = self._empty(node, value) if old is None else old.as_strided(value.shape, value.stride())
            else:
                made = self._several(node, value)
        alive[node] = made
        if isinstance(made, (tuple, list)):
            alive[node] = None
            for part in node.users:
                alive[part] = made[_place(part)]

    def _several(self, node: Node, values: Any) -> Any:
        if not isinstance(values, (tuple, list)):
            return self._empty(node, values) if isinstance(values, torch.Tensor) else values
        read = {_place(part) for part in node.users}
        return [self._several(node, one) if place in read else None for place, one in enumerate(values)]

    def _empty(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        stride = value.stride()
        image = self.channels_last and value.dim() in (4, 5)  # those are not padded
        if not image and node not in self.shown and not node.meta.get("dislike_padding"):
            stride = padded(value.shape, stride, value.itemsize)
        return torch.empty_strided(value.shape, stride, dtype=value.dtype, device="cpu")

    def _written_over(self, node: Node, alive: dict[Node, Any]) -> torch.Tensor | None:
        """Return a buffer of the same size and type that is read for the last time here: the kernel writes over it."""
        value = node.meta["val"]
        for source in self.dying.get(node, ()):
            # Tensors that forward saved may be written over in backward (`donated_buffer`), but not the caller's.
            if self.plan.natures[source] == "input" and (
                not self.backward or source.name.startswith(("primals", "tangents"))
            ):
                continue
            old = alive.get(source)
            if not isinstance(old, torch.Tensor) or old.dtype != value.dtype or source is node:
                continue
            if old.numel() == value.numel() and old.untyped_storage().nbytes() == value.numel() * value.itemsize:
                return old
        return None

    def _call(self, node: Node) -> Any:
        """Allocate the results of a library's kernel, with its workspaces."""
        args = fx.node.map_arg(node.args, lambda one: one.meta["val"])
        recording, self.mode.recording = self.mode.recording, False
        try:
            if self.channels_last and node.target in convolutions.OPERATORS:
                args = tuple(_in_channels_last(one) for one in args)
            value = node.meta["val"]
            several = isinstance(value, (tuple, list))
            made = [self._several(node, one) for one in (value if several else [value])]
        finally:
            self.mode.recording = recording
        out = tuple(made) if several else made[0]
        if recording:
            self.mode.call(node.target, args, out)
        return out

    def _result(self, node: Any, alive: dict[Node, Any]) -> Any:
        if not isinstance(node, Node):
            return node
        held = alive[base(node, self.plan.natures)]
        if not isinstance(held, torch.Tensor) or self.plan.natures[node] == "input":
            return held
        value = node.meta["val"]
        wanted = value.shape, value.stride(), value.storage_offset()
        return held if wanted == (held.shape, held.stride(), 0) else held.as_strided(*wanted)


def _in_channels_last(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.dim() not in (4, 5):
        return value
    layout = torch.channels_last if value.dim() == 4 else torch.channels_last_3d
    return torch.empty(value.shape, dtype=value.dtype, device="cpu", memory_format=layout)


def _place(part: Node) -> int:
    """Return the place of a node's value among the results of its kernel."""
    place = part.args[1]
    assert isinstance(place, int)
    return place


def _owner(node: Node) -> str:
    """Return the name in the model of the module that a node comes from, or ""."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    path = str([*stack.values()][-1][0]) if stack else ""
    return path.removeprefix("L['self']").removeprefix(".")
