"""The time of a plan's step: that of an earlier run, or measured for the facts file, or else predicted."""

from __future__ import annotations

import math
from dataclasses import replace

from ratc import facts
from ratc.diagnostics import Diagnostic, Severity
from ratc.fitting import cluster_facts, earlier_run, from_measurement
from ratc.fitting.plan_step import device_of, own_searcher, strategy_of
from ratc.fitting.strategies import sent, sizes_of
from ratc.fitting.traces import Library, NoTrace
from ratc.memory import measured
from ratc.memory.measured import Measurement
from ratc.memory.request import variant
from ratc.memory.trace import Trace
from ratc.memory.zero import Strategy
from ratc.plan import Plan
from ratc.program import is_program
from ratc.timing import run
from ratc.timing.roofline import FITTED, Rates, StepTime, step_time
from ratc.timing.run import Prediction, Run
from ratc.units import counted

#: Bytes that AdamW moves for each weight of its partition, in fp32: it reads weight, gradient and two moments, and
#: writes all but the gradient.
ADAMW_BYTES = 28


def predict_step(plan: Plan, folder: str, earlier: bool = True) -> tuple[Prediction | None, str]:
    """Return the time of the plan's optimizer step and ""; or None and the reason. ``folder`` is the spec's.

    With ``earlier`` the time in the last run of the plan's output folder comes before a measurement and a prediction.
    """
    values = plan.values
    if is_program(plan.settings):
        return None, "it is a program of its own"
    ran = earlier_run.measured(plan, folder) if earlier else None
    if ran is not None:
        return ran, ""
    if values["hardware.device"].value != "cuda":
        return None, "it trains on the CPU"
    card = facts.find_card(str(values["hardware.card"].value))
    if not isinstance(card, facts.Card) or card.peaks is None:
        return None, "the peaks of its card are not known"
    if not card.compute_capability:
        return None, "only the kernels of NVIDIA's cards are known"
    world, accumulation = (
        values.get_as(int, key) for key in ("parallel.world_size", "training.gradient_accumulation_steps")
    )
    micro = values.get_as(int, "training.micro_batch_size")
    samples = micro * accumulation * world
    found = _measurement(plan, folder)
    if found is not None:
        seconds = accumulation * _micro_seconds(found, micro)
        return run.measured(seconds, samples, world, found.source), ""
    strategy, device = strategy_of(plan), device_of(plan)
    try:
        searcher = own_searcher(plan, Library(plan, folder, None))
        trace = searcher.predictor(variant(plan, device.kernels), strategy, micro).trace
    except NoTrace as stopped:
        return None, "; ".join(item.message for item in stopped.found)
    return of_trace(plan, card, trace, strategy, micro, accumulation)


def of_trace(
    plan: Plan, card: facts.Card, trace: Trace, strategy: Strategy, micro: int, accumulation: int
) -> tuple[Prediction | None, str]:
    """Return the time of a traced step of the plan's model on a card and ""; or None and the reason.

    A step has ``accumulation`` micro-batches of ``micro`` samples on each process.
    """
    values = plan.values
    if values["training.compile"].value:
        return None, "the kernels of compiled models are not counted"
    if strategy.offload_optimizer:
        return None, "the optimizer's step on the CPU is not counted"
    if card.peaks is None:
        return None, "the peaks of its card are not known"
    rates = Rates(dict(card.peaks.operations), card.peaks.bandwidth)
    step = step_time(trace, micro, accumulation, rates)
    if step is None:
        return None, "its kernels differ between two micro-batches"
    world = strategy.world_size
    if strategy.engine == "deepspeed":
        step = _with_optimizer(step, trace, strategy.zero_stage, world, rates)
    bytes_sent = sent(strategy, sizes_of(trace), accumulation, values.get_as(int, "parallel.nodes"))
    return run.predicted(step, card.id, micro * accumulation * world, world, bytes_sent, cluster_facts.links(plan)), ""


def _measurement(plan: Plan, folder: str) -> Measurement | None:
    """The facts' measurement of the plan's own step, if there is one."""
    given = plan.facts.get("measured")
    entries = [measured.read(entry) for entry in given.value] if given is not None and given.value else []
    if not entries:
        return None
    wanted = from_measurement.conditions(plan, variant(plan, device_of(plan).kernels), folder)
    found = from_measurement.matching(entries, replace(wanted, allocator=str(plan.values["training.allocator"].value)))
    return found if found and all(point.samples_per_second > 0 for point in found.points) else None


def _micro_seconds(found: Measurement, micro_batch: int) -> float:
    """Return the seconds of a micro-batch by a line through the measured ones. If only one was measured, they are in
    proportion to its size; for a smaller micro-batch they are at least that.
    """
    times = [(point.micro_batch, point.micro_batch / point.samples_per_second) for point in found.points]
    (small, first), (large, last) = times[0], times[-1]
    if small == large:
        return first * micro_batch / small
    line = first + max(0.0, last - first) * (micro_batch - small) / (large - small)
    return max(line, min(first, first * micro_batch / small))


def _with_optimizer(step: StepTime, trace: Trace, stage: int, world: int, rates: Rates) -> StepTime:
    """Add the optimizer's step, which a trace for DeepSpeed does not have: its partition's bytes."""
    moved = ADAMW_BYTES * trace.trainable / (world if stage else 1)
    return replace(step, seconds=step.seconds + moved / (rates.bandwidth * FITTED.memory))


def training(plan: Plan, step: Prediction, samples: int | None) -> Run | None:
    """Return the whole training of a plan with ``samples`` in an epoch; None if its number of steps is not known.

    A smaller last batch counts as a whole step.
    """
    most = plan.values["training.max_steps_per_epoch"].value
    whole = None
    if samples is not None:
        kept = plan.values["training.last_batch"].value == "keep"
        whole = -(-samples // step.samples) if kept else samples // step.samples
    steps = min((count for count in (most, whole) if count is not None), default=None)
    return None if not steps else Run(step, steps, plan.values.get_as(int, "training.epochs"))


def with_loading(plan: Plan, step: Prediction, loader_rate: float | None) -> Prediction:
    """Return the step with its waits for samples. ``loader_rate`` are the samples a second of one loader process.

    The step is unchanged if the rate is not given, or if the step is that of a run, whose time includes the waits.
    """
    if loader_rate is None or step.waits is not None:
        return step
    return step.with_loading(loader_rate, plan.values.get_as(int, "data.num_workers"))


def lines(plan: Plan, step: Prediction, samples: int | None) -> list[str]:
    """Return lines with the time of a plan's step and, if the ``samples`` of an epoch are known, the time and cost of
    its training.
    """
    told = [step.sentence()]
    whole = training(plan, step, samples)
    return told if whole is None else [*told, *whole.lines(cluster_facts.prices(plan))]


def parts(step: Prediction) -> list[str]:
    """Return a line for each class of a step's kernels with its time on the card, longest first."""
    words = {"product": "matrix products", "memory": "elementwise kernels, norms, copies and the optimizer"}
    words |= {"convolution": "convolutions", "attention": "fused attention", "recurrent": "recurrent layers"}
    found = sorted(step.by_class.items(), key=lambda one: -one[1])
    return [f"{run.span_text(seconds):>11}  {words[kind]}" for kind, seconds in found]


def too_long(plan: Plan, step: Prediction, samples: int | None) -> tuple[Diagnostic, ...]:
    """Return a warning if the walltime of the plan's job is too short for all steps of its training. Code: R354.

    ``samples`` are those of an epoch; None if they are not known.
    """
    whole = training(plan, step, samples)
    walltime = plan.values.get("job.walltime_seconds")
    if whole is None or walltime is None or not walltime.value:
        return ()
    again = whole.restarts(int(walltime.value), plan.values.get_as(int, "job.stop_before_seconds"))
    if not again:
        return ()
    needed, given = run.span_text(whole.seconds), run.span_text(float(walltime.value))
    requeue, most = plan.values.get("job.requeue"), plan.values.get("job.max_restarts")
    unfinished = bool(requeue and requeue.value and most and most.value < again)
    then = f"it is requeued {'once' if again == 1 else f'{again} times'}"
    if requeue is not None and not requeue.value:
        then = f"it needs {counted(again + 1, 'job')}, one after the other"
    if unfinished and most:
        then = f"it needs {counted(again, 'restart')}, and `max_restarts` is {most.value}"
    message = f"the training is {step.how} to take {needed}, and the job's walltime is {given}: {then}"
    steps, epochs = counted(whole.steps_per_epoch, "step"), counted(whole.epochs, "epoch")
    note = f"{steps} an epoch of {run.span_text(step.seconds)} each, {epochs}"
    longest = plan.facts.get("cluster.max_walltime_seconds")
    allowed = float(longest.value) if longest and longest.value is not None else math.inf
    helps = ["ask for a longer `resources.walltime`"]
    if walltime.value < allowed <= whole.seconds:
        helps = [f"ask for a longer `resources.walltime`: a job there may run for {run.span_text(allowed)}"]
    elif allowed <= whole.seconds:
        helps = ["no job there may run that long"]
    if unfinished:
        helps.append("set a larger `checkpoint.max_restarts`, or submit the job again when it has ended")
    if requeue is not None and not requeue.value:
        helps.append("jobs are not requeued here: submit the job again each time")
    span = plan.settings["resources.walltime"].span
    return (Diagnostic("R354", message, span, (note,), tuple(helps), Severity.WARNING),)
