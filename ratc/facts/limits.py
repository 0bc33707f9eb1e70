"""Checks a job's request against the limits of its partition before submission. Codes: R321-R324, R328."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ratc import elastic
from ratc.diagnostics import Diagnostic, Severity, Span, has_errors
from ratc.facts.cluster import (
    Choice,
    Cluster,
    Part,
    asked_about,
    choose_node_type,
    choose_partition,
    gpus_asked,
    in_brackets,
    open_questions,
    place,
)
from ratc.plan import Value, Values
from ratc.units import duration, memory_bytes, walltime_seconds


def choose(cluster: Cluster, settings: Values, described: bool) -> tuple[Choice | None, str, tuple[Diagnostic, ...]]:
    """Return the part of a cluster that a spec means, why this partition, and a finding for each exceeded limit.

    ``described`` says that a facts file describes the nodes: then only the site's limits are checked. Every error
    names the partitions that would do. Codes: R301, R321-R326, R328, R329.
    """
    partition, why, found = choose_partition(cluster, settings)
    choice = None
    if partition is not None:
        choice, found = check(cluster, partition, settings, described)
    if not has_errors(found):
        assert choice is not None
        return choice, why, (*found, *_walltime(choice, cluster, settings), *open_questions(cluster, choice, settings))
    others = [
        does
        for other in cluster.partitions.values()
        if other is not partition
        and not asked_about(cluster, other, "state")  # it may start no jobs
        and (does := _suitable(cluster, other, settings, described))
    ]
    told = []
    for item in found:
        does = f"{' or '.join(others)} would do: set `{cluster.word}`" if others else ""
        if item.code == "R324" and settings["resources.node_type"].value is None:
            does = ""  # this partition does too
        note = "" if others else f"no {'other ' if partition else ''}{cluster.word} of {cluster.name} would do either"
        note = note if partition else note.removesuffix(" either")
        note = note if item.code in ("R321", "R322", "R323") else ""
        told.append(replace(item, notes=(*item.notes, *_some(note)), helps=(*item.helps, *_some(does))))
    return None, why, tuple(told)


def _suitable(cluster: Cluster, partition: Part, settings: Values, described: bool) -> str:
    """Return the partition's name if it takes the whole request, with the node type if that must be chosen; else ""."""
    if not has_errors(check(cluster, partition, settings, described)[1]):
        return f"`{partition.name}`"
    if settings["resources.node_type"].value is None:
        for name in partition.nodes:
            chosen = Values({**settings, "resources.node_type": Value(name, "spec")})
            if not has_errors(check(cluster, partition, chosen, described)[1]):
                return f"`{partition.name}` with `node_type: {name}`"
    return ""


def _some(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


def check(
    cluster: Cluster, partition: Part, settings: Values, described: bool
) -> tuple[Choice | None, tuple[Diagnostic, ...]]:
    """Return the choice of a spec in one partition, and a finding for each limit of it that the spec exceeds."""
    if described:
        choice = Choice(partition, None, "")
        return choice, tuple(_site(cluster, choice, settings))
    chosen, found = choose_node_type(cluster, partition, settings)
    if chosen is None:
        return None, found
    return chosen, (*found, *_nodes(cluster, chosen, settings), *_site(cluster, chosen, settings))


def _beyond(message: str, span: Span | None, note: str, fact: Value, help_text: str) -> Diagnostic:
    return Diagnostic("R322", message, span, (f"{note}{in_brackets(fact.span)}",), (help_text,))


def _nodes(cluster: Cluster, choice: Choice, settings: Values) -> Iterator[Diagnostic]:
    """Check the request against the nodes themselves: their number, GPUs, cores and memory."""
    node_type = choice.node_type
    assert node_type is not None
    of, has = f"nodes of type `{node_type.name}`", node_type.values
    nodes, count = settings.get_as(int, "resources.nodes"), choice.partition.nodes[node_type.name]
    if nodes > count.value:
        part = f"{cluster.word} `{choice.partition.name}` has {count.value} of type `{node_type.name}`"
        message = f"{_count_with_verb(nodes, 'node')} asked for, but {part}"
        note = f"`{node_type.name}: {count.value}` in `{choice.partition.name}`"
        yield _beyond(message, place(settings, "nodes"), note, count, _fewer(settings, count.value))
    gpus, there = gpus_asked(settings), has["gpus_per_node"]
    if gpus is not None and gpus > there.value:
        message = f"{_count_with_verb(gpus, 'GPU', ' per node')} asked for, but {of} have {there.value}"
        span = place(settings, "gpus_per_node", "num_gpus")
        helps = f"use at most {there.value} per node" + _more_nodes(settings, there.value, count.value)
        yield _beyond(message, span, f"`gpus_per_node` is {there.value}", there, helps)
    cpus = settings.maybe(int, "resources.cpus")
    if cpus is not None and cpus > has["cpus"].value:
        message = f"{_count_with_verb(cpus, 'core', ' per node')} asked for, but {of} have {has['cpus'].value}"
        note = f"`cpus` is {has['cpus'].value}"
        yield _beyond(message, place(settings, "cpus"), note, has["cpus"], f"use at most {has['cpus'].value}")
    yield from _memory(settings, has["memory"], f"{of} have")


def _more_nodes(settings: Values, per_node: int, count: int) -> str:
    total = settings.maybe(int, "resources.num_gpus")
    if settings["resources.gpus_per_node"].value is not None or total is None or not per_node or total % per_node:
        return ""
    nodes = total // per_node
    return f": {total} GPUs are {nodes} nodes" if nodes <= count else ""


def _memory(settings: Values, most: Value, who: str) -> Iterator[Diagnostic]:
    asked = settings["resources.memory"]
    if asked.value is not None and most.value is not None and memory_bytes(asked.value) > memory_bytes(most.value):
        longest = size(memory_bytes(most.value))
        message = f"{size(memory_bytes(asked.value))} of memory per node are asked for, but {who} {longest}"
        yield _beyond(message, asked.span, f"{longest} of memory", most, f"use at most {longest}")


def _fewer(settings: Values, most: int) -> str:
    both = elastic.is_range(settings) and elastic.fewest(settings) > most
    return f"use at most {most}{' as `max`, and as `min`' if both else ''}"


def _site(cluster: Cluster, choice: Choice, settings: Values) -> Iterator[Diagnostic]:
    """Check the request against the site's limits for a job in this partition."""
    limits, name = choice.partition.values, f"{cluster.word} `{choice.partition.name}`"
    nodes, most = settings.get_as(int, "resources.nodes"), limits["max_nodes"]
    if most.value is not None and nodes > most.value:
        message = f"{_count_with_verb(nodes, 'node')} asked for, but a job in {name} may have {most.value}"
        yield _beyond(
            message, place(settings, "nodes"), f"`max_nodes` is {most.value}", most, _fewer(settings, most.value)
        )
    fewest = limits["min_nodes"]
    nodes = elastic.fewest(settings)
    if fewest.value is not None and nodes < fewest.value:
        message = f"{_count_with_verb(nodes, 'node')} asked for, but a job in {name} must have {fewest.value} or more"
        note = f"`min_nodes` is {fewest.value}"
        yield _beyond(message, place(settings, "nodes"), note, fewest, f"use at least {fewest.value}")
    yield from _gpus(choice, settings, name)
    cpus, most = settings.maybe(int, "resources.cpus"), limits["max_cpus_per_node"]
    if cpus is not None and most.value is not None and cpus > most.value:
        message = f"{_count_with_verb(cpus, 'core', ' per node')} asked for, but {name} allows {most.value}"
        note = f"`max_cpus_per_node` is {most.value}"
        yield _beyond(message, place(settings, "cpus"), note, most, f"use at most {most.value}")
    yield from _memory(settings, limits["max_memory_per_node"], f"{name} allows")
    per_cpu, asked = limits["max_memory_per_cpu"], settings["resources.memory"]
    if cpus is not None and per_cpu.value is not None and asked.value is not None:
        most_bytes = memory_bytes(per_cpu.value) * cpus
        if memory_bytes(asked.value) > most_bytes:
            cores = f"{cpus} core{'s' if cpus > 1 else ''}"
            message = f"{size(memory_bytes(asked.value))} of memory for {cores} are asked for, but {name} allows "
            message += f"{size(memory_bytes(per_cpu.value))} for each"
            note = f"`max_memory_per_cpu` is {per_cpu.value}"
            yield _beyond(message, asked.span, note, per_cpu, f"use at most {size(most_bytes)}, or more cores")
    asked, longest = settings["resources.walltime"], limits["max_walltime"]
    if asked.value and longest.value and walltime_seconds(asked.value) > walltime_seconds(longest.value):
        most_time = duration(walltime_seconds(longest.value))
        message = f"a walltime of {duration(walltime_seconds(asked.value))} is asked for, but {name} allows {most_time}"
        note = f"`max_walltime` is {longest.value}"
        yield _beyond(message, asked.span, note, longest, f"ask for at most {longest.value}")
    yield from _named(cluster, settings, limits, name)
    if limits["account_required"].value and settings["resources.account"].value is None:
        message = f"{name} charges every job to an account, and the spec names none"
        note = f"`account_required`{in_brackets(limits['account_required'].span)}"
        span = place(settings, cluster.word)
        yield Diagnostic("R328", message, span, (note,), ("add `account` under `resources`, or use `--account`",))


def _named(cluster: Cluster, settings: Values, limits: Values, name: str) -> Iterator[Diagnostic]:
    """Check the account and the quality of service against the site's rules. Codes: R322, R328."""
    for setting, key in (("account", "accounts"), ("qos", "qos")):
        allowed, asked = limits[key], settings[f"resources.{setting}"]
        if allowed.value is None:
            continue
        listed = ", ".join(f"`{item}`" for item in allowed.value)
        if asked.value is not None and str(asked.value).lower() not in [item.lower() for item in allowed.value]:
            message = f"{name} takes no jobs of the {setting} `{asked.value}`"
            yield _beyond(message, asked.span, f"`{key}` is {listed}", allowed, f"use one of {listed}")
        elif asked.value is None and setting == "account" and not limits["account_required"].value:
            message = f"{name} takes jobs of some accounts only, and the spec names none"
            note = f"`{key}` is {listed}{in_brackets(allowed.span)}: your default account may be another one"
            helps = (f"add `account` under `resources`: {listed}",)
            span = place(settings, cluster.word)
            yield Diagnostic("R328", message, span, (note,), helps, Severity.WARNING)


def _gpus(choice: Choice, settings: Values, name: str) -> Iterator[Diagnostic]:
    limits, per_node = choice.partition.values, gpus_asked(settings)
    if per_node is None and choice.node_type is not None:
        per_node = choice.node_type.values.get_as(int, "gpus_per_node")
    if not per_node:
        return
    total = settings.maybe(int, "resources.num_gpus")
    if total is None or settings["resources.gpus_per_node"].value is not None:
        total = per_node * settings.get_as(int, "resources.nodes")
    most = limits["max_gpus_per_job"]
    if most.value is not None and total > most.value:
        message = f"{_count_with_verb(total, 'GPU')} asked for, but a job in {name} may have {most.value}"
        span = place(settings, "num_gpus", "gpus_per_node", "nodes")
        yield _beyond(message, span, f"`max_gpus_per_job` is {most.value}", most, f"use at most {most.value}")
    cpus, most = settings.maybe(int, "resources.cpus"), limits["max_cpus_per_gpu"]
    if cpus is not None and most.value is not None and cpus > most.value * per_node:
        gpus = f"{per_node} GPU{'s' if per_node > 1 else ''}"
        message = f"{cpus} cores for {gpus} are asked for, but {name} allows {most.value} for each"
        note = f"`max_cpus_per_gpu` is {most.value}"
        yield _beyond(message, place(settings, "cpus"), note, most, f"use at most {most.value * per_node}")


def _walltime(choice: Choice, cluster: Cluster, settings: Values) -> Iterator[Diagnostic]:
    """Warn if no walltime is requested, with the walltime that the job gets instead. Code: R326."""
    if settings["resources.walltime"].value is not None:
        return
    name, limits = f"{cluster.word} `{choice.partition.name}`", choice.partition.values
    taken = limits["default_walltime"] if limits["default_walltime"].value else limits["max_walltime"]
    if taken.value is None:
        message = (
            f"no walltime is given, and the facts of {name} have no default: the job is not told to save before its end"
        )
        note = ""
    else:
        which, key = ("default", "default") if taken is limits["default_walltime"] else ("longest", "max")
        message = f"no walltime is given: the {which} of {name} is taken, {duration(walltime_seconds(taken.value))}"
        note = f"`{key}_walltime` is {taken.value}{in_brackets(taken.span)}"
    helps = ('add `walltime: "HH:MM:SS"` under `resources`',)
    yield Diagnostic("R326", message, place(settings), _some(note), helps, Severity.WARNING)


def _count_with_verb(number: int, noun: str, each: str = "") -> str:
    return f"{number} {noun}s{each} are" if number != 1 else f"1 {noun}{each} is"


def size(number: int) -> str:
    """Return a size in bytes as text: ``256 GB``, ``32000 MB``, in powers of 1024 as schedulers count."""
    return f"{number >> 30} GB" if number % (1 << 30) == 0 else f"{number >> 20} MB"
