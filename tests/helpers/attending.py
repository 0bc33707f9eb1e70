"""Attention of a survey's rows on fake tensors, as CUDA runs it. Rows in JSON on standard input; on standard output one
result a row: the backward node, and the peaks of the forward and the backward pass in bytes, rounded as allocated.

Run as a process, since it gives this one CUDA's rules.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from ratc_runtime.trace import kernels
from ratc_runtime.trace.ledger import Ledger
from ratc_runtime.trace.mode import RecordingMode
from ratc_runtime.trace.owners import Owners
from torch._subclasses.fake_tensor import FakeTensorMode


def peak(ledger: Ledger, start: int, stop: int | None = None) -> int:
    """Return the most bytes that the events from one up to another add to what was there before."""
    live = best = 0
    for number, allocates in ledger.events[start:stop]:
        size = (ledger.blocks[number].size + 511) & -512
        live += size if allocates else -size
        best = max(best, live)
    return best


def attend(row: dict[str, Any]) -> list[Any]:
    """Return node, forward peak and backward peak of a row."""
    kernels.install((9, 0))
    ledger = Ledger()
    fake = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
    mode = RecordingMode(fake, ledger, Owners(), (9, 0))
    dtype = getattr(torch, row["dt"].removeprefix("torch."))
    mode.recording = True
    with fake, mode:
        shape = (row["b"], row["h"], row["t"], row["d"])
        query, key, value = (torch.empty(shape, dtype=dtype, requires_grad=True) for _ in range(3))
        masks = (1, row["h"], row["t"], row["t"])
        mask = torch.empty(masks, dtype=dtype, requires_grad=True) if row["masked"] else None
        gradient = torch.empty(shape, dtype=dtype)
        forward = len(ledger.events)
        out = F.scaled_dot_product_attention(query, key, value, mask, is_causal=row["causal"])
        node = type(out.grad_fn).__name__
        backward = len(ledger.events)
        out.backward(gradient)  # type: ignore[no-untyped-call]
        mode.recording = False
        found = [node, peak(ledger, forward, backward), peak(ledger, backward)]
        ledger.close()
    return found


if __name__ == "__main__":
    print(json.dumps([attend(row) for row in json.load(sys.stdin)]))
