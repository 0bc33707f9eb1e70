"""A cluster's facts: reads their file, checks it for contradictions, and chooses the partition that a spec means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ratc.diagnostics import Diagnostic, Severity, Span, did_you_mean
from ratc.facts.cards import MIB, Card, describe_card, find_card, one_of, resolve_card
from ratc.plan import Value, Values
from ratc.units import memory_bytes, walltime_seconds

#: The programs that start tasks on the nodes of a job, by scheduler; the first is the default.
LAUNCHERS = {"slurm": ("srun",), "lsf": ("blaunch", "jsrun")}

#: GB/s in one direction of a port on 16 lanes of PCIe 6.0, the fastest of today. Nodes have at most one for each GPU.
MOST_NETWORK = 128


@dataclass(frozen=True, slots=True)
class Part:
    """A node type, or a partition or queue: its keys with their defaults, and the place of its name."""

    name: str
    span: Span
    values: Values
    #: Of a partition or queue: how many nodes of each type.
    nodes: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A file of cluster facts. ``partitions`` are queues if the scheduler is LSF."""

    span: Span
    values: Values
    node_types: Mapping[str, Part]
    partitions: Mapping[str, Part]
    questions: tuple[Value, ...]

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self.values.get_as(str, "name")

    @property
    def scheduler(self) -> str:
        """``slurm`` or ``lsf``."""
        return self.values.get_as(str, "scheduler")

    @property
    def word(self) -> str:
        """The scheduler's word for a group of nodes, `partition` or `queue`; the spec's key too."""
        return word(self.scheduler)


@dataclass(frozen=True, slots=True)
class Choice:
    """The homogeneous part of a cluster for a plan. ``node_type`` is None if a facts file describes the nodes."""

    partition: Part
    node_type: Part | None
    #: Why this type: one line for people.
    why: str


def word(scheduler: str) -> str:
    """``partition`` on Slurm, ``queue`` on LSF."""
    return "partition" if scheduler == "slurm" else "queue"


def in_brackets(span: Span | None) -> str:
    """Return the place of a fact in brackets, for the end of a note."""
    return f" ({span.place})" if span else ""


def contradictions(cluster: Cluster) -> Iterator[Diagnostic]:
    """Yield contradictions between parts, which the schema cannot check. Codes: R301, R325."""
    values, scheduler = cluster.values, cluster.scheduler
    own, other = ("partitions", "queues") if scheduler == "slurm" else ("queues", "partitions")
    if values[other].value:
        yield _wrong(f"a {scheduler} cluster has no `{other}`", values[other].span, f"rename it to `{own}`")
    elif not cluster.partitions:
        yield _wrong(f"the facts name no {own}", values[own].span or cluster.span, f"add `{own}`")
    if not cluster.node_types:
        yield _wrong("the facts name no node types", values["node_types"].span, "add one under `node_types`")
    for node_type in cluster.node_types.values():
        yield from _unknown_card(node_type)
        yield from _processor(node_type)
        yield from _bandwidths(node_type)
        price = node_type.values["price_per_gpu_hour"]
        if price.value is not None and node_type.values["currency"].value is None:
            message = f"the price of an hour of `{node_type.name}`, {price.value:g}, has no currency"
            yield _wrong(message, price.span, "add `currency`, in three letters such as `EUR`")
    for partition in cluster.partitions.values():
        yield from _partition(cluster, partition)
    defaults = [part for part in cluster.partitions.values() if part.values["default"].value]
    for second in defaults[1:]:
        message = f"two {cluster.word}s are the default: `{defaults[0].name}` and `{second.name}`"
        yield _wrong(
            message, second.values["default"].span, f"keep one{in_brackets(defaults[0].values['default'].span)}"
        )
    launcher = values["launcher"]
    if launcher.value is not None and launcher.value not in LAUNCHERS[scheduler]:
        yield _wrong(
            f"`{launcher.value}` does not start tasks on {scheduler}",
            launcher.span,
            f"use {one_of(LAUNCHERS[scheduler])}",
        )
    first, last = values["ephemeral_ports"].value
    if first > last:
        yield _wrong(
            f"the ports {first} to {last} are not a range", values["ephemeral_ports"].span, "write the lower port first"
        )


def _wrong(message: str, span: Span | None, help_text: str) -> Diagnostic:
    return Diagnostic("R325", message, span, helps=(help_text,) if help_text else ())


def _unknown_card(node_type: Part) -> Iterator[Diagnostic]:
    given = node_type.values["gpu"]
    if given.value is not None and not _described(node_type):
        yield from resolve_card(str(given.value), given.span)[1]


def _processor(node_type: Part) -> Iterator[Diagnostic]:
    card, given = card_of(node_type), node_type.values["cpu_architecture"]
    if card and card.cpu_architecture and given.value not in (None, card.cpu_architecture):
        message = (
            f"nodes of type `{node_type.name}` are {given.value}, and those of {card.name} {card.cpu_architecture}"
        )
        yield _wrong(message, given.span, "remove `cpu_architecture`, or correct `gpu`")


def _bandwidths(node_type: Part) -> Iterator[Diagnostic]:
    """Yield bandwidths that no node of this kind can have."""
    link, network = (node_type.values[key] for key in ("gpu_link_gb_s", "network_gb_s"))
    card, gpus = card_of(node_type), max(1, node_type.values.get_as(int, "gpus_per_node"))
    peaks = card.peaks if card else None
    if peaks and link.value is not None and 1e9 * link.value > peaks.bandwidth:
        message = (
            f"a GPU of `{node_type.name}` cannot send {link.value:g} GB/s: its memory has {peaks.bandwidth / 1e9:g}"
        )
        yield _wrong(message, link.span, "`gpu_link_gb_s` is in gigabytes (not gigabits), in one direction")
    if network.value is not None and network.value > MOST_NETWORK * gpus:
        message = f"{network.value:g} GB/s are more than the ports of a node of type `{node_type.name}` can carry"
        yield _wrong(message, network.span, "`network_gb_s` is in gigabytes: a port of 400 Gb/s carries 50")


def _partition(cluster: Cluster, partition: Part) -> Iterator[Diagnostic]:
    if not partition.nodes:
        yield _wrong(
            f"the {cluster.word} `{partition.name}` has no nodes",
            partition.span,
            "add `nodes`: the number of nodes of each type",
        )
    for name, count in partition.nodes.items():
        if name not in cluster.node_types:
            helps = did_you_mean(name, cluster.node_types)
            message = f"the {cluster.word} `{partition.name}` has nodes of a type `{name}`, which is not described"
            yield Diagnostic("R325", message, count.span, helps=helps or (f"add `{name}` under `node_types`",))
    default, longest = partition.values["default_walltime"], partition.values["max_walltime"]
    if default.value and longest.value and walltime_seconds(default.value) > walltime_seconds(longest.value):
        message = f"the default walltime of `{partition.name}` is longer than its `max_walltime`, {longest.value}"
        yield Diagnostic("R325", message, default.span, (f"`max_walltime`{in_brackets(longest.span)}",))


def _described(node_type: Part) -> bool:
    return bool(node_type.values["gpu_memory_mib"].value and node_type.values["compute_capability"].value)


def card_of(node_type: Part) -> Card | None:
    """Return the card of a node type; None if it has no GPUs, or if the facts leave the card open."""
    values = node_type.values
    name = values.maybe(str, "gpu")
    if not values["gpus_per_node"].value:
        return None
    if _described(node_type):
        memory = values.get_as(int, "gpu_memory_mib") * MIB
        return describe_card(name or "gpu", memory, values.get_as(str, "compute_capability"))
    found = find_card(name) if name else None
    return found if isinstance(found, Card) else None


def gpus_asked(settings: Values) -> int | None:
    """Return the requested GPUs per node; None if the spec takes all of a node."""
    per_node, total = settings.maybe(int, "resources.gpus_per_node"), settings.maybe(int, "resources.num_gpus")
    if per_node is not None or total is None:
        return per_node
    return -(-total // settings.get_as(int, "resources.nodes"))


def place(settings: Values, *keys: str) -> Span | None:
    """Return the place of the first of these keys of ``resources`` in the spec, else that of the cluster's name."""
    spans = (settings[f"resources.{key}"].span for key in (*keys, "cluster"))
    return next((span for span in spans if span), None)


def choose_partition(cluster: Cluster, settings: Values) -> tuple[Part | None, str, tuple[Diagnostic, ...]]:
    """Return the partition or queue that a spec means, and why. Code: R321, without alternatives."""
    asked, parts = settings[f"resources.{cluster.word}"], cluster.partitions
    if asked.value is not None:
        if asked.value in parts:
            return parts[asked.value], "", ()
        message = f"{cluster.name} has no {cluster.word} `{asked.value}`"
        note = f"it has {_listed(parts)}{in_brackets(cluster.values[f'{cluster.word}s'].span)}"
        return None, "", (Diagnostic("R321", message, asked.span, (note,), did_you_mean(asked.value, parts)),)
    defaults = [part for part in parts.values() if part.values["default"].value]
    if defaults:
        return defaults[0], f"the default {cluster.word} of {cluster.name}", ()
    if len(parts) == 1:
        return next(iter(parts.values())), f"the only {cluster.word} of {cluster.name}", ()
    message = f"no {cluster.word} is named, and {cluster.name} has no default one"
    note = f"it has {_listed(parts)}{in_brackets(cluster.values[f'{cluster.word}s'].span)}"
    return None, "", (Diagnostic("R321", message, place(settings), (note,)),)


def choose_node_type(
    cluster: Cluster, partition: Part, settings: Values
) -> tuple[Choice | None, tuple[Diagnostic, ...]]:
    """The node type of a partition that a spec means. Codes: R301, R323, R324, R325."""
    asked, part = settings["resources.node_type"], f"{cluster.word} `{partition.name}`"
    if asked.value is not None:
        if asked.value not in cluster.node_types:
            message = f"{cluster.name} has no node type `{asked.value}`"
            note = f"it has {_listed(cluster.node_types)}{in_brackets(cluster.values['node_types'].span)}"
            return None, (Diagnostic("R324", message, asked.span, (note,), did_you_mean(asked.value, partition.nodes)),)
        if asked.value not in partition.nodes:
            message = f"{part} has no nodes of type `{asked.value}`"
            note = f"it has {_listed(partition.nodes)}{in_brackets(partition.span)}"
            return None, (Diagnostic("R324", message, asked.span, (note,)),)
    names = [asked.value] if asked.value is not None else list(partition.nodes)
    types = [cluster.node_types[name] for name in names]
    fitting, why, found = _fitting(partition, types, part, settings)
    if found:
        return None, found
    if len(fitting) > 1 and gpus_asked(settings) == 0:
        # The others have at least as much as the smallest.
        fitting = [min(fitting, key=lambda item: _size(partition, item, settings))]
        why = f"the smallest nodes of {part} that meet the request"
    if len(fitting) > 1:
        given = " and ".join(f"`{item.name}`{in_brackets(partition.nodes[item.name].span)}" for item in fitting)
        message = f"{part} has nodes of {len(fitting)} types, and the spec names none"
        helps = (f"choose one with `node_type`: {one_of([item.name for item in fitting])}",)
        span = place(settings, "gpu", cluster.word, "gpus_per_node", "num_gpus")
        return None, (Diagnostic("R324", message, span, (f"the types are {given}",), helps),)
    chosen = fitting[0]
    if found := tuple(_indistinct(cluster, partition, chosen, settings)):
        return None, found
    return Choice(partition, chosen, "" if asked.value else why), ()


def _size(partition: Part, node_type: Part, settings: Values) -> tuple[bool, int, int]:
    """Return a sort key for a node type: whether it is smaller than the request, its cores, its memory in bytes."""
    cpus, memory = node_type.values.get_as(int, "cpus"), node_type.values["memory"].value
    size = memory_bytes(memory) if memory is not None else 0
    asked = settings["resources.memory"].value
    lacks = (
        cpus < (settings.maybe(int, "resources.cpus") or 0)
        or (memory is not None and asked is not None and size < memory_bytes(asked))
        or partition.nodes[node_type.name].value < settings.get_as(int, "resources.nodes")
    )
    return lacks, cpus, size


def _fitting(
    partition: Part, types: list[Part], part: str, settings: Values
) -> tuple[list[Part], str, tuple[Diagnostic, ...]]:
    """Return the node types that a spec can mean, and why these."""
    gpus, wanted = gpus_asked(settings), settings["resources.gpu"]
    with_gpus = [item for item in types if item.values["gpus_per_node"].value]
    if gpus == 0:
        without = [item for item in types if item not in with_gpus]
        return without or types, f"the nodes without GPUs of {part}" if with_gpus else f"the nodes of {part}", ()
    if wanted.value is not None:
        card, found = resolve_card(str(wanted.value), wanted.span)
        if card is None:
            return [], "", found
        matching = [item for item in with_gpus if (own := card_of(item)) and own.id == card.id]
        matching = matching or [item for item in with_gpus if card_of(item) is None]
        if matching:
            return matching, f"the nodes of {part} with {card.name}", ()
        has = sorted({own.id for item in with_gpus if (own := card_of(item))})
        note = f"{part} has {_listed(has) if has else 'no GPUs'}{in_brackets(partition.nodes[types[0].name].span)}"
        return [], "", (Diagnostic("R323", f"{part} has no {card.name}", wanted.span, (note,)),)
    if gpus and not with_gpus:
        message = (
            f"GPUs are asked for, but {'nodes of type `' + types[0].name + '`' if len(types) == 1 else part} have none"
        )
        note = f"`gpus_per_node` is 0{in_brackets(types[0].values['gpus_per_node'].span)}"
        return [], "", (Diagnostic("R323", message, place(settings, "gpus_per_node", "num_gpus"), (note,)),)
    if with_gpus:
        return with_gpus, f"the nodes with GPUs of {part}" if len(types) > 1 else f"the nodes of {part}", ()
    return types, f"the nodes of {part}", ()


def _indistinct(cluster: Cluster, partition: Part, chosen: Part, settings: Values) -> Iterator[Diagnostic]:
    """Yield a finding if the scheduler cannot tell the chosen type of node from another one of the partition."""
    gpus = gpus_asked(settings)
    if gpus == 0:
        return
    needed = gpus or chosen.values.get_as(int, "gpus_per_node")
    kind, constraint = (chosen.values[key].value for key in ("gpu_type", "constraint"))
    for name in partition.nodes:
        other = cluster.node_types[name]
        enough = needed and other.values.get_as(int, "gpus_per_node") >= needed
        theirs = other.values["gpu_type"].value
        # Slurm gives untyped GRES to no request with a type; LSF's own names are there without any facts.
        same_type = kind is None or theirs == kind or (theirs is None and cluster.scheduler == "lsf")
        same_place = constraint is None or other.values["constraint"].value == constraint
        if other is not chosen and enough and same_type and same_place:
            message = f"the scheduler cannot tell `{chosen.name}` nodes from `{name}` nodes in `{partition.name}`"
            note = f"`{name}`{in_brackets(other.span)}"
            yield Diagnostic(
                "R325", message, chosen.span, (note,), ("give each type its own `gpu_type` or `constraint`",)
            )
            return


def open_questions(cluster: Cluster, choice: Choice, settings: Values) -> Iterator[Diagnostic]:
    """Yield the unanswered questions of a probe that affect this spec. Code: R329 (a warning)."""
    for question in cluster.questions:
        key = _key(question)
        if not _answered(cluster, key) and _matters(cluster, choice, settings, key):
            helps = (f"answer it under `{key}` and remove the question",) if _known(cluster, key) else ()
            message = f"the probe of {cluster.name} left a question: {question.value}"
            yield Diagnostic("R329", message, question.span, helps=helps, severity=Severity.WARNING)


def asked_about(cluster: Cluster, partition: Part, key: str) -> bool:
    """Whether the probe left a question about a partition's value."""
    wanted = f"{cluster.word}s.{partition.name}.{key}"
    return any(_key(question) == wanted for question in cluster.questions)


def _key(question: Value) -> str:
    return str(question.value).partition(":")[0].strip()


def _find(cluster: Cluster, key: str) -> Value | None:
    kind, _, rest = key.partition(".")
    parts = {"node_types": cluster.node_types, f"{cluster.word}s": cluster.partitions}.get(kind)
    if parts is None:
        return cluster.values.get(key)
    name, _, inner = rest.rpartition(".")
    return parts[name].values.get(inner) if name in parts else None


def _known(cluster: Cluster, key: str) -> bool:
    return _find(cluster, key) is not None


def _answered(cluster: Cluster, key: str) -> bool:
    value = _find(cluster, key)
    return value is not None and value.origin != "default" and value.value is not None


def _matters(cluster: Cluster, choice: Choice, settings: Values, key: str) -> bool:
    kind, _, rest = key.partition(".")
    if kind == "node_types":
        return choice.node_type is not None and rest.rpartition(".")[0] == choice.node_type.name
    if kind == f"{cluster.word}s":
        return rest.rpartition(".")[0] == choice.partition.name
    needs = {
        "modules_init": "environment.modules",
        "container": "environment.container",
        "container_options": "environment.container",
    }
    if kind in needs:
        return bool(settings[needs[kind]].value)
    if kind in ("interface", "variables"):
        return settings.get_as(int, "resources.nodes") > 1
    return kind != "scratch"


def _listed(names: object) -> str:
    assert isinstance(names, (Mapping, list))
    return ", ".join(f"`{name}`" for name in names)
