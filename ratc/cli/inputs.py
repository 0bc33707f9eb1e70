"""What commands that take a spec have in common: its options, reading the files, and showing what was found."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

from ratc import compiler, files, layers, resources
from ratc.cli.console import say
from ratc.compiler import File, Inputs
from ratc.diagnostics import Diagnostic, Severity, has_errors
from ratc.document import Document
from ratc.plan import Plan, Values
from ratc.render import text

if TYPE_CHECKING:
    from ratc.facts import Cluster, Machine
    from ratc.memory.decision import Decision

#: How findings can be told; each but text is a file of `ratc.render.findings`.
FORMS = ("text", "json", "github", "sarif", "markdown")
#: Plan values that no prediction depends on.
_NOT_PREDICTED = frozenset(
    (
        "seed",
        "description",
        "experiment_name",
        "output_dir",
        "logging.mlflow_experiment_name",
        "logging.wandb_project",
        "job.name",
        "training.learning_rate",
        "training.weight_decay",
        "training.epochs",
        "training.scheduler",
        "training.warmup_epochs",
    )
)
_FLAGS = ("debug",)
_METAVARS = {"data-dir": "DIR", "output-dir": "DIR"}


#: Decisions of predictions, with what was said, by what they depend on.
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


def add_spec_arguments(parser: argparse.ArgumentParser, target: bool = True) -> None:
    """The spec, the target, and every way to override a value."""
    parser.add_argument("spec", metavar="SPEC", help="the YAML spec")
    if target:
        parser.add_argument("--target", default="local", metavar="T", help="local (default), slurm or lsf")
    parser.add_argument("--facts", metavar="FILE", help="hardware facts, instead of this machine's")
    add_trust_argument(parser)
    group = parser.add_argument_group("values laid over the spec")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="assignments",
        help="any value, by its path",
    )
    for name in layers.SHORT_NAMES:
        if name in _FLAGS:
            group.add_argument(
                f"--{name}",
                action="store_const",
                const="true",
                dest=f"short_{name}",
                help=layers.SHORT_NAMES[name],
            )
        else:
            group.add_argument(
                f"--{name}",
                metavar=_METAVARS.get(name, "V"),
                dest=f"short_{name}",
                help=layers.SHORT_NAMES[name],
            )


def load(args: argparse.Namespace, target: str, alone: bool = False, given: File | None = None) -> Loaded:
    """Read the spec and what lies over it, and analyse it. A file that cannot be read is R001.

    ``alone`` leaves the environment's ``RAT_*`` variables out; ``given`` stands in for the spec's file.
    """
    schema = resources.schema("experiment")
    overrides, found = layers.from_environment({} if alone else os.environ, schema)
    overrides += [
        layers.from_option(name, value)
        for name in layers.SHORT_NAMES
        if (value := getattr(args, f"short_{name}")) is not None
    ]
    overrides += [layers.from_assignment(assignment) for assignment in args.assignments]
    folder, name = os.path.split(args.spec)
    spec, problem = (given, None) if given else read(args.spec, named=True)
    if spec is None:
        return Loaded(Inputs(File(args.spec, b"")), None, (*found, problem) if problem else tuple(found))
    overlays = []
    for overlay in layers.overlay_names(name, target):
        path = os.path.join(folder, overlay)
        if os.path.exists(path):
            file, problem = read(path, layer=overlay)
            if file is None:
                return Loaded(Inputs(spec), None, (*found, problem) if problem else tuple(found))
            overlays.append(file)
    try:
        shell_folder = os.path.relpath(os.getcwd(), folder or ".")
    except FileNotFoundError:
        gone = Diagnostic("R001", "the folder that the shell is in is gone", helps=("change into another one",))
        return Loaded(Inputs(spec), None, (*found, gone))
    inputs = Inputs(spec, overlays, overrides, shell_folder)
    document, diagnostics = compiler.layered(inputs)
    found += diagnostics
    if document is None or has_errors(diagnostics):
        return Loaded(inputs, None, tuple(found))
    settings, diagnostics = compiler.check(document)
    return Loaded(inputs, settings, (*found, *diagnostics), document)


def resolve(
    args: argparse.Namespace, settings: Values, target: str, predict: bool = True
) -> tuple[Plan | None, tuple[Diagnostic, ...], File | None]:
    """Gather the facts and resolve, with what a memory prediction decides. Returns the facts file too, where one was
    named.
    """
    return decided(args, settings, target, predict)[:3]


def decided(
    args: argparse.Namespace, settings: Values, target: str, predict: bool = True, known: Known | None = None
) -> tuple[Plan | None, tuple[Diagnostic, ...], File | None, Decision | None]:
    """As `resolve`, with the prediction's decision too, where there was one. ``known`` keeps it for later calls."""
    gathered, found = gather(args, settings, target)
    if gathered is None:
        return None, found, None, None
    plan, more, decision = decide(args, settings, gathered, predict, known)
    return plan, (*found, *more), gathered.file, decision


@dataclass(frozen=True, slots=True)
class Gathered:
    """What was read of the hardware: a facts file, a cluster's facts, or this machine."""

    values: Values | None = None
    machine: Machine | None = None
    file: File | None = None
    cluster: Cluster | None = None
    cluster_file: File | None = None
    target: str = "local"
    rate: Values | None = None
    rate_file: File | None = None

    def plan(self, settings: Values, decision: Decision | None = None) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
        """Resolve settings on this hardware. Codes: R3xx."""
        hardware, found = self.settled(settings)
        if hardware is None:
            return None, found
        plan, more = compiler.plan_on(settings, hardware, decision)
        return plan, (*found, *more)

    def settled(self, settings: Values) -> tuple[Values | None, tuple[Diagnostic, ...]]:
        """The hardware facts for a spec's settings, and the learning rate that was measured. Codes: R3xx."""
        from ratc import facts

        hardware, found = facts.hardware(settings, self.values, self.machine, self.cluster, self.target)
        if hardware is None or self.rate is None:
            return hardware, found
        return Values({**hardware, **{f"rate.{path}": self.rate[path] for path in self.rate}}), found


def gather(args: argparse.Namespace, settings: Values, target: str) -> tuple[Gathered | None, tuple[Diagnostic, ...]]:
    """Read the facts that the spec's settings leave open."""
    from ratc import facts

    file = values = None
    if args.facts:
        file, problem = read(args.facts, named=True)
        if file is None:
            return None, (problem,) if problem else ()
        values, found = compiler.read_facts(file)
        if values is None:
            return None, found
    machine = None
    if target == "local" and values is None and facts.needs_machine(settings):
        from ratc.probe.local import machine as probe

        machine = probe(os.environ)
    rate, rate_file, found = _rate(args, settings)
    if has_errors(found):
        return None, found
    if target == "local":
        return Gathered(values, machine, file, rate=rate, rate_file=rate_file), ()
    from ratc.cli import clusters

    cluster_file, cluster, found = clusters.load(settings, os.path.dirname(args.spec) or ".")
    if has_errors(found):
        return None, found
    return Gathered(values, machine, file, cluster, cluster_file, target, rate, rate_file), found


def _rate(args: argparse.Namespace, settings: Values) -> tuple[Values | None, File | None, tuple[Diagnostic, ...]]:
    """What was measured beside the spec, where the spec wants it and it is there. Codes: R00x, R1xx."""
    from ratc import rates

    folder, name = os.path.split(args.spec)
    path = os.path.join(folder, rates.file_name(name))
    wanted = settings["training.learning_rate"].value == "auto" or _tried(settings)
    if not wanted or not os.path.exists(path):
        return None, None, ()
    file, problem = read(path)
    if file is None:
        return None, None, (problem,) if problem else ()
    values, found = compiler.read_rate(file)
    return values, file, found


def _tried(settings: Values) -> bool:
    """Whether a sweep or a study of the spec has `auto` among its values."""
    return any("auto" in str(settings[path].value) for path in settings if path.startswith(("sweep", "tuning.search")))


def decide(
    args: argparse.Namespace, settings: Values, gathered: Gathered, predicts: bool = True, known: Known | None = None
) -> tuple[Plan | None, tuple[Diagnostic, ...], Decision | None]:
    """Resolve with what was gathered, and with what a memory prediction decides."""
    plan, found = gathered.plan(settings)
    if plan is None or not predicts or getattr(args, "no_predict", False) or not is_open(plan):
        return plan, found, None
    known = {} if known is None else known
    key = predicted_from(plan, args)
    if key not in known:
        known[key] = predict(args, plan)
    decision, said = known[key]
    if decision is not None:
        plan, found = gathered.plan(settings, decision)
    return (None if has_errors(said) else plan), (*found, *said), decision


def predict(args: argparse.Namespace, plan: Plan) -> tuple[Decision | None, tuple[Diagnostic, ...]]:
    """What memory, measured or predicted, decides for a plan whose micro-batch is open."""
    # Imported here: only an open micro-batch needs the search.
    from ratc.cli import measuring

    return measuring.decide(plan, os.path.dirname(args.spec) or ".")


def predicted_from(plan: Plan, args: argparse.Namespace) -> tuple[object, ...]:
    """What a prediction depends on: plans of one folder that are alike in this share it."""
    values = plan.values
    folder = os.path.dirname(args.spec)
    return folder, *((path, repr(values[path].value)) for path in values if path not in _NOT_PREDICTED)


def is_open(plan: Plan) -> bool:
    """Whether the micro-batch is left to ratc, on a card whose kernels are known."""
    return _is_known_card(plan) and leaves_open(plan.settings)


def is_given(plan: Plan) -> bool:
    """Whether the spec gives the micro-batch, on a card whose kernels and memory are known: it can be checked."""
    return _is_known_card(plan) and not leaves_open(plan.settings) and bool(plan.values["hardware.memory_bytes"].value)


def leaves_open(settings: Values) -> bool:
    """Whether a spec's settings leave the micro-batch to ratc."""
    given = ("training.batch_size", "training.gradient_accumulation_steps")
    return all(settings[path].value is None for path in given)


def _is_known_card(plan: Plan) -> bool:
    values = plan.values
    return values["hardware.device"].value == "cuda" and bool(values["hardware.compute_capability"].value)


def read(path: str, layer: str = "spec", named: bool = False) -> tuple[File | None, Diagnostic | None]:
    """The bytes of a file, at most a little over what the parser takes. Code: R001.

    With ``named``, for names of the command line, it may be a pipe.
    """
    from ratc.document import MAX_BYTES

    if not path.isascii() and path != path.encode("utf-8", "replace").decode():
        return None, Diagnostic("R001", f"the name `{path}` is not UTF-8", helps=("rename it",))
    try:
        with files.open_regular(path, named) as handle:
            data = handle.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                size = os.fstat(handle.fileno()).st_size / 2**20
                has = f"{size:.1f} MiB" if size >= 1.05 else "more than 1 MiB"
                return None, Diagnostic("R006", f"`{path}` is too large for a spec: {has}, the limit is 1 MiB")
            return File(path, data, layer), None
    except IsADirectoryError:
        names = (
            sorted(name for name in os.listdir(path) if name.endswith((".yaml", ".yml")))[:3]
            if os.access(path, os.R_OK)
            else []
        )
        helps = (
            (f"name the file: {', '.join(os.path.join(path, name) for name in names)}",)
            if names
            else ("name a YAML file in it",)
        )
        return None, Diagnostic("R001", f"`{path}` is a folder", helps=helps)
    except FileNotFoundError:
        from ratc.diagnostics import did_you_mean

        folder, name = os.path.split(path)
        near = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        return None, Diagnostic("R001", f"there is no file `{path}`", helps=did_you_mean(name, near))
    except (OSError, ValueError) as error:
        return None, Diagnostic("R001", f"cannot read `{path}`: {getattr(error, 'strerror', None) or error}")


def add_predict_argument(parser: argparse.ArgumentParser) -> None:
    """``--no-predict``: for commands that compile in order to run what comes out."""
    parser.add_argument(
        "--no-predict",
        action="store_true",
        help="trace no model: a given micro-batch is not checked against the card, an open one gets a default",
    )


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """``--trust``: for commands that may run code of a spec."""
    parser.add_argument(
        "--trust", action="store_true", help="run code that the spec names, for this command; see `ratc trust --help`"
    )


def add_format_argument(parser: argparse.ArgumentParser) -> None:
    """``--format``: how findings are told."""
    parser.add_argument(
        "--format",
        choices=FORMS,
        default="text",
        help="of what is found: text (default) on standard error, or another on standard output where that is free",
    )


def show(diagnostics: Iterable[Diagnostic], command: str, form: str = "text", taken: bool = False) -> bool:
    """Print what was found: text on standard error, any other form on standard output, even where nothing was found;
    on standard error too where the other is taken by what the command makes. Returns whether any of it is an error.
    """
    items = sorted(diagnostics, key=_position)
    failed = any(item.severity is Severity.ERROR for item in items)
    if form != "text":
        (sys.stderr if taken else sys.stdout).write(_document(items, command, form))
        return failed
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    sys.stderr.write(text.diagnostics(items, colour))
    if failed:
        code = next(item.code for item in items if item.severity is Severity.ERROR)
        say(f"{command}: failed; `ratc explain {code}` says more")
    return failed


def _document(items: list[Diagnostic], command: str, form: str) -> str:
    module = import_module(f"ratc.render.findings.{form}")
    if form != "sarif":
        return str(module.document(items, command))
    pages = {code: resources.read("codes", f"{code}.md").decode() for code in {item.code for item in items}}
    return str(module.document(items, command, pages))


def _position(item: Diagnostic) -> tuple[str, int, int]:
    return (item.span.source.name, item.span.line, item.span.column) if item.span else ("", 0, 0)


def known_target(name: str) -> tuple[Diagnostic, ...]:
    """Nothing for a target that can be emitted. Code: R401."""
    from ratc.diagnostics import did_you_mean
    from ratc.targets import TARGETS

    if name in TARGETS:
        return ()
    helps = did_you_mean(name, TARGETS) or (f"use one of {', '.join(TARGETS)}",)
    return (Diagnostic("R401", f"there is no target `{name}`", helps=helps),)
