"""The messages for errors that end a process."""

from __future__ import annotations

import os
import socket
import sys

from ratc_runtime.errors import RuntimeFinding


def unexpected(error: Exception) -> RuntimeFinding:
    """Return R528: an error without a code of its own ended one of several processes."""
    return RuntimeFinding(
        "R528",
        f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()} ended with {type(error).__name__}: {error}"[
            :400
        ],
        "its traceback is above; the other processes end because of it",
        "look at the last line of your own in the traceback",
        everywhere=False,
    )


def as_finding(error: Exception) -> RuntimeFinding | None:
    """Return the finding for an error; None if only a traceback would help."""
    if isinstance(error, RuntimeFinding) or "torch" not in sys.modules:
        return error if isinstance(error, RuntimeFinding) else None
    import torch

    from ratc_runtime.training import out_of_memory

    device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
    text = out_of_memory.explain(error, device)
    if text is not None:
        return out_of_memory.outside_a_step(text)
    # gloo raises a plain RuntimeError, with the name of its source file in the message.
    backend = getattr(torch.distributed, "DistBackendError", ())
    if isinstance(error, backend) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error)):
        return RuntimeFinding(
            "R514",
            f"rank {os.environ.get('RANK', '0')} has lost the other processes",
            " ".join(str(error).split())[:300],
            "another rank ended first: its message above or below is the reason",
            everywhere=False,
        )
    return None
