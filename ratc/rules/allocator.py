"""R227: variables that set PyTorch's CUDA allocator, or the workspaces of cuBLAS, otherwise than a plan can hold."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog import cublas
from ratc.catalog.alloc_conf import EXPANDABLE, READ, fault, implied, options, unfollowed, unknown
from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that the variables of the environment section agree with one another and with `training.allocator`."""
    variables, asked = settings["environment.variables"], settings["training.allocator"].value
    given = {name: str(variables.value[name]) for name in READ if name in (variables.value or {})}
    for name, text in given.items():
        found = options(text)
        backend, switch = found.get("backend", "native"), found.get(EXPANDABLE)
        if backend != "native":
            message = f"`{name}` asks for the allocator backend `{backend}`, which ratc does not support"
            yield Diagnostic("R227", message, variables.span, helps=("remove `backend` from it",))
        elif wrong := fault(text):
            message = f"`{name}` {wrong}: the run would end as soon as torch reads it"
            yield Diagnostic("R227", message, variables.span)
        elif asked != "auto" and implied(text) not in (None, asked):
            message = f"`{name}` sets `{EXPANDABLE}:{switch}`, and `training.allocator` is `{asked}`"
            yield Diagnostic("R227", message, variables.span, helps=(f"remove `{EXPANDABLE}` from `{name}`",))
        if strange := unknown(text):
            message = f"`{name}` sets {', '.join(f'`{one}`' for one in strange)}, which torch 2.13 does not know"
            yield Diagnostic("R227", message, variables.span, severity=Severity.WARNING)
        if moved := unfollowed(text):
            message = (
                "the prediction of memory does not take into account "
                f"{', '.join(f'`{one}`' for one in moved)}, set by `{name}`"
            )
            note = "the run may need more memory than is predicted"
            yield Diagnostic("R227", message, variables.span, (note,), severity=Severity.WARNING)
    own = variables.value or {}
    if cublas.NAME in own and (wrong := cublas.fault(str(own[cublas.NAME]))):
        yield Diagnostic("R227", f"`{cublas.NAME}` {wrong}", variables.span, severity=Severity.WARNING)
    if cublas.unfollowed(own):
        message = f"the prediction of memory does not take into account `{cublas.UNIFIED}: 0`"
        note = "the run may need more memory than is predicted"
        yield Diagnostic("R227", message, variables.span, (note,), severity=Severity.WARNING)
    said = {allocator for text in given.values() if (allocator := implied(text))}
    if asked == "auto" and len(said) > 1:
        message = f"{' and '.join(f'`{name}`' for name in given)} contradict each other in `{EXPANDABLE}`"
        helps = ("remove it from both, and set `training.allocator`",)
        yield Diagnostic("R227", message, variables.span, helps=helps)
