"""The user's program that a spec starts (`entrypoint`): whether there is one, and the plan's values for it.

A placeholder `${name}` in an argument is a value of the plan. `$$` stands for a dollar sign.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ratc import resources
from ratc.diagnostics import Diagnostic, Span
from ratc.plan import Value, Values

#: The keys of which an entrypoint has one, in the order in which they are looked at.
KINDS = ("script", "module", "command")
#: The plan's values for the program, by name: as placeholders, variables (`RATC_SEED`), and by `ratc_runtime.plan()`.
HANDED = {
    "experiment_name": "experiment_name",
    "seed": "seed",
    "debug": "debug",
    "epochs": "training.epochs",
    "learning_rate": "training.learning_rate",
    "micro_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "global_batch_size": "training.global_batch_size",
    "precision": "training.precision",
    "num_workers": "data.num_workers",
    "nodes": "parallel.nodes",
    "processes_per_node": "parallel.processes_per_node",
    "world_size": "parallel.world_size",
}
#: The same as switches: true if the precision or the plan is so.
SWITCHES = ("bf16", "fp16", "tf32")
#: What is known only when the program starts: these stay in the lock as they are.
AT_START = ("data_dir", "output_dir", "checkpoint_dir", "resume", "lock")
#: With a range of nodes, what each number of them has of its own stays too.
OF_SIZE = ("micro_batch_size", "gradient_accumulation_steps", "nodes", "world_size")
NAMES = (*HANDED, *SWITCHES, *AT_START)

#: Sections and keys of a spec that mean something for a program of one's own; the others are of the built-in loop.
_USED = ("entrypoint", "resources", "environment", "distributed", "sweep")
_USED_KEYS = frozenset(
    (
        *("experiment_name", "description", "seed", "debug", "output_dir", "launcher"),
        *("data.data_dir", "data.num_workers"),
        *(f"checkpoint.{name}" for name in ("resume", "requeue", "max_restarts", "stop_before_seconds")),
        *(f"training.{name}" for name in ("auto_batch_size", "base_batch_size", "batch_size", "target_batch_size")),
        *(f"training.{name}" for name in ("gradient_accumulation_steps", "learning_rate", "learning_rate_scaling")),
        *(f"training.{name}" for name in ("epochs", "precision", "mixed_precision")),
    )
)
#: Further ones if the spec describes the program's step, with `model.name`: memory and time are predicted from them.
_STEP = ("model", "detection", "task_type")
_STEP_KEYS = frozenset(
    (
        *("data.dataset", "data.args", "data.image_size", "data.channels", "data.scales", "data.num_classes"),
        *("data.ignore_index", "training.optimizer", "training.optimizer_args", "training.betas"),
        *(f"training.{name}" for name in ("momentum", "weight_decay", "parameter_groups", "frozen", "allocator")),
        *(f"training.{name}" for name in ("loss", "loss_args", "gradient_clipping", "compile")),
        "training.activation_checkpointing",
    )
)
OF_A_PROGRAM = "No memory is predicted: the spec does not describe the step of the program (`model`, `data`)."

_PLACEHOLDER = re.compile(r"\$(?:\$|\{([^{}]*)\})")
_WITHOUT_BRACES = re.compile(rf"{_PLACEHOLDER.pattern}|\$\{{?([A-Za-z_]\w*)")


def is_program(settings: Values) -> bool:
    """Whether a spec starts a program of its own."""
    return "entrypoint.args" in settings


def has_step(settings: Values) -> bool:
    """Whether a spec describes the step of its program: then its memory and its time are predicted."""
    return is_program(settings) and settings.given("model.name")


def is_of_step(path: str) -> bool:
    """Whether a spec's key, or an entry of it, describes the step of a program."""
    parts = path.split(".")
    return parts[0] in _STEP or ".".join(parts[:2]) in _STEP_KEYS


def is_used(path: str, with_step: bool = False) -> bool:
    """Whether a spec's key means something beside an entrypoint; ``with_step`` if the spec describes its step."""
    return (with_step and is_of_step(path)) or path in _USED_KEYS or path.partition(".")[0] in _USED


def used(settings: Values) -> Values:
    """The settings without defaults of the built-in loop, if a program of one's own replaces it."""
    if not is_program(settings):
        return settings
    with_step = has_step(settings)
    return Values({path: value for path, value in settings.items() if is_used(path, with_step) or settings.given(path)})


def step(settings: Values) -> Values:
    """Return the settings of the built-in loop that makes the step which the spec describes for its program.

    Keys that mean nothing beside an entrypoint have their default. The processes exchange gradients as
    DistributedDataParallel does, and the model computes its attention as it is written.
    """
    told = {path: value for path, value in settings.items() if not path.startswith("entrypoint.")}
    for path in [path for path in told if settings.given(path) and not is_used(path, with_step=True)]:
        default = _default(path)
        if default is None:
            del told[path]
        else:
            told[path] = default
    told |= {
        "launcher": Value(None, "default"),
        "parallel.strategy": Value("ddp", "default"),
        "training.deepspeed": Value(False, "default"),
    }
    if settings["model.attention_memory"].value == "auto":
        told["model.attention_memory"] = Value("full", "default")
    return Values(told)


def _default(path: str) -> Value | None:
    """The default of a spec's key; None if the key is of a section that a spec need not have."""
    node = resources.schema("experiment")
    for key in path.split("."):
        if "null" in node.get("type", ()):
            return None
        node = node["properties"].get(key, {})
    return Value(node.get("default"), "default")


def kind(settings: Values) -> str | None:
    """Which of `KINDS` the entrypoint gives first; None if it gives none."""
    return next((name for name in KINDS if settings[f"entrypoint.{name}"].value is not None), None)


def span(settings: Values) -> Span | None:
    """The place of the program in the spec; that of the arguments if none is named."""
    return settings[f"entrypoint.{kind(settings) or 'args'}"].span


def unpredictable(settings: Values) -> tuple[Diagnostic, ...]:
    """Return a finding if the spec has an entrypoint and does not describe its step. Code: R245."""
    if not is_program(settings) or has_step(settings):
        return ()
    message = "no memory is predicted: the spec does not describe the step that the `entrypoint` makes"
    helps = (
        "describe it with `model`, `data` and `training.loss`: docs/guides/own-program.md",
        "or start the program with a small `batch_size`, and look at the card",
    )
    return (Diagnostic("R245", message, span(settings), helps=helps),)


def refused(settings: Values, what: str, instead: str) -> tuple[Diagnostic, ...]:
    """Return a finding, if there is an entrypoint, that ``what`` is only for the built-in loop. Code: R245."""
    if not is_program(settings):
        return ()
    message = f"{what} is for the built-in loop, which the `entrypoint` replaces"
    return (Diagnostic("R245", message, span(settings), helps=(instead,)),)


def switches(precision: str, tf32: bool) -> dict[str, bool]:
    """The values of `SWITCHES`."""
    return {"bf16": precision == "bf16", "fp16": precision == "fp16", "tf32": tf32}


def words(settings: Values) -> list[Any]:
    """Return the program and its arguments as the spec has them; "" for a program that is not named."""
    name = kind(settings)
    given = settings[f"entrypoint.{name}"].value if name else ""
    return [*(given if isinstance(given, list) else [given]), *settings["entrypoint.args"].value]


def command_line(settings: Values) -> str:
    """Return the program for a question of trust; of a command all words, since these decide its action."""
    return shlex.join(map(word, words(settings))) if kind(settings) == "command" else str(words(settings)[0])


def texts(settings: Values) -> Iterator[tuple[Value, str]]:
    """Every argument of an entrypoint in which placeholders are filled in, with the value that holds it."""
    command, args = settings["entrypoint.command"], settings["entrypoint.args"]
    for value, given in ((command, (command.value or ())[1:]), (args, args.value)):
        yield from ((value, text) for text in given if isinstance(text, str))


def names(settings: Values) -> Iterator[tuple[Value, str]]:
    """The name of every program that an entrypoint gives, with the value that holds it. Nothing is filled in there."""
    for path in KINDS:
        value = settings[f"entrypoint.{path}"]
        if value.value is not None:
            yield value, value.value[0] if isinstance(value.value, list) else value.value


def placeholders(text: str) -> list[str]:
    """The names in a text's placeholders."""
    return [match[1] for match in _PLACEHOLDER.finditer(text) if match[1] is not None]


def without_braces(text: str) -> list[tuple[str, str]]:
    """The placeholders of a text that lack a brace, as `$micro_batch_size` does: as written, and the name."""
    return [(match[0], match[2]) for match in _WITHOUT_BRACES.finditer(text) if match[2] in NAMES]


def filled(text: str, values: Mapping[str, Any], left: Sequence[str] = AT_START) -> str:
    """The text with the values of placeholders; those that are ``left`` to the start stay, and so does `$$`."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        return match[0] if name is None or name in left else word(values[name])

    return _PLACEHOLDER.sub(value, text)


def word(value: Any) -> str:
    """A value as an argument: `true` and `false`, numbers as Python writes them, nothing for null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
