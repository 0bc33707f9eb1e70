"""The checkpoints of a run, and whether they are written in the background. Code: R223.

Writing in the background pays if the cores of the host are idle while a card trains. It takes host memory for a copy
of weights and optimizer state, in the main process alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, Severity
from ratc.own_code.callables import named
from ratc.resolve.context import Context

_AS_GIVEN = ("every_epochs", "every_steps", "keep_last", "keep_best", "resume")
_PATH = "checkpoint.asynchronous"


def derive(context: Context) -> Iterator[Diagnostic]:
    """Take intervals and numbers from the spec; derive `asynchronous` from device and engine if it is `auto`."""
    context.keep(*(f"checkpoint.{key}" for key in _AS_GIVEN))
    if any(named(context.settings)):
        context.keep("checkpoint.own_code")
    asked = context.settings[_PATH]
    shards = "DeepSpeed" if context.value("engine.deepspeed") else "FSDP2" if "fsdp2.shard" in context.values else None
    if shards is not None:
        context.derive(
            _PATH,
            False,
            f"{shards} writes the shards of all ranks together",
            "engine.deepspeed",
            f"spec:{_PATH}",
        )
        if asked.value is True:
            yield Diagnostic(
                "R223",
                f"`asynchronous` has no effect: {shards} is used",
                asked.span,
                ("all ranks write their shards together, while training waits",),
                ("leave it at `auto`, or use `parallel.strategy: ddp`",),
                Severity.WARNING,
            )
    elif asked.value != "auto":
        context.keep(_PATH)
    elif context.value("hardware.device") == "cuda":
        context.derive(_PATH, True, "the host writes while the GPU trains", "hardware.device", f"spec:{_PATH}")
    else:
        context.derive(
            _PATH, False, "on the CPU, writing would take the cores that train", "hardware.device", f"spec:{_PATH}"
        )
