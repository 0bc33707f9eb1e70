"""The number format of the training. Code: R302.

bf16 and TF32 need matrix units of compute capability 8.0, fp16 those of 7.0 (CUDA C++ programming guide, arithmetic
instructions); older cards and CPUs gain nothing and compute in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.resolve.context import Context


def derive(context: Context) -> Iterator[Diagnostic]:
    """Take the requested precision if the card has it; derive `auto` from the card's formats."""
    settings, facts = context.settings, context.facts
    cuda = context.value("hardware.device") == "cuda"
    has = {kind: cuda and bool(facts[f"card.{kind}"].value) for kind in ("bf16", "fp16", "tf32")}
    name = facts["card.name"].value if cuda else "the CPU"
    capability = facts["card.compute_capability"].value
    where = f"{name}, compute capability {capability}" if cuda and capability else name
    asked, mixed = settings["training.precision"], settings["training.mixed_precision"]
    inputs = ("hardware.device", "facts:card.compute_capability", "spec:training.mixed_precision")
    if asked.value != "auto":
        runs = asked.value == "fp32" or has[asked.value] or (asked.value == "bf16" and not cuda)
        if not runs:
            usable = [kind for kind in ("bf16", "fp16") if has[kind]] + ["fp32"]
            helps: tuple[str, ...] = (f"use {' or '.join(f'`{kind}`' for kind in usable)}, or `auto`",)
            message = f"{name} cannot train in {asked.value}"
            if name is None:
                message = f"the card is not known, and so not whether it can train in {asked.value}"
                helps = ("name the card in `resources.gpu`, or the cluster in `resources.cluster`", *helps)
            yield Diagnostic(
                "R302",
                message,
                asked.span,
                (where,) if where != name else (),
                helps,
            )
            return
        context.keep("training.precision")
    elif not mixed.value:
        context.derive("training.precision", "fp32", "mixed_precision is false", *inputs)
    elif has["bf16"]:
        context.derive(
            "training.precision",
            "bf16",
            f"{where}: bf16 from 8.0" if capability else f"{where} has bf16",
            *inputs,
        )
    elif has["fp16"]:
        context.derive("training.precision", "fp16", f"{where}: fp16 with a loss scaler below 8.0", *inputs)
    else:
        context.derive(
            "training.precision",
            "fp32",
            f"{where} has no fast half precision" if cuda else "the CPU",
            *inputs,
        )
    tf32 = has["tf32"] and bool(mixed.value)
    why = (
        "mixed_precision, on a card with TF32"
        if tf32
        else ("no TF32 here" if not has["tf32"] else "mixed_precision is false")
    )
    context.derive("training.tf32", tf32, why, *inputs)
