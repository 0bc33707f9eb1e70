"""Finds the GPU memory of one step of a spec: predicted, or measured on this machine and kept in a facts file."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from datetime import date
from typing import Any

from ratc import facts, files, program
from ratc.catalog import alloc_conf
from ratc.console import say, would
from ratc.diagnostics import Diagnostic
from ratc.fitting import from_measurement
from ratc.fitting.plan_step import device_of, own_searcher, strategy_of, variants
from ratc.fitting.predict import decide
from ratc.fitting.traces import Library, NoTrace
from ratc.markup import lines
from ratc.memory.choose import Variant
from ratc.memory.estimate import Estimate
from ratc.memory.measured import Measurement, Point
from ratc.memory.request import request, variant
from ratc.plan import Plan
from ratc.tracing import child_process, fetch
from ratc.tracing.child_process import Work
from ratc.units import size_text
from ratc.workflow import edit_facts, inputs, require_trust
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.inputs import Loaded
from ratc.workflow.request import CompileRequest

#: Seconds for one micro-batch size: six optimizer steps, torch's import, perhaps a compiler.
LIMITS = child_process.Limits(wall_s=900.0)
#: The sizes measured if none are given; the smaller pair for a rank's share below four.
SIZES, SMALL_SIZES = (2, 4), (1, 2)


def profile(
    asked: CompileRequest,
    measure: bool,
    facts_file: str | None,
    sizes: tuple[int, int] | None,
    dry_run: bool,
    printer: FindingsPrinter,
) -> int:
    """Print a step's memory, predicted or, with ``measure``, measured here at two ``sizes``; returns the exit status.

    Codes: R511, R515, R316, R403, and those of reading and resolving a spec.
    """
    loaded = inputs.load(asked)
    if loaded.settings is None:
        printer.print(loaded.diagnostics)
        return 1
    if refused := program.unpredictable(loaded.settings):
        printer.print((*loaded.diagnostics, *refused))
        return 1
    plan, found, _ = inputs.resolve(asked, loaded.settings, predict=False)
    if plan is None:
        printer.print((*loaded.diagnostics, *found))
        return 1
    if measure:
        return _measure(plan.traced, loaded, facts_file, sizes, dry_run, printer)
    plan, found, _, decision = inputs.decided(asked, loaded.settings)
    printer.print((*loaded.diagnostics, *found))
    if plan is None:
        return 1
    if decision:
        estimate, source = decision.choice.estimate, decision.measured or "predicted"
    else:
        prediction, problems = _predict(plan.traced, loaded.folder)
        if prediction is None:
            printer.print(problems)
            return 1
        estimate, source = prediction, "predicted"
    print(lines(_table(plan, estimate, source)), end="")
    print("`--measure` runs the step on this machine and needs its GPU.", file=sys.stderr)
    return 0


def _predict(plan: Plan, folder: str) -> tuple[Estimate | None, tuple[Diagnostic, ...]]:
    """The prediction for the plan's own micro-batch. Codes: R315, R316, R515."""
    if plan.values["hardware.device"].value != "cuda" or not plan.values["hardware.compute_capability"].value:
        helps = ("name a card: `--gpu h100 --num-gpus 1`, or `--facts`",)
        return None, (
            Diagnostic("R515", "the step does not run on an NVIDIA card, so its memory is not predicted", helps=helps),
        )
    device, strategy = device_of(plan), strategy_of(plan)
    searcher = own_searcher(plan, Library(plan, folder, plan.settings["model.name"].span))
    micro = plan.values.get_as(int, "training.micro_batch_size")
    try:
        return searcher.estimate(variant(plan, device.kernels), strategy, device, micro), ()
    except NoTrace as stopped:
        return None, stopped.found


def _table(plan: Plan, found: Estimate, source: str) -> str:
    values = plan.values
    accumulation, world = values["training.gradient_accumulation_steps"].value, values["parallel.world_size"].value
    precision = values["training.precision"].value
    lines = [
        f"{found.device.name}, {precision}, micro-batch {found.micro_batch} x {accumulation} accumulation steps"
        f" x {world} GPU{'s' if world > 1 else ''}; {source}:",
        f"{_gib(found.peak_allocated_bytes)}  allocated at the peak",
        f"{_gib(found.peak_reserved_bytes)}  reserved by the allocator, of {_gib(found.cap_bytes).strip()} allowed",
        f"{_gib(found.predicted_bytes)}  in use on the card, of {_gib(found.device.memory_bytes).strip()}",
    ]
    if not found.fits:
        lines.append("This does not fit: `ratc fit SPEC` shows what would fit.")
    return "".join(f"{line}\n" for line in lines)


def _measure(
    plan: Plan,
    loaded: Loaded,
    facts_file: str | None,
    sizes: tuple[int, int] | None,
    dry_run: bool,
    printer: FindingsPrinter,
) -> int:
    machine, problem = _machine(plan)
    if problem or machine is None:
        printer.print((problem,) if problem else ())
        return 1
    if untrusted := require_trust.refused(loaded):
        printer.print(untrusted)
        return 1
    if dry_run:
        small, large = _sizes(plan, sizes)
        would("run", f"a training step at the micro-batches {small} and {large} on this machine's GPU")
        would("write", *([facts_file] if facts_file else []))
        return 0
    folder = loaded.folder
    allowed = variants(plan, device_of(plan))
    used = allowed[0] if len(allowed) == 1 else _chosen(plan, allowed, folder)
    measurement, problem = _points(sizes, plan, used, folder)
    if measurement is None:
        printer.print((problem,) if problem else ())
        return 1
    print(lines(_measured_table(measurement)), end="")
    if facts_file:
        problem = edit_facts.add(facts_file, measurement, machine)
        if problem:
            printer.print((problem,))
            return 1
        say(f"written: {facts_file}")
    return 0


def _machine(plan: Plan) -> tuple[facts.Machine | None, Diagnostic | None]:
    """This machine, if it has the plan's card. Code: R515."""
    from ratc.probe.local import machine as probe

    machine = probe(os.environ)
    if not machine.gpus or machine.card is None:
        here = "run this on a machine with the card, for example in an interactive job"
        helps = (here, "`ratc fit SPEC` predicts without a GPU")
        return None, Diagnostic("R515", "there is no GPU here to measure on", helps=helps)
    planned = plan.values["hardware.card"].value
    if machine.card.id != planned:
        has = f"this machine has {machine.card.name}, the step is planned for {planned or 'the CPU'}"
        way = f"measure for this card: `--set resources.gpu={machine.card.id} --num-gpus 1`"
        return None, Diagnostic("R515", has, plan.settings["resources.gpu"].span, helps=(way,))
    if plan.values["engine.deepspeed"].value:
        message = "a step with DeepSpeed on one GPU differs from a step on several GPUs"
        way = "measure it without DeepSpeed: `--set training.deepspeed=false --num-gpus 1`"
        return None, Diagnostic("R515", message, plan.settings["training.deepspeed"].span, helps=(way,))
    return machine, None


def _chosen(plan: Plan, allowed: list[Variant], folder: str) -> Variant:
    """Return the attention and checkpointing that compiling would choose among the allowed ones."""
    decision, _ = decide(plan, folder)
    if decision is None:
        return allowed[-1]
    return replace(
        allowed[0],
        attention_memory=decision.attention_memory,
        activation_checkpointing=decision.activation_checkpointing,
    )


def _points(
    sizes: tuple[int, int] | None, plan: Plan, used: Variant, folder: str
) -> tuple[Measurement | None, Diagnostic | None]:
    """Measure two sizes, and smaller ones if memory runs out. Codes: R511, R515, R316."""
    small, large = _sizes(plan, sizes)
    told: dict[int, dict[str, Any]] = {}

    def fits(size: int) -> bool:
        say(f"ratc: measuring {plan.values['model.name'].value} at micro-batch {size} …")
        told[size] = _run(plan, used, size, folder)
        return bool(told[size]["fits"])

    try:
        while not fits(small):
            if small == 1:
                message = "a training step with one sample runs out of memory on this card"
                return None, Diagnostic("R511", message, plan.settings["model.name"].span, (told[1]["error"],))
            small, large = small // 2, small
        if (large in told or not fits(large)) and small > 1:
            fits(small // 2)  # a second point below
    except _Failed as failed:
        return None, failed.found
    good = [told[size] for size in sorted(told) if told[size]["fits"]]
    return _measurement(plan, used, good[-2:], folder), None


def _sizes(plan: Plan, given: tuple[int, int] | None) -> tuple[int, int]:
    """The micro-batch sizes to measure at first."""
    share = plan.values.get_as(int, "training.global_batch_size") // plan.values.get_as(int, "parallel.world_size")
    return given or (SIZES if share >= SIZES[1] else SMALL_SIZES)


def _measurement(plan: Plan, used: Variant, told: list[dict[str, Any]], folder: str) -> Measurement:
    keys = ("micro_batch", "peak_allocated_bytes", "peak_reserved_bytes", "device_used_bytes", "samples_per_second")
    return Measurement(
        str(plan.values["model.name"].value),
        from_measurement.conditions(plan, used, folder),
        tuple(Point(**{key: one[key] for key in keys}) for one in told),
        max(one["outside_bytes"] for one in told),
        told[-1]["device_total_bytes"],
        told[-1]["gradient_bytes"],
        told[-1]["torch"],
        told[-1]["driver"],
        date.today().isoformat(),
    )


class _Failed(Exception):
    """The runtime could not measure; ``found`` says why."""

    def __init__(self, found: Diagnostic) -> None:
        self.found = found


def _run(plan: Plan, used: Variant, size: int, folder: str) -> dict[str, Any]:
    """Return the runtime's measurement at a size, with accumulation, which is the larger step. Raises _Failed."""
    asked = {**request(plan, used, 2), "micro_batch": size}
    interpreter = os.environ.get("RATC_PYTHON") or sys.executable  # as in run.sh: the Python that trains measures
    allocator = from_measurement.conditions(plan, used, folder).allocator
    given = {name: str(value) for name, value in (plan.settings["environment.variables"].value or {}).items()}
    # As the script does.
    variables = dict.fromkeys(alloc_conf.NAMES, alloc_conf.settings(allocator, given))
    work = Work("ratc_runtime.commands.measure_step", "measuring", "R515", True, interpreter, variables)
    with files.temporary_folder() as place:
        output = os.path.join(place, "measured.json")
        problem = child_process.run(
            work, asked, fetch.runtime_folder(), folder, output, lambda key: plan.settings[key].span, LIMITS
        )
        if problem:
            raise _Failed(problem)
        with open(output, encoding="utf-8") as file:
            told: dict[str, Any] = json.load(file)
            return told


def _measured_table(found: Measurement) -> str:
    kind = found.conditions
    size = " x ".join(str(side) for side in kind.image_size)
    driver = f", driver {found.driver}" if found.driver else ""
    lines = [
        f"{kind.card}, {kind.precision}, {size}; torch {found.torch}{driver}, GiB:",
        "micro-batch  allocated  reserved  device in use  samples/s",
    ]
    for point in found.points:
        sizes = (point.peak_allocated_bytes, point.peak_reserved_bytes, point.device_used_bytes)
        one, two, three = (size_text(size, fine=True).removesuffix(" GiB") for size in sizes)
        lines.append(f"{point.micro_batch:>11}  {one:>9}  {two:>8}  {three:>13}  {point.samples_per_second:>9.1f}")
    return "".join(f"{line}\n" for line in lines)


def _gib(size: int) -> str:
    return f"{size_text(size):>12}"
