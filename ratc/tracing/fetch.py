"""Fetches a model's trace from the runtime, and caches it by the digest of all that it depends on. Codes: R315, R446,
and those that the runtime reports.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ratc import cache_folder, files
from ratc.diagnostics import Diagnostic, Span
from ratc.memory.trace import VERSION, BadTrace, Trace, parse
from ratc.own_code import digests, trust
from ratc.tracing.child_process import MODEL, Limits, Spans, Work, run

#: Traces kept; the oldest go first.
KEPT = 300
TRACING = Work("ratc_runtime.trace", "tracing", "R315", warm=True)
#: For one trace. RAT takes about 10 s of processor time, most of it the import of torch.
LIMITS = Limits(cpu_s=360.0, idle_s=120.0, wall_s=1800.0)


def fetch(
    request: Mapping[str, Any],
    folder: str,
    spans: Spans = lambda _: None,
    progress: Callable[[str], None] | None = None,
    limits: Limits = LIMITS,
) -> tuple[Trace | None, tuple[Diagnostic, ...]]:
    """The trace for a request, from the cache or made now in ``folder``, the spec's. A corrupt cache entry is made
    again. Code of the spec's own is run only if the user trusts the folder.
    """
    path = os.path.join(cache_folder.folder("traces"), f"{key(request, folder)}.json")
    known = _read(path)
    if isinstance(known, Trace):
        with suppress(OSError):  # another user's cache
            os.utime(path)
        return known, ()
    if (own := own_names(request)) and not trust.allows(folder, ", ".join(own)):
        return None, (untrusted(own, spans(MODEL)),)
    if progress:
        progress(_describe(request))
    with files.temporary_folder() as place:
        fresh = os.path.join(place, "trace.json")
        problem = run(TRACING, request, runtime_folder(), folder, fresh, spans, limits)
        if problem:
            return None, (problem,)
        trace = _read(fresh)
        if not isinstance(trace, Trace):
            return None, (
                Diagnostic("R315", f"the runtime wrote a trace that ratc cannot read: {trace}", spans(MODEL)),
            )
        with open(fresh, "rb") as file:
            cache_folder.keep(path, file.read(), KEPT)
        return trace, ()


def key(request: Mapping[str, Any], folder: str) -> str:
    """Return the digest of all that a trace depends on: request, packages, the runtime's code and the user's own."""
    whole = hashlib.sha256()
    whole.update(json.dumps([VERSION, sys.version_info[:2], request], sort_keys=True).encode())
    for name in cache_folder.packages():
        whole.update(name.encode() + b"\0")
    runtime = runtime_folder()
    for file in _python_files(runtime) if runtime else ():
        try:
            with open(file, "rb") as handle:
                whole.update(file.encode() + b"\0" + hashlib.sha256(handle.read()).digest())
        except OSError:
            continue
    # By the path from the spec's folder: a revision of the same code has the same trace.
    for path, module in digests.modules(own_names(request), folder).items():
        whole.update(f"{path}\0{module.digest}\0".encode())
    return whole.hexdigest()


def own_names(request: Mapping[str, Any]) -> list[str]:
    """The callables that a trace of the request may call and that are not built in: the model's, the
    optimizer's, every loss's, and the data set of a custom task."""
    found: list[str] = []
    for key, value in request.items():
        if isinstance(value, Mapping) and key != "args":
            found += (name for name in own_names(value) if name not in found)
        elif key in ("name", "optimizer", "dataset") and ":" in str(value) and value not in found:
            found.append(str(value))
    return found


def untrusted(names: Sequence[str], span: Span | None) -> Diagnostic:
    """Return a finding that a prediction is missing because it would run untrusted code of the spec. Code: R446."""
    message = f"memory is not predicted: that would run {', '.join(f'`{name}`' for name in names)}, code of the spec"
    note = "the folder is not trusted, and there is no earlier prediction of the same code"
    helps = ("if you trust the code, add `--trust`, or trust the folder: `ratc trust FOLDER`",)
    return Diagnostic("R446", message, span, (note,), helps)


def _python_files(place: str) -> list[str]:
    found = (os.path.join(root, name) for root, _, names in os.walk(place) for name in names)
    return sorted(path for path in found if path.endswith(".py"))


def runtime_folder() -> str | None:
    """Return the folder of the runtime's package; None if it is not installed."""
    beside = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for place in (os.path.join(beside, "runtime"), beside, *sys.path):
        if os.path.isdir(os.path.join(place, "ratc_runtime")):
            return os.path.join(place, "ratc_runtime")
    return None


def _read(path: str) -> Trace | str:
    """Return the trace in a file, or the reason that it cannot be used."""
    try:
        with open(path, "rb") as handle:
            return parse(json.load(handle))
    except FileNotFoundError:
        return "there is none"
    except (OSError, ValueError, RecursionError) as error:
        return str(error) if isinstance(error, BadTrace) else f"{type(error).__name__}: {error}"


def _describe(request: Mapping[str, Any]) -> str:
    training, data = request["training"], request["data"]
    # The samples of a custom task have the shape that its data set gives.
    sized = request.get("task_type") != "custom"
    size = " x ".join(str(side) for side in data["image_size"]) + ", " if sized else ""
    attention = request["model"].get("attention_memory", "full")
    more = f", {attention} attention" if attention != "full" else ""
    more += ", checkpointed" if training["activation_checkpointing"] else ""
    several = ", accumulating" if request["accumulation"] > 1 else ""
    several += ", one sample" if request.get("batch_sizes") == [1] else ""
    kernels = f"kernels of compute capability {request['compute_capability']}"
    return f"tracing {request['model']['name']}: {size}{training['precision']}, {kernels}{more}{several}"
