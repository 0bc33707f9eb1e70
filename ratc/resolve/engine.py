"""Accelerate, DeepSpeed and the ZeRO stage. Codes: R307, R308, R362."""

from __future__ import annotations

from collections.abc import Iterator

from ratc import elastic
from ratc.catalog import optimizers
from ratc.diagnostics import Diagnostic, Severity
from ratc.resolve.context import Context

#: Partitions optimizer states and gradients, at the traffic of plain data parallelism (ZeRO paper, section 7).
DEFAULT_ZERO_STAGE = 2
#: Elements of a DeepSpeed bucket, chosen, not measured. DeepSpeed's default, 5e8, is allocated in full, twice with
#: overlap, for a model of any size.
DEFAULT_BUCKET = 50_000_000

#: An input of values that memory decides: this setting left the micro-batch to ratc.
_PREDICTED = "spec:training.batch_size"


def derive(context: Context) -> Iterator[Diagnostic]:
    """Use DeepSpeed if there is more than one process to partition over, unless the spec decides."""
    settings, world = context.settings, int(context.value("parallel.world_size"))
    asked, accelerate = settings["training.deepspeed"], settings["training.use_accelerate"]
    strategy = settings["parallel.strategy"]
    compared = context.compared
    chosen = compared.strategy if compared and strategy.value == "auto" else strategy.value
    cuda = context.value("hardware.device") == "cuda"
    context.keep("training.use_accelerate", under="engine.use_accelerate")
    inputs: tuple[str, ...] = ("parallel.world_size", "hardware.device", "spec:training.deepspeed")
    optimizer = settings.get_as(str, "training.optimizer")
    apart = not optimizers.of(optimizer).zero
    wanted = asked.value or chosen == "deepspeed"
    if wanted and world == 1:
        context.derive("engine.deepspeed", False, "one process: ZeRO needs several", *inputs)
        message = "`deepspeed` is not used with one process: ZeRO needs several"
        yield Diagnostic("R307", message, (asked if asked.value else strategy).span, severity=Severity.WARNING)
    elif chosen in ("ddp", "fsdp2", "deepspeed"):
        why = f"the strategy is {chosen}"
        by = context.compared_by() if compared and strategy.value == "auto" else ("spec:parallel.strategy",)
        context.derive("engine.deepspeed", chosen == "deepspeed", why, *by)
    elif asked.value is not None:
        context.keep("training.deepspeed", under="engine.deepspeed")
    elif elastic.is_range(settings):
        why = "the nodes are a range, and on others ZeRO's checkpoints have to be converted first"
        context.derive("engine.deepspeed", False, why, f"spec:{elastic.FEWEST}")
    else:
        use = cuda and world > 1 and bool(accelerate.value) and not apart
        reasons = {(True, True): f"{world} GPUs", (True, False): "use_accelerate is false"}
        why = reasons.get((world > 1, bool(accelerate.value)), "one process") if cuda else "trains on the CPU"
        if apart and cuda and world > 1:
            why, inputs = f"the optimizer is {optimizer}", (*inputs, "spec:training.optimizer")
        context.derive("engine.deepspeed", use, why, *inputs)
    used, decision = bool(context.value("engine.deepspeed")), context.choice or compared
    if used and apart:
        note = "ratc knows the memory of ZeRO only for Adam's optimizer states"
        span = settings["training.optimizer"].span or asked.span or strategy.span
        helps = (f"use {optimizers.names(zero=True)}, or set `deepspeed: false`",)
        yield Diagnostic("R362", f"`optimizer: {optimizer}` does not work with DeepSpeed", span, (note,), helps)
        return
    if used and context.value("training.precision") == "fp16" and not cuda:
        yield Diagnostic(
            "R302",
            "DeepSpeed cannot train in fp16 on the CPU",
            settings["training.precision"].span,
            helps=("use `fp32` or `bf16`",),
        )
        return
    if not used:
        context.derive("engine.zero_stage", 0, "DeepSpeed is not used", "engine.deepspeed")
    elif settings["training.zero_stage"].value is not None:
        context.keep("training.zero_stage", under="engine.zero_stage")
    elif decision is not None:
        open_ = settings["training.activation_checkpointing"].value == "auto"
        why = f"the lowest stage that needs no further accumulation{' or recomputation' if open_ else ''}"
        context.derive(
            "engine.zero_stage",
            decision.zero_stage,
            why,
            "engine.deepspeed",
            "hardware.memory_bytes",
            _PREDICTED,
        )
    else:
        context.derive(
            "engine.zero_stage",
            DEFAULT_ZERO_STAGE,
            "partitions optimizer states and gradients at no loss of speed",
            "engine.deepspeed",
        )
    bucket = decision.choice.estimate.strategy.bucket if decision else DEFAULT_BUCKET
    why = (
        "not larger than the model"
        if bucket < DEFAULT_BUCKET
        else "a tenth of DeepSpeed's default, because the whole bucket is reserved"
    )
    left = (_PREDICTED,) if decision else ()
    context.derive("deepspeed.bucket_elements", bucket, why, "engine.deepspeed", *left)
    offload = settings["training.offload_optimizer"]
    if offload.value and used and context.value("engine.zero_stage") == 0:
        message = "`offload_optimizer` needs ZeRO stage 1 or higher"
        yield Diagnostic("R307", message, offload.span, helps=("set `zero_stage: 1` or higher",))
        return
    if offload.value and not used:
        context.derive("engine.offload_optimizer", False, "DeepSpeed is not used", "engine.deepspeed")
        # If the spec itself rules DeepSpeed out, that is R207.
        if asked.value is not False and strategy.value not in ("ddp", "fsdp2"):
            yield Diagnostic(
                "R307",
                "`offload_optimizer` has no effect: DeepSpeed is not used",
                offload.span,
                severity=Severity.WARNING,
            )
    else:
        context.keep("training.offload_optimizer", under="engine.offload_optimizer")
