"""The calls of a model's blocks in a traced step: the events of each, in forward and in backward.

From them the compiler predicts the memory of a step that recomputes some of the blocks in backward, as
`models/recompute.py` does. A block that is called twice has two spans.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ratc_runtime.trace.ledger import Ledger
from ratc_runtime.trace.work import Work


@dataclass
class Span:
    """A call of a block. `forward` and `backward` are the first event and the one after the last; `kernels` the same of
    the step's kernels. `inputs` and `outputs` are the blocks of memory that the call was given, and that it returned.
    """

    name: str
    forward: tuple[int, int]
    kernels: tuple[int, int]
    inputs: list[int]
    outputs: list[int]
    backward: tuple[int, int] = (-1, -1)


class Spans:
    """Follows the blocks of a model. Autograd's nodes are numbered in the order of their creation, so that the numbers
    at the beginnings and ends of forward calls say to which call a node belongs.
    """

    def __init__(self, ledger: Ledger, work: Work) -> None:
        self.found: list[Span] = []
        self._ledger, self._work = ledger, work
        self._begun: tuple[str, int, int, list[int]] | None = None
        self._numbers: list[int] = []
        self._spans: list[Span | None] = []
        self._last: Span | None = None

    def watch(self, blocks: Mapping[str, nn.Module]) -> None:
        """Follow blocks by their names in the model."""
        for name, block in blocks.items():
            block.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
            block.register_forward_hook(partial(self._leave, name))

    def _enter(self, name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        if self._ledger.phase != "forward" or self._begun is not None:
            return
        self._begun = name, len(self._ledger.events), len(self._work.kernels), self._known((args, kwargs))
        self._note(None)

    def _leave(self, name: str, _module: nn.Module, _given: Any, output: Any) -> None:
        if self._begun is None or self._begun[0] != name or self._ledger.phase != "forward":
            return
        _, event, kernel, inputs = self._begun
        forward, kernels = (event, len(self._ledger.events)), (kernel, len(self._work.kernels))
        span = Span(name, forward, kernels, inputs, self._known(output))
        self.found.append(span)
        self._spans[-1] = span
        self._begun = None
        self._note(None)

    def _note(self, span: Span | None) -> None:
        self._numbers.append(torch.autograd._get_sequence_nr())
        self._spans.append(span)

    def _known(self, values: Any) -> list[int]:
        tensors = (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))
        return sorted({block for tensor in tensors if (block := self._ledger.block_of(tensor)) is not None})

    def running(self) -> None:
        """Note that an operator of a backward pass is about to run."""
        node = torch._C._current_autograd_node()
        position = bisect_right(self._numbers, node._sequence_nr()) - 1 if node is not None else -1
        span = self._spans[position] if position >= 0 else None
        now = len(self._ledger.events)
        if span is not self._last and self._last is not None:
            self._last.backward = self._last.backward[0], now
        if span is not None and span.backward[0] < 0:
            span.backward = now, now
        self._last = span

    def ended(self) -> None:
        """Note the end of a backward pass."""
        if self._last is not None:
            self._last.backward = self._last.backward[0], len(self._ledger.events)
            self._last = None

    def of_backward(self) -> list[Span]:
        """Return the spans that a backward pass ran through, in order."""
        return [span for span in self.found if span.backward[0] >= 0]
