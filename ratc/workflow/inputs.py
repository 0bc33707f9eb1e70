"""Loads and resolves a spec for every command that takes one: layers, facts and the memory decision."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from ratc import compiler, layers, resources
from ratc.compiler import File, Inputs
from ratc.diagnostics import Diagnostic, has_errors
from ratc.fitting.open_batch import is_predicted, predicted_from
from ratc.plan import Plan, Values
from ratc.workflow import start_weights
from ratc.workflow.read import FOLDER_GONE, read
from ratc.workflow.request import CompileRequest
from ratc.yaml.parse import Document

if TYPE_CHECKING:
    from ratc.facts import Cluster, Machine
    from ratc.memory.decision import Decision


#: Decisions of predictions with their diagnostics, by the key of `predicted_from`.
Known: TypeAlias = "dict[tuple[object, ...], tuple[Decision | None, tuple[Diagnostic, ...]]]"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A spec that was read and checked, with the files it was read from."""

    inputs: Inputs
    settings: Values | None
    diagnostics: tuple[Diagnostic, ...]
    document: Document | None = None

    @property
    def folder(self) -> str:
        """The spec's folder, as the user wrote it."""
        return os.path.dirname(self.inputs.spec.name) or "."


def load(request: CompileRequest) -> Loaded:
    """Read the spec and the layers over it, and analyse it. A file that cannot be read is R001."""
    schema = resources.schema("experiment")
    overrides, found = layers.from_environment(request.variables, schema)
    overrides += [layers.from_option(name, request.short[name]) for name in layers.SHORT_NAMES if name in request.short]
    overrides += [layers.from_assignment(assignment) for assignment in request.sets]
    folder, name = os.path.split(request.spec)
    spec, problem = _spec(request)
    if spec is None:
        return Loaded(Inputs(File(request.spec, b"")), None, (*found, problem) if problem else tuple(found))
    overlays = []
    for overlay in layers.overlay_names(name, request.target):
        path = os.path.join(folder, overlay)
        if os.path.exists(path):
            file, problem = read(path, layer=overlay)
            if file is None:
                return Loaded(Inputs(spec), None, (*found, problem) if problem else tuple(found))
            overlays.append(file)
    try:
        shell_folder = os.path.relpath(os.getcwd(), folder or ".")
    except FileNotFoundError:
        return Loaded(Inputs(spec), None, (*found, FOLDER_GONE))
    inputs = Inputs(spec, overlays, overrides, shell_folder)
    document, diagnostics = compiler.layered(inputs)
    found += diagnostics
    if document is None or has_errors(diagnostics):
        return Loaded(inputs, None, tuple(found))
    settings, diagnostics = compiler.check(document)
    return Loaded(inputs, settings, (*found, *diagnostics), document)


def _spec(request: CompileRequest) -> tuple[File | None, Diagnostic | None]:
    if request.text is not None:
        return File(request.spec, request.text), None
    return read(request.spec, named=True)


def resolve(
    request: CompileRequest, settings: Values, predict: bool = True
) -> tuple[Plan | None, tuple[Diagnostic, ...], File | None]:
    """Gather the facts and resolve, with the decision of a memory prediction. Returns the facts file too, if one was
    named.
    """
    return decided(request, settings, predict)[:3]


def decided(
    request: CompileRequest, settings: Values, predict: bool = True, known: Known | None = None
) -> tuple[Plan | None, tuple[Diagnostic, ...], File | None, Decision | None]:
    """Resolve as `resolve` does, and return the prediction's decision too. ``known`` keeps it for later calls."""
    gathered, found = gather(request, settings)
    if gathered is None:
        return None, found, None, None
    plan, more, decision = decide(request, settings, gathered, predict, known)
    return plan, (*found, *more), gathered.file, decision


@dataclass(frozen=True, slots=True)
class Gathered:
    """The facts of the hardware: from a facts file, a cluster's facts, or this machine."""

    values: Values | None = None
    machine: Machine | None = None
    file: File | None = None
    cluster: Cluster | None = None
    cluster_file: File | None = None
    target: str = "local"
    rate: Values | None = None
    rate_file: File | None = None
    weights: Values | None = None

    def plan(self, settings: Values, decision: Decision | None = None) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
        """Resolve settings on this hardware. Codes: R3xx."""
        hardware, found = self.settled(settings)
        if hardware is None:
            return None, found
        plan, more = compiler.plan_on(settings, hardware, decision)
        return plan, (*found, *more)

    def settled(self, settings: Values) -> tuple[Values | None, tuple[Diagnostic, ...]]:
        """The hardware facts for a spec's settings, the learning rate that was measured, and the digests of weights.
        Codes: R3xx.
        """
        from ratc import facts

        hardware, found = facts.hardware(settings, self.values, self.machine, self.cluster, self.target)
        if hardware is None:
            return None, found
        rate = {f"rate.{path}": self.rate[path] for path in self.rate or ()} if self.rate else {}
        return Values({**hardware, **rate, **(self.weights or {})}), found


def gather(request: CompileRequest, settings: Values) -> tuple[Gathered | None, tuple[Diagnostic, ...]]:
    """Read the facts that the spec's settings leave open."""
    from ratc import facts

    file = values = None
    target = request.target
    if request.facts:
        file, problem = read(request.facts, named=True)
        if file is None:
            return None, (problem,) if problem else ()
        values, found = compiler.read_facts(file)
        if values is None:
            return None, found
    machine = None
    if target == "local" and values is None and facts.needs_machine(settings):
        from ratc.probe.local import machine as probe

        machine = probe(os.environ)
    rate, rate_file, found = _rate(request, settings)
    if has_errors(found):
        return None, found
    weights = start_weights.digests(settings, request.folder)
    if target == "local":
        return Gathered(values, machine, file, rate=rate, rate_file=rate_file, weights=weights), ()
    from ratc.workflow import find_cluster

    cluster_file, cluster, found = find_cluster.load(settings, request.folder)
    if has_errors(found):
        return None, found
    return Gathered(values, machine, file, cluster, cluster_file, target, rate, rate_file, weights), found


def _rate(request: CompileRequest, settings: Values) -> tuple[Values | None, File | None, tuple[Diagnostic, ...]]:
    """Read the measured learning rate beside the spec, if the spec wants it and it is there. Codes: R00x, R1xx."""
    from ratc import rates

    folder, name = os.path.split(request.spec)
    path = os.path.join(folder, rates.file_name(name))
    wanted = settings["training.learning_rate"].value == "auto" or _varies_auto(settings)
    if not wanted or not os.path.exists(path):
        return None, None, ()
    file, problem = read(path)
    if file is None:
        return None, None, (problem,) if problem else ()
    values, found = compiler.read_rate(file)
    return values, file, found


def _varies_auto(settings: Values) -> bool:
    """Whether a sweep or a study of the spec has `auto` among its values."""
    return any("auto" in str(settings[path].value) for path in settings if path.startswith(("sweep", "tuning.search")))


def decide(
    request: CompileRequest, settings: Values, gathered: Gathered, predicts: bool = True, known: Known | None = None
) -> tuple[Plan | None, tuple[Diagnostic, ...], Decision | None]:
    """Resolve with the gathered facts and with the decision of a memory prediction."""
    return with_memory(request, partial(gathered.plan, settings), predicts, {} if known is None else known)


def with_memory(
    request: CompileRequest,
    resolve: Callable[[Decision | None], tuple[Plan | None, tuple[Diagnostic, ...]]],
    predicts: bool,
    known: Known,
) -> tuple[Plan | None, tuple[Diagnostic, ...], Decision | None]:
    """Call ``resolve`` without a decision and, if values rest on a prediction, again with that of a prediction.

    The diagnostics of the prediction belong to every plan that rests on it, also if ``known`` had it already.
    """
    plan, found = resolve(None)
    if plan is None or not predicts or not request.predict or not is_predicted(plan.traced):
        return plan, found, None
    key = predicted_from(plan.traced, request.folder)
    if key not in known:
        known[key] = predict(request, plan.traced)
    decision, said = known[key]
    if decision is not None:
        plan, found = resolve(decision)
    return (None if has_errors(said) else plan), (*found, *said), decision


def predict(request: CompileRequest, plan: Plan) -> tuple[Decision | None, tuple[Diagnostic, ...]]:
    """Decide the micro-batch of a plan that leaves it open, from measured or predicted memory."""
    # Imported here: only an open micro-batch needs the search.
    from ratc.fitting import from_measurement

    return from_measurement.decide(plan, request.folder)


def known_target(name: str) -> tuple[Diagnostic, ...]:
    """Return a finding for an unknown target. Code: R401."""
    from ratc.diagnostics import did_you_mean
    from ratc.targets import TARGETS

    if name in TARGETS:
        return ()
    helps = did_you_mean(name, TARGETS) or (f"use one of {', '.join(TARGETS)}",)
    return (Diagnostic("R401", f"there is no target `{name}`", helps=helps),)
