"""The module that owns an allocation: the running one, and in backward the one whose forward made the graph node."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class Owners:
    """Follows the stack of modules in forward. In backward, a node's sequence number gives the time of its creation.

    Autograd numbers its nodes in order of creation, so the numbers at the entry and exit of modules partition them. A
    node without a number (gradient accumulation) belongs to no module here.
    """

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self._stack: list[str] = []
        self._numbers: list[int] = []
        self._owners: list[str] = []
        self._handles: list[Any] = []

    def watch(self, model: nn.Module) -> None:
        """Register a model's modules by name, and hooks for them."""
        self.names = {id(module): name for name, module in model.named_modules()}
        self._handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]

    def forget(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @contextlib.contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Let a module be the running one: a compiled graph calls none."""
        self._stack.append(name)
        try:
            yield
        finally:
            self._stack.pop()

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        self._stack.append(self.names.get(id(module), self._stack[-1] if self._stack else ""))
        self._note()

    def _leave(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self._stack:
            self._stack.pop()
            self._note()

    def _note(self) -> None:
        self._numbers.append(torch.autograd._get_sequence_nr())
        self._owners.append(self._stack[-1] if self._stack else "")

    def current(self) -> str:
        """Return the name of the running module, or "" outside of all."""
        if self._stack:
            return self._stack[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return ""
        position = bisect_right(self._numbers, node._sequence_nr()) - 1
        # Numbers after the last module was left belong to the loss, whose owner is "".
        return self._owners[position] if position >= 0 else ""
