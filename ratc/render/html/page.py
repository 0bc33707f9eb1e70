"""The page: templates/report.*.html.j2 filled with the results of the modules beside this one. Pure and repeatable.

Every value is escaped by the template engine. The page's policy names its own style and script by their digests, so the
browser runs nothing else and loads nothing at all.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ratc import __version__, resources, units
from ratc.comparison import sizes, words
from ratc.comparison.model import Comparison, Side
from ratc.diagnostics import Diagnostic, Severity
from ratc.markup import html_text, page
from ratc.plan import Plan
from ratc.render.html import changes, code, memory, values
from ratc.render.timeline import Drawing
from ratc.secrets import excerpt
from ratc.secrets.redact import redact
from ratc.units import counted

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_TIMES = " \N{MULTIPLICATION SIGN} "


@dataclass(frozen=True, slots=True)
class Report:
    """The content of a page about one spec. Texts are for people; sizes are bytes.

    ``unpredicted`` says why there is no ``card_memory``, ``undrawn`` why no ``drawing``, ``no_cards`` why no ``cards``.
    ``points`` are a sweep's, by name. ``files`` are path and text of the compiled files, ``files_note`` a line on them.
    """

    spec: str
    target: str
    plan: Plan
    findings: Sequence[Diagnostic] = ()
    remarks: Sequence[str] = ()
    card_memory: memory.CardMemory | None = None
    unpredicted: str = ""
    drawing: Drawing | None = None
    undrawn: str = ""
    cards: Sequence[memory.CardRow] = ()
    cards_note: str = ""
    no_cards: str = ""
    files: Sequence[tuple[str, str]] = ()
    files_note: str = ""
    points: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tile:
    """One value of the summary; ``anchor`` leads to its row."""

    label: str
    value: str
    detail: str
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A diagnostic in finished words."""

    severity: str
    code: str
    message: str
    place: str
    line: str
    notes: tuple[str, ...]
    helps: tuple[str, ...]


def spec_page(report: Report) -> str:
    """The page about one spec."""
    found = values.sections(report.plan)
    name = redact(str(_value(report.plan, "experiment_name") or report.spec))
    return _render(
        "report.spec.html.j2",
        title=f"{name}: ratc report",
        name=name,
        description=redact(str(_value(report.plan, "description") or "")),
        head=_head(report),
        tiles=tiles(report),
        findings=[_finding(item) for item in report.findings],
        verdict=_verdict(report.findings),
        remarks=[redact(text) for text in report.remarks],
        sections=found,
        count=values.count(found),
        points=[(name, redact(text)) for name, text in report.points.items()],
        sizes=[(str(row.nodes), *(row.new or ())) for row in sizes.rows({}, report.plan.values)],
        columns=("nodes", *sizes.columns({}, report.plan.values)),
        report=report,
        bar=memory.bar(report.card_memory) if report.card_memory else None,
        time=report.card_memory.time if report.card_memory else "",
        cards=memory.by_card(report.cards),
        phases=memory.phases(report.drawing) if report.drawing else [],
        timeline=_timeline(report.drawing),
        files=[code.file(path, text, _size(text)) for path, text in report.files],
    )


def diff_page(comparison: Comparison) -> str:
    """The page about two sides of a comparison."""
    old, new = comparison.old, comparison.new
    names = list(dict.fromkeys(_experiment(side) for side in (old, new)))
    return _render(
        "report.diff.html.j2",
        title=f"{' → '.join(names)}: what changes",
        names=names,
        old=old,
        new=new,
        verdict=words.verdict(comparison),
        trouble=bool({"training", "resume"} & {effect.value for effect in comparison.effects}),
        remarks=[redact(text) for text in comparison.remarks],
        summary=changes.summary(comparison),
        amounts=[(one.what, one.old or "not known", one.new or "not known") for one in comparison.amounts],
        nodes=changes.roots(comparison),
        sizes=list(sizes.lines(comparison.sizes)),
        columns=("nodes", *comparison.columns),
        warnings=[
            (name, [redact(text) for text in side.findings])
            for name, side in (("old", old), ("new", new))
            if side.findings
        ],
    )


def _experiment(side: Side) -> str:
    name = side.values.get("experiment_name")
    return redact(str(name.value)) if name else side.name


def tiles(report: Report) -> list[Tile]:
    """Return the summary. A value that the plan does not have, for example that of a lock alone, has no tile."""
    plan = report.plan
    made = (_batch, _hardware, _precision, _engine, lambda plan: _memory(report), _model, _schedule, _time)
    return [tile for make in made if (tile := make(plan)) is not None]


def _batch(plan: Plan) -> Tile | None:
    keys = ("micro_batch_size", "gradient_accumulation_steps", "global_batch_size")
    micro, steps, total = (_value(plan, f"training.{key}") for key in keys)
    world = _value(plan, "parallel.world_size")
    if None in (micro, steps, total, world):
        return None
    split = f"micro-batch {micro}{_TIMES}{steps} accumulated{_TIMES}{counted(world, 'process')}"
    return Tile("Global batch", str(total), _where(plan) + split, _at("training.micro_batch_size"))


def _hardware(plan: Plan) -> Tile | None:
    world = _value(plan, "parallel.world_size")
    if world is None or _value(plan, "parallel.nodes") is None:
        return None
    most = f"{'at most ' if plan.sizes else ''}"
    if _value(plan, "hardware.device") != "cuda":
        return Tile(
            "Hardware", "CPU", f"{most}{counted(world, 'process')} on {plan.nodes_text}", _at("hardware.device")
        )
    card = _value(plan, "hardware.card") or "an unknown GPU"
    return Tile("Hardware", f"{most}{world}{_TIMES}{card}", f"on {plan.nodes_text}", _at("hardware.card"))


def _precision(plan: Plan) -> Tile | None:
    precision, tf32 = _value(plan, "training.precision"), _value(plan, "training.tf32")
    if precision is None:
        return None
    checkpointed = _value(plan, "training.activation_checkpointing")
    details = ["TF32 for the rest" if precision != "fp32" else "TF32"] if tf32 else []
    blocks = f" of {counted(len(checkpointed), 'block')}" if isinstance(checkpointed, list) else ""
    details += [f"activation checkpointing{blocks}"] if checkpointed else []
    return Tile("Precision", str(precision), ", ".join(details), _at("training.precision"))


def _engine(plan: Plan) -> Tile | None:
    if _value(plan, "engine.deepspeed") is None:
        return None
    by = "started by Accelerate" if _value(plan, "engine.use_accelerate") else "started by torchrun"
    if (launcher := _value(plan, "entrypoint.launcher")) is not None:
        program, anchor = _value(plan, "entrypoint.program"), _at("entrypoint.program")
        return Tile("Program", str(program), f"{_value(plan, 'entrypoint.kind')}, launcher {launcher}", anchor)
    if _value(plan, "engine.deepspeed"):
        offload = ", optimizer offloaded to the host" if _value(plan, "engine.offload_optimizer") else ""
        anchor = _at("engine.zero_stage")
        return Tile("Engine", f"DeepSpeed, ZeRO {_value(plan, 'engine.zero_stage')}", by + offload, anchor)
    if (size := _value(plan, "fsdp2.shard_size")) is not None:
        offload = ", offloaded to the host" if _value(plan, "fsdp2.offload") else ""
        return Tile("Engine", "PyTorch, FSDP2", f"{by}; shards on {size} processes{offload}", _at("fsdp2.shard_size"))
    several = (_value(plan, "parallel.world_size") or 1) > 1
    return Tile("Engine", "PyTorch, DDP" if several else "PyTorch, one process", by, _at("engine.deepspeed"))


def _memory(report: Report) -> Tile:
    card_memory = report.card_memory
    if card_memory is None:
        return Tile("Peak memory", "not predicted", "the reason is under “Memory”", "memory")
    used, has = units.size_text(card_memory.used_bytes), units.size_text(card_memory.card_bytes)
    over = "" if card_memory.fits else "; this does not fit"
    detail = f"{_where(report.plan)}of {has} on {card_memory.card}, {card_memory.how}{over}"
    return Tile("Peak memory", used, detail, "memory")


def _where(plan: Plan) -> str:
    """The words before values of a plan that are those of the most nodes of a range."""
    return f"on {plan.node_counts[-1]} nodes: " if plan.sizes else ""


def _model(plan: Plan) -> Tile | None:
    model, size = _value(plan, "model.name"), _value(plan, "data.image_size")
    if model is None:
        return None
    sides = _TIMES.join(map(str, size)) if isinstance(size, (list, tuple)) else str(size)
    channels = _value(plan, "data.channels")
    holds = "images" if not isinstance(size, (list, tuple)) or len(size) == 2 else "patches"
    detail = f"{holds} of {sides}, {counted(channels, 'channel')}" if size and channels else ""
    return Tile("Model", redact(str(model)), detail, _at("model.name"))


def _schedule(plan: Plan) -> Tile | None:
    epochs = _value(plan, "training.epochs")
    if epochs is None:
        return None
    keys = ("optimizer", "learning_rate", "scheduler")
    optimizer, rate, scheduler = (_value(plan, f"training.{key}") for key in keys)
    how = f"{optimizer} at {rate}, {scheduler}" if optimizer else f"learning rate {rate}"
    return Tile("Training", counted(epochs, "epoch"), how, _at("training.epochs"))


def _time(plan: Plan) -> Tile | None:
    seconds = _value(plan, "job.walltime_seconds")
    if not seconds:
        return None
    world = _value(plan, "parallel.world_size")
    cuda = _value(plan, "hardware.device") == "cuda"
    cost = f"{world * seconds / 3600:,.4g} GPU-hours at most for each job" if cuda and world else ""
    return Tile("Walltime", units.duration(seconds), cost, _at("job.walltime_seconds"))


def _head(report: Report) -> list[tuple[str, str]]:
    """Terms and values of the page's head."""
    return [("Spec", report.spec), ("Target", report.target), ("Compiled by", f"ratc {__version__}")]


def _verdict(findings: Sequence[Diagnostic]) -> str:
    many = len(findings)
    return "There are no warnings." if not many else f"{counted(many, 'warning')}."


def _finding(item: Diagnostic) -> Finding:
    span = item.span
    return Finding(
        "error" if item.severity is Severity.ERROR else "warning",
        item.code,
        redact(item.message),
        redact(span.place) if span else "",
        excerpt.line(span.source, span.line).strip() if span and span.source.is_file else "",
        tuple(redact(text) for text in item.notes if text),
        tuple(redact(text) for text in item.helps if text),
    )


def _timeline(drawing: Drawing | None) -> str:
    if drawing is None:
        return ""
    # Imported here: a page without a prediction draws nothing.
    from ratc.render.timeline.svg import svg

    return svg(drawing)


def _value(plan: Plan, path: str) -> Any:
    known = plan.values.get(path)
    return known.value if known else None


def _at(path: str) -> str:
    return values.anchor(path)


def _size(text: str) -> str:
    size = len(text.encode())
    return f"{size:,} bytes" if size < 10_000 else f"{size / 1000:.0f} kB"


@cache
def _environment() -> Environment:
    made = resources.template_environment(autoescape=True, finalize=_made_visible)
    made.filters["prose"] = prose
    return made


def _made_visible(value: Any) -> Any:
    """Make characters visible that turn or hide text, in a string for a template; our own markup is kept."""
    return html_text(value) if type(value) is str else value


def prose(text: str) -> Markup:
    """Return markup of a text in which backticks mark code, as in diagnostics."""
    from markupsafe import Markup, escape

    parts = html_text(text).split("`")
    if len(parts) % 2 == 0:  # one of them stands alone
        return escape(html_text(text))
    told = (Markup("<code>{}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts))
    return Markup("").join(told)


def _render(template: str, **told: Any) -> str:
    from markupsafe import Markup

    style, script = (resources.read("templates", f"report.{kind}").decode() for kind in ("css", "js"))
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    own = {"style": Markup(style), "script": Markup(script)}  # files of ratc's own
    if told.get("timeline"):
        told["timeline"] = Markup(told["timeline"])  # its own renderer escapes it
    made = _environment().get_template(template).render(**told, **own, policy=policy, version=__version__)
    return page(made)


def _digest(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
