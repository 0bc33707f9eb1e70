"""A spec that starts a program of its own (`entrypoint`): whether it does, and what the plan hands over to it.

A placeholder `${name}` in an argument is a value of the plan. `$$` stands for a dollar sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ratc.plan import Value, Values

#: The keys of which an entrypoint has one, in the order in which they are looked at.
KINDS = ("script", "module", "command")
#: What the program is told, by name: as placeholders, as variables (`RATC_SEED`), and by `ratc_runtime.plan()`.
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
AT_START = ("data_dir", "output_dir", "lock")
NAMES = (*HANDED, *SWITCHES, *AT_START)

_PLACEHOLDER = re.compile(r"\$(?:\$|\{([^{}]*)\})")


def is_program(settings: Values) -> bool:
    """Whether a spec starts a program of its own."""
    return "entrypoint.args" in settings


def kind(settings: Values) -> str | None:
    """Which of `KINDS` the entrypoint gives first; None if it gives none."""
    return next((name for name in KINDS if settings[f"entrypoint.{name}"].value is not None), None)


def words(settings: Values) -> list[Any]:
    """The program and its arguments as the spec has them; nothing stands for a program that is not named."""
    name = kind(settings)
    given = settings[f"entrypoint.{name}"].value if name else ""
    return [*(given if isinstance(given, list) else [given]), *settings["entrypoint.args"].value]


def texts(settings: Values) -> Iterator[tuple[Value, str]]:
    """Every text of an entrypoint in which placeholders are filled in, with the value that holds it."""
    for path in ("entrypoint.command", "entrypoint.args"):
        for text in settings[path].value or ():
            if isinstance(text, str):
                yield settings[path], text


def placeholders(text: str) -> list[str]:
    """The names in a text's placeholders."""
    return [match[1] for match in _PLACEHOLDER.finditer(text) if match[1] is not None]


def filled(text: str, values: Mapping[str, Any]) -> str:
    """The text with the values of placeholders; one that is known only at the start stays, and so does `$$`."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        return match[0] if name is None or name in AT_START else word(values[name])

    return _PLACEHOLDER.sub(value, text)


def word(value: Any) -> str:
    """A value as an argument: `true` and `false`, numbers as Python writes them, nothing for null."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
