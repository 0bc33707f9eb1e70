"""The pipeline: text -> settings -> plan -> artifacts. Pure: the command line reads and writes, this only computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ratc import facts, layers, resources, rules, schema
from ratc.diagnostics import Diagnostic, has_errors
from ratc.document import Document, parse
from ratc.plan import Plan, Values

if TYPE_CHECKING:
    from ratc.memory.decision import Decision


@dataclass(frozen=True, slots=True)
class File:
    """A file that was read: how diagnostics call it, and its bytes."""

    name: str
    data: bytes
    layer: str = "spec"


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a spec's values come from. ``shell_folder`` is the shell's folder, seen from the spec's."""

    spec: File
    overlays: Sequence[File] = ()
    overrides: Sequence[layers.Override] = ()
    shell_folder: str = "."


def analyse(inputs: Inputs) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """Parse, lay over one another, validate, check. A stage's findings come together. Codes: R0xx, R1xx, R2xx."""
    experiment = resources.schema("experiment")
    documents: list[Document] = []
    found: list[Diagnostic] = []
    for file in (inputs.spec, *inputs.overlays):
        document, diagnostics = parse(file.name, file.data, file.layer)
        found += diagnostics
        if document:
            documents.append(document)
    if has_errors(found):
        return None, tuple(found)
    document, diagnostics = layers.layer(documents[0], documents[1:], inputs.overrides, experiment, inputs.shell_folder)
    if document is None:
        return None, (*found, *diagnostics)
    settings, diagnostics = schema.validate(document, experiment)
    found += diagnostics
    if settings is None:
        return None, tuple(found)
    found += rules.check(settings)
    return (None if has_errors(found) else settings), tuple(found)


def read_facts(file: File) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """A facts file, checked against its schema. Codes: R0xx, R1xx."""
    document, found = parse(file.name, file.data)
    if document is None:
        return None, found
    return schema.validate(document, resources.schema("facts"))


def plan(
    settings: Values, facts_file: Values | None, machine: facts.Machine | None, decision: Decision | None = None
) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
    """Settle the hardware facts and resolve; a decision settles what memory decides. Codes: R3xx."""
    # Imported here: `ratc validate` does not resolve.
    from ratc.resolve import resolve

    hardware, found = facts.hardware(settings, facts_file, machine)
    if hardware is None:
        return None, found
    resolved, more = resolve(settings, hardware, decision)
    return resolved, (*found, *more)
