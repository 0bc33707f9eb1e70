"""The pipeline: text -> settings -> plan -> artifacts. Pure: the command line reads and writes, this only computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ratc import elastic, facts, kinds, layers, program, resources, rules, schema
from ratc.diagnostics import Diagnostic, Severity, has_errors
from ratc.plan import Plan, Value, Values
from ratc.rules import secrets
from ratc.yaml.parse import Document, Node, parse

if TYPE_CHECKING:
    from ratc.memory.decision import Decision
    from ratc.sweep import Point
    from ratc.tuning.points import Study


@dataclass(frozen=True, slots=True)
class File:
    """A file that was read: its name in diagnostics, and its bytes."""

    name: str
    data: bytes
    layer: str = "spec"


@dataclass(frozen=True, slots=True)
class Inputs:
    """All sources of a spec's values. ``shell_folder`` is the shell's folder, relative to the spec's."""

    spec: File
    overlays: Sequence[File] = ()
    overrides: Sequence[layers.Override] = ()
    shell_folder: str = "."


def layered(inputs: Inputs) -> tuple[Document | None, tuple[Diagnostic, ...]]:
    """Parse the files and lay them over one another. Codes: R0xx, R107, R109."""
    documents: list[Document] = []
    found: list[Diagnostic] = []
    for file in (inputs.spec, *inputs.overlays):
        document, diagnostics = parse(file.name, file.data, file.layer)
        found += diagnostics
        if document:
            documents.append(document)
    found += kinds.other(documents[0], kinds.SPEC) if documents else ()
    if has_errors(found):
        return None, tuple(found)
    experiment = resources.schema("experiment")
    document, diagnostics = layers.layer(documents[0], documents[1:], inputs.overrides, experiment, inputs.shell_folder)
    return document, (*found, *diagnostics)


def check(document: Document) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """Validate a document by its schema, then by the rules that a schema cannot state. Codes: R1xx, R2xx."""
    settings, found = schema.validate(document, resources.schema("experiment"))
    if settings is None:
        return None, found
    settings = elastic.settled(settings)
    found = (*found, *rules.check(settings))
    return (None if has_errors(found) else settings), found


def analyse(inputs: Inputs) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """Parse, layer, validate and check. The first stage with errors is the last one. Codes: R0xx, R1xx, R2xx."""
    document, found = layered(inputs)
    if document is None or has_errors(found):
        return None, found
    settings, more = check(document)
    return settings, (*found, *more)


def points(document: Document) -> tuple[tuple[Point, ...], tuple[Diagnostic, ...]]:
    """The points of a checked document's sweep; none without one. Codes: R330-R333."""
    from ratc import sweep

    return sweep.points(document, resources.schema("experiment"))


def study(document: Document) -> tuple[Study | None, tuple[Diagnostic, ...]]:
    """The study of a checked document; None without one. Codes: R224, R331-R333, R336, R337."""
    from ratc.tuning import points as trials

    return trials.study(document, resources.schema("experiment"))


def check_point(document: Document, point: Point) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """The settings of one point of a sweep. Codes: R1xx, R2xx, each with a note that names the point."""
    from ratc import sweep

    settings, found = check(sweep.apply(document, point))
    return settings, sweep.met_at(point, found)


def read_facts(file: File) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """A facts file, checked against its schema. Codes: R0xx, R1xx."""
    document, found = parse(file.name, file.data)
    if document is None:
        return None, found
    if other := kinds.other(document, kinds.FACTS):
        return None, other
    values, found = schema.validate(document, resources.schema("facts"))
    found = (*found, *secrets.check(values)) if values is not None else found
    return (None if has_errors(found) else values), found


def read_rate(file: File) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """A measured learning rate, checked against its schema. Codes: R0xx, R1xx."""
    document, found = parse(file.name, file.data)
    if document is None:
        return None, found
    if other := kinds.other(document, kinds.RATE):
        return None, other
    return schema.validate(document, resources.schema("rate"))


def read_cluster(file: File) -> tuple[facts.Cluster | None, tuple[Diagnostic, ...]]:
    """A file of cluster facts, checked against its schema and against itself. Codes: R0xx, R1xx, R301, R325."""
    document, found = parse(file.name, file.data)
    if document is None:
        return None, found
    if other := kinds.other(document, kinds.CLUSTER):
        return None, other
    cluster = resources.schema("cluster")
    values, found = schema.validate(document, cluster)
    found = (*found, *secrets.check(values)) if values is not None else found
    if values is None or has_errors(found):
        return None, found

    def parts(key: str) -> dict[str, facts.Part]:
        inner = cluster["properties"][key]["additionalProperties"]
        return {name: _part(name, node, inner) for name, node in _children(document.root.find((key,)))}

    questions = document.root.find(("questions",))
    listed = questions.value if questions and isinstance(questions.value, list) else []
    read = facts.Cluster(
        span=document.root.span,
        values=values,
        node_types=parts("node_types"),
        partitions=parts("partitions" if values["scheduler"].value == "slurm" else "queues"),
        questions=tuple(Value(node.value, "spec", file.name, span=node.span) for node in listed),
    )
    found = tuple(facts.contradictions(read))
    return (None if has_errors(found) else read), found


def _children(node: Node | None) -> list[tuple[str, Node]]:
    return list(node.value.items()) if node and isinstance(node.value, dict) else []


def _part(name: str, node: Node, inner: dict[str, Any]) -> facts.Part:
    """A node type or a partition of a valid file."""
    values, problems = schema.validate(Document(node), inner)
    assert values is not None, problems
    nodes = {
        key: Value(child.value, "spec", name, span=child.key_span) for key, child in _children(node.find(("nodes",)))
    }
    return facts.Part(name, node.key_span or node.span, values, nodes)


def plan(
    settings: Values,
    facts_file: Values | None,
    machine: facts.Machine | None,
    decision: Decision | None = None,
    cluster: facts.Cluster | None = None,
    target: str = "local",
) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
    """Settle the hardware facts and resolve; a decision settles the values that memory decides. Codes: R3xx."""
    hardware, found = facts.hardware(settings, facts_file, machine, cluster, target)
    if hardware is None:
        return None, found
    resolved, more = plan_on(settings, hardware, decision)
    return resolved, (*found, *more)


def plan_on(
    settings: Values, hardware: Values, decision: Decision | None = None
) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
    """Resolve settings on settled hardware facts, which all points of a sweep share. Codes: R3xx."""
    # Imported here: `ratc validate` does not resolve.
    from ratc import resolve

    if elastic.is_range(settings):
        from ratc import elastic_plan

        resolved, found = elastic_plan.resolve(settings, hardware, decision)
    else:
        resolved, found = resolve.resolve(settings, hardware, decision)
    if resolved is None or not program.has_step(settings):
        return resolved, found
    step, more = plan_on(program.step(settings), hardware, decision)
    found += tuple(one for one in more if one.severity is Severity.ERROR)
    return (replace(resolved, step=step) if step else None), found
