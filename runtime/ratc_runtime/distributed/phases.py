"""What a process is doing, read from the Python stack of its main thread: the loop itself has to say nothing.

The watchdog looks from a thread of its own, so this costs nothing while all is well and works while the main thread
is inside a collective, a sleep or a kernel.
"""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).resolve().parents[1])
#: Frames shown of a stack: the innermost ones, where it hangs.
_SHOWN = 12
#: Files whose frames stand between others and say nothing: how modules are called and programs started.
_DULL = ("torch/nn/modules/module.py", "torch/nn/parallel/distributed.py", "<frozen runpy>")

#: Parts of a run, by (file of this package, or folder with a slash; functions, none is all).
_WHERE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("training/open_run.py", ("open_run",), "opening"),
    ("training/loop.py", ("train_on",), "training"),
    ("training/evaluation.py", (), "evaluation"),
    ("training/finalize.py", (), "finishing"),
    ("tasks/segmentation/baseline.py", (), "baseline"),
    ("checkpoint/", (), "checkpoint"),
)
#: What goes on inside a part.
_DOING: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("training/step.py", ("training_step",), "forward"),
    ("engine/", ("predict",), "forward"),
    ("engine/", ("backward",), "backward"),
    ("engine/", ("update",), "optimizer"),
    ("distributed/world.py", ("sum", "gather", "barrier", "leave"), "collective"),
    ("tracking/", (), "tracking"),
)
#: The same of other packages' files, by the end of their path.
_ELSEWHERE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("torch/utils/data/dataloader.py", (), "loader"),
    ("torch/autograd/graph.py", ("_engine_run_backward",), "backward"),
    ("torch/distributed/distributed_c10d.py", (), "collective"),
    # DDP sends its buffers round before a forward pass, in C++.
    ("torch/nn/parallel/distributed.py", ("_distributed_broadcast_coalesced",), "collective"),
    ("deepspeed/comm/comm.py", (), "collective"),
)
#: Where a process waits for the others: it is the victim of a hang, not its cause. DDP and DeepSpeed exchange
#: gradients within backward.
WAITING = frozenset({"collective", "backward"})


@dataclass(frozen=True)
class Phase:
    """`where` in a run and `doing` what (either may be empty), and the innermost frames of the main thread."""

    where: str
    doing: str
    stack: str

    @property
    def name(self) -> str:
        """What a person reads: ``loader``, ``evaluation: forward``, ``checkpoint``."""
        parts = [part for part in ("" if self.where == "training" else self.where, self.doing) if part]
        return ": ".join(parts) or self.where or "starting or ending"

    @property
    def waiting(self) -> bool:
        """Whether it waits for other processes, as far as the stack tells."""
        return self.doing in WAITING


def look() -> Phase:
    """Return the phase of this process's main thread; call this from another thread."""
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main) if main is not None else None
    where = doing = ""
    frames = list(_outwards(frame))
    for step in reversed(frames):  # the innermost word counts
        file, function = step.f_code.co_filename, step.f_code.co_name
        found = _named(file, function)
        if found is not None:
            part, work = found
            # A part that begins within another one begins its work again.
            where, doing = (part, "") if part else (where, work)
    shown = traceback.extract_stack(frame) if frame is not None else []
    telling = [line for line in shown if not line.filename.endswith(_DULL)][-_SHOWN:]
    return Phase(where, doing, "".join(traceback.format_list(telling)).rstrip())


def _outwards(frame: FrameType | None) -> list[FrameType]:
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _is_of(own: str, name: str) -> bool:
    return own.startswith(name) if name.endswith("/") else own == name


def _named(file: str, function: str) -> tuple[str, str] | None:
    """Return (part, "") or ("", work) of a frame; None of one that says nothing."""
    if file.startswith(_PACKAGE):
        own = file[len(_PACKAGE) + 1 :].replace("\\", "/")
        # Whatever a loader's file is called: samples are read below that folder.
        if own.startswith("data/"):
            return "", "loader"
        for name, functions, part in _WHERE:
            if _is_of(own, name) and (not functions or function in functions):
                return part, ""
        for name, functions, work in _DOING:
            if _is_of(own, name) and (not functions or function in functions):
                return "", work
        return None
    for end, functions, work in _ELSEWHERE:
        if file.replace("\\", "/").endswith(end) and (not functions or function in functions):
            return "", work
    return None
