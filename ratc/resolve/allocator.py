"""How PyTorch's CUDA allocator takes memory: in segments of fixed size, or in segments that grow."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog.alloc_conf import NATIVE, by_variables
from ratc.diagnostics import Diagnostic
from ratc.plan import job_variables
from ratc.resolve.context import Context

_PATH = "training.allocator"
#: An input of values that memory decides: this setting left the micro-batch to ratc.
_OPEN = "spec:training.batch_size"


def derive(context: Context) -> Iterator[Diagnostic]:
    """Take the spec's allocator; for `auto`, expandable segments only if a prediction decides for them."""
    asked, decision = context.settings[_PATH], context.choice
    said = by_variables(job_variables(context.settings, context.facts))
    if context.value("hardware.device") != "cuda":
        context.derive(_PATH, None, "trains on the CPU", f"spec:{_PATH}", "hardware.device")
    elif asked.value != "auto":
        context.keep(_PATH)
    elif said:
        own = by_variables(context.settings["environment.variables"].value or {})
        source = "spec:environment.variables" if own else "facts:cluster.variables"
        why = f"as {'`environment.variables` says' if own else 'the variables of the cluster say'}"
        context.derive(_PATH, said, why, f"spec:{_PATH}", source)
    elif decision is None:
        context.derive(_PATH, NATIVE, "the default: no prediction asks for expandable segments", f"spec:{_PATH}")
    else:
        because = (f"spec:{_PATH}", "hardware.memory_bytes", _OPEN)
        context.derive(_PATH, decision.allocator, decision.where + decision.allocator_reason, *because)
    yield from ()
