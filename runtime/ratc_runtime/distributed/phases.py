"""The current activity of a process: the running code announces it, and the watchdog's thread reads it.

`with phase("evaluation"):`, or the same as a decorator, costs a microsecond. It also works while the main thread is in
a collective, a sleep or a kernel. The stack is read only to be shown, and to recognise collectives that torch and
DeepSpeed start themselves.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal, get_args

#: A part of a run.
Part = Literal["opening", "training", "evaluation", "baseline", "checkpoint", "finishing"]
#: The work inside a part. A nested part starts without work.
Work = Literal["loader", "forward", "backward", "optimizer", "collective", "tracking"]

#: In these a process waits for the others: it is the victim of a hang, not its cause. DDP and DeepSpeed exchange
#: gradients within backward.
WAITING = frozenset({"collective", "backward"})
#: Frames shown of a stack: the innermost ones, in which it hangs.
_SHOWN = 12
#: Files whose frames carry no information: calls of modules and starts of programs.
_DULL = ("torch/nn/modules/module.py", "torch/nn/parallel/distributed.py", "<frozen runpy>", "contextlib.py")
#: Collectives that no code of ours calls, by the end of the file's path and the functions (none is all).
_COLLECTIVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("torch/distributed/distributed_c10d.py", ()),
    # DDP sends its buffers round before a forward pass, in C++.
    ("torch/nn/parallel/distributed.py", ("_distributed_broadcast_coalesced",)),
    ("deepspeed/comm/comm.py", ()),
)
#: The phases that the main thread is in, outermost first.
_current: list[Part | Work] = []


@contextmanager
def phase(name: Part | Work) -> Iterator[None]:
    """Announce the activity of the main thread. In any other thread this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _current.append(name)
    try:
        yield
    finally:
        _current.pop()


@dataclass(frozen=True)
class Phase:
    """The part of a run (`where`) and the work in it (`doing`), either may be empty, and the main thread's innermost
    frames.
    """

    where: str
    doing: str
    stack: str

    @property
    def name(self) -> str:
        """The name in messages: ``loader``, ``evaluation: forward``, ``checkpoint``."""
        parts = [part for part in ("" if self.where == "training" else self.where, self.doing) if part]
        return ": ".join(parts) or self.where or "starting or ending"

    @property
    def waiting(self) -> bool:
        """True if the process probably waits for other processes."""
        return self.doing in WAITING


def look() -> Phase:
    """Return the phase of this process's main thread; call this from another thread."""
    where = doing = ""
    for name in tuple(_current):
        where, doing = (name, "") if name in get_args(Part) else (where, name)
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main) if main is not None else None
    if _in_collective(frame):
        doing = "collective"
    shown = traceback.extract_stack(frame) if frame is not None else []
    telling = [line for line in shown if not line.filename.endswith(_DULL)][-_SHOWN:]
    return Phase(where, doing, "".join(traceback.format_list(telling)).rstrip())


def _in_collective(frame: FrameType | None) -> bool:
    while frame is not None:
        file, function = frame.f_code.co_filename.replace("\\", "/"), frame.f_code.co_name
        if any(file.endswith(end) and (not names or function in names) for end, names in _COLLECTIVES):
            return True
        frame = frame.f_back
    return False
