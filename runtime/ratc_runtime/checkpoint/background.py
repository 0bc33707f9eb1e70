"""Writing during training: a copy of the state in host memory, and one thread that does one write at a time."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch


def snapshot(value: Any, seen: dict[Any, torch.Tensor] | None = None) -> Any:
    """Return a copy of nested containers with every tensor, of any shape, in host memory.

    Equal views of the same memory share one copy, which `seen` holds.
    """
    seen = {} if seen is None else seen
    if isinstance(value, torch.Tensor):
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if not value.numel() or key not in seen:
            seen[key] = value.detach().to("cpu", copy=True)
        return seen[key]
    if isinstance(value, dict):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        copied: Any = kind((key, snapshot(item, seen)) for key, item in value.items())
        if hasattr(value, "_metadata"):  # the versions of modules, in a state dict
            copied._metadata = copy.deepcopy(value._metadata)
        return copied
    if type(value) in (list, tuple):
        return type(value)(snapshot(item, seen) for item in value)
    return copy.deepcopy(value)


class Background:
    """Run one action at a time in a thread. `wait` raises the exception of an action that failed."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """True if an action has ended and `wait` has not been called since."""
        return self._thread is not None and not self._thread.is_alive()

    def start(self, action: Callable[[], None]) -> None:
        """Start an action. Call `wait` first if another may be running, else it raises RuntimeError."""
        if self._thread is not None:
            raise RuntimeError("an action is under way")
        self._thread = threading.Thread(target=self._run, args=(action,), name="checkpoint")
        self._thread.start()

    def _run(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait for the action, if any, and raise its exception if it failed."""
        if self._thread is None:
            return
        self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error
