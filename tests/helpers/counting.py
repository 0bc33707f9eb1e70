"""An independent count: the same step on real tensors, watched by torch's profiler in the CPU allocator.

Run as a script, in a process of its own: `python counting.py BATCH < request.json` prints the bytes.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ONEDNN = {"aten::mkldnn_convolution", "aten::convolution_backward"}


def real_peak(content: dict[str, Any], batch: int, steps: int = 2) -> tuple[int, int]:
    """Return the peak of live bytes and those alive at the end, from the allocator's own events."""
    import torch
    from ratc_runtime.models.build import build_model
    from ratc_runtime.tasks import make_task
    from ratc_runtime.trace.request import read
    from ratc_runtime.trace.workload import make_engine, run_steps

    request = read(content)
    torch.manual_seed(0)
    model = build_model(request.lock)
    weights = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in [*model.parameters(), *model.buffers()]
    }
    task = make_task(request.lock)
    criterion = task.loss()
    engine = make_engine(request, model)
    train = partial(run_steps, request, engine, task, criterion, batch, steps, before=gc.collect)
    return allocated_peak(train, sum(weights.values()))


def allocated_peak(train: Callable[[], Any], alive: int) -> tuple[int, int]:
    """Train; return the peak of live bytes and those alive at the end. ``alive`` are those of the weights before."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    gc.disable()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        train()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "events.json")
        watched.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    live = peak = alive
    for size in _tensors(events):
        live += size
        peak = max(peak, live)
    return peak, live


def _tensors(events: list[dict[str, Any]]) -> list[int]:
    """Return the bytes allocated (+) and freed (-) in order, without oneDNN's own.

    oneDNN takes scratch for copies in its layouts from the same allocator, directly inside its operators, while
    their results come from `aten::empty`. It is no part of the step that CUDA would run (cuDNN has workspaces of
    its own, which no trace sees).
    """
    marks: list[tuple[float, int, Any]] = []
    for event in events:
        if event.get("cat") == "cpu_op":
            marks += [(event["ts"], 0, event), (event["ts"] + event["dur"], 2, event)]
        elif event.get("name") == "[memory]":
            marks.append((event["ts"], 1, event))
    marks.sort(key=lambda mark: mark[:2])
    inside: list[dict[str, Any]] = []
    scratch: set[int] = set()
    sizes: list[int] = []
    for _, what, event in marks:
        if what == 0:
            inside.append(event)
        elif what == 2:
            inside.remove(event)
        else:
            size, address = event["args"]["Bytes"], event["args"]["Addr"]
            if size > 0 and inside and inside[-1]["name"] in ONEDNN:
                scratch.add(address)
            elif size < 0 and address in scratch:
                scratch.discard(address)
            else:
                sizes.append(size)
    return sizes


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(real_peak(json.load(sys.stdin), int(sys.argv[1]))))
