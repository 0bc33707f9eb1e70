"""Merges the items of several files into one tree of values: for each value the first file counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ratc.diagnostics import Diagnostic, Severity
from ratc.importers.launch import PRECISION
from ratc.importers.model import OF_A_SECRET, Carried, Item, Left
from ratc.program import KINDS, is_used
from ratc.secrets.redact import found, shown

_VARIABLES = "environment.variables."


@dataclass(slots=True)
class Merged:
    """The values by path, the items left out, and the findings on which files disagree."""

    values: dict[str, Carried] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    found: list[Diagnostic] = field(default_factory=list)


def merge(items: Iterable[Item]) -> Merged:
    """Merge the items to one value per path; the modules of all files are joined. Code: R432, a warning."""
    merged = Merged()
    for item in sorted(items, key=_is_assumed):
        if isinstance(item, Left):
            merged.left.append(item)
            continue
        if _is_assumed(item) and item.path in merged.values:
            continue
        secrets = list(found(item.path, item.value, strict=item.path.startswith(_VARIABLES)))
        if not secrets:
            _add(merged, item)
        elif item.path == "entrypoint.args":
            _arguments(merged, item, secrets)
        else:
            merged.left.append(_secret(item))
    _precision(merged)
    _gpus(merged)
    _engine(merged)
    _program(merged)
    return merged


def _is_assumed(item: Item) -> bool:
    return isinstance(item, Carried) and item.is_assumed


def _secret(item: Carried) -> Left:
    """Return the item left out for a secret: with its name, never with its value."""
    name = item.path.removeprefix(_VARIABLES)
    if name != item.path:
        why = f"it looks like a secret, and ratc copies none: name it in the spec: `environment: {{secrets: [{name}]}}`"
        return Left(f"export {name}" if item.source.startswith("export ") else item.path, item.span, why)
    return Left(item.path, item.span, OF_A_SECRET)


def _arguments(merged: Merged, item: Carried, secrets: Iterable[str]) -> None:
    """Add the arguments of a program without those that are secrets, and without the options that they belong to."""
    words = dict(enumerate(item.value))
    for number in [index for index in words if f"{item.path}[{index}]" in secrets]:
        before = words.get(number - 1, "")
        is_value = before.startswith("-") and "=" not in before and not words[number].startswith("-")
        name = words.pop(number - 1) if is_value else words[number].partition("=")[0] if "=" in words[number] else ""
        del words[number]
        left = name if name.startswith("-") else "a word"
        merged.left.append(Left(f"{item.path}: {left}", item.span, OF_A_SECRET))
    if words:
        _add(merged, replace(item, value=list(words.values())))


def _add(merged: Merged, item: Carried) -> None:
    first = merged.values.get(item.path)
    other = _overlapping(merged, item.path)
    if other is not None:
        why = f"{other.span.place} says `{other.path}`, which cannot be beside it"
        merged.left.append(Left(item.source, item.span, why))
    elif first is None:
        merged.values[item.path] = item
    elif item.path == "environment.modules":
        merged.values[item.path] = Carried(item.path, [*first.value, *item.value], first.span, first.source)
    elif first.value == item.value:
        merged.left.append(Left(item.source, item.span, f"{first.span.place} says the same", deliberate=True))
    else:
        _disagree(merged, first, item.value, item)


def _overlapping(merged: Merged, path: str) -> Carried | None:
    """Return a value above or below this path."""
    parents = [path[:index] for index, char in enumerate(path) if char == "."]
    above = next((merged.values[parent] for parent in parents if parent in merged.values), None)
    below = next((item for known, item in merged.values.items() if known.startswith(f"{path}.")), None)
    return above or below


def _disagree(merged: Merged, first: Carried, value: Any, item: Carried) -> None:
    old, new = shown(item.path, first.value), shown(item.path, value)
    message = f"`{item.path}` is {new} here and {old} at {first.span.place}"
    note = (f"the first one wins: {old}",)
    merged.found.append(Diagnostic("R432", message, item.span, note, severity=Severity.WARNING))
    merged.left.append(Left(item.source, item.span, f"{first.span.place} says {old}", deliberate=True))


def _engine(merged: Merged) -> None:
    """Drop `deepspeed: false` of an Accelerate file if a file of DeepSpeed's has a ZeRO stage."""
    stage, given = merged.values.get("training.zero_stage"), merged.values.get("training.deepspeed")
    if stage is not None and stage.value and given is not None and given.value is False:
        del merged.values["training.deepspeed"]
        _disagree(merged, Carried(given.path, True, stage.span, stage.source), False, given)


def _program(merged: Merged) -> None:
    """A program of one's own, unless files describe the model or the data: then that is what the built-in loop trains.

    What the program decides itself, such as DeepSpeed's values, is left out.
    """
    values = merged.values
    own = [path for path in values if path == "launcher" or path.startswith("entrypoint.")]
    if not any(f"entrypoint.{kind}" in values for kind in KINDS):
        return
    of_the_loop = [item for path, item in values.items() if not is_used(path)]
    first = next((item for item in of_the_loop if item.path.startswith(("model.", "data."))), None)
    if first is None:
        for item in of_the_loop:
            # `launcher` stands for the use of Accelerate, and a program has no DeepSpeed from ratc anyway.
            if item.path != "training.use_accelerate" and item.value is not False and not item.is_assumed:
                why = "it is for the built-in loop: of an `entrypoint` the program itself has to see to it"
                merged.left.append(Left(item.source, item.span, why))
            del values[item.path]
        return
    why = (
        f"{first.span.place} says `{first.path}`, which belongs to the built-in loop: that loop trains, and not "
        "this program"
    )
    merged.left += [Left(item.source, item.span, why) for item in [values[own[0]]]]
    for path in [*own, *(path for path, item in values.items() if item.is_assumed)]:
        del values[path]


def _precision(merged: Merged) -> None:
    """Assume no precision of a Trainer's own if a variable may give it one."""
    path = "training.precision"
    if path in merged.values and merged.values[path].is_assumed and any(PRECISION in one.source for one in merged.left):
        del merged.values[path]


def _gpus(merged: Merged) -> None:
    """Reduce GPUs in all and per node to one of them, and derive the nodes from both."""
    values = merged.values
    total, each = values.get("resources.num_gpus"), values.get("resources.gpus_per_node")
    nodes = values.get("resources.nodes")
    if nodes is not None and isinstance(nodes.value, dict):
        _gpus_of_range(merged, nodes)
        return
    if any(one is not None and not isinstance(one.value, int) for one in (total, each, nodes)):
        return  # the spec's own check reports it
    if total is not None and each is None and nodes is None and total.value > 1 and total.source.startswith("gpus "):
        why = "Slurm chooses on how many nodes they run: set `resources.nodes`"
        merged.left.append(Left(total.source, total.span, why))
    if total is None or each is None:
        return
    del values["resources.num_gpus"]
    whole, rest = divmod(total.value, each.value) if each.value else (0, 1)
    if nodes is None and whole and not rest:
        values["resources.nodes"] = Carried("resources.nodes", whole, total.span, total.source)
        why = f"{whole} node{'s' if whole > 1 else ''} of {each.value}, as {each.span.place} says"
        merged.left.append(Left(total.source, total.span, why, deliberate=True))
    elif total.value == each.value * (nodes.value if nodes is not None else 1):
        merged.left.append(Left(total.source, total.span, f"{each.span.place} says the same", deliberate=True))
    else:
        product = each.value * (nodes.value if nodes is not None else 1)
        _disagree(merged, Carried(total.path, product, each.span, each.source), total.value, total)


def _gpus_of_range(merged: Merged, nodes: Carried) -> None:
    """Reduce a range of nodes to the one number that GPUs in all and per node leave; without GPUs per node, those in
    all are lost.
    """
    total, each = merged.values.get("resources.num_gpus"), merged.values.get("resources.gpus_per_node")
    if total is None or not isinstance(total.value, int):
        return
    del merged.values["resources.num_gpus"]
    if each is None or not isinstance(each.value, int) or not each.value:
        why = "the number of nodes is a range: set `resources.gpus_per_node`"
        merged.left.append(Left(total.source, total.span, why))
        return
    whole, rest = divmod(total.value, each.value)
    if rest or not nodes.value["min"] <= whole <= nodes.value["max"]:
        why = f"no number of nodes of {nodes.span.place} has so many with {each.value} each"
        merged.left.append(Left(total.source, total.span, why))
        return
    merged.values["resources.nodes"] = Carried(nodes.path, whole, total.span, total.source)
    why = f"{total.value} GPUs, {each.value} a node, are {whole} node{'s' if whole > 1 else ''}"
    merged.left.append(Left(nodes.source, nodes.span, why, deliberate=True))
