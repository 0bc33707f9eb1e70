"""A scheduler's hosts and queues -> a document of cluster facts. Pure: commands are run elsewhere.

Hosts with the same GPUs, cores and memory become one node type. A fact that does not follow from the answers becomes
a question: an entry under ``questions``, and a comment ``# ?`` behind the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ratc.facts import Card, card_names, find_card
from ratc.yaml.write import mapping, scalar

#: Keys that cannot be null: their questions stand under ``questions`` only.
_NEVER_NULL = ("gpu_request", "preemption", "nodes", "state", "groups", "account_required")
#: Hosts with memory that differs by less than this share are of one type: firmware takes more on some than on others.
#: Chosen, not measured.
_ALIKE = 0.03
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs of one kind in a host: the scheduler's name of the kind, their number, the memory of each in MiB."""

    kind: str | None
    count: int
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """A host, as jobs see it: its cores, its memory in MiB, its GPUs by kind, its features, and its processor as
    `uname -m` names it.
    """

    name: str
    cpus: int
    memory_mib: int | None
    gpus: tuple[Gpus, ...] = ()
    features: tuple[str, ...] = ()
    cpu_architecture: str | None = None


@dataclass(frozen=True, slots=True)
class Queue:
    """A partition or queue: the names of its hosts, its limits by the keys of the schema, and open questions."""

    name: str
    hosts: tuple[str, ...]
    limits: Mapping[str, Any]
    questions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """The facts and questions of a cluster. ``site`` holds top-level keys, ``questions`` are ``KEY: question``."""

    name: str
    scheduler: str
    hosts: Sequence[Host]
    queues: Sequence[Queue]
    site: Mapping[str, Any] = field(default_factory=dict)
    questions: tuple[str, ...] = ()


@dataclass(slots=True)
class _Kind:
    """Identical hosts, under the name of a node type."""

    gpus: Gpus | None
    cpus: int
    memory_mib: int | None
    hosts: list[Host]
    cpu_architecture: str | None
    name: str = ""


def text(inventory: Inventory, command: str) -> str:
    """Return the cluster facts as YAML; ``command`` is named as their source. Needs a queue with a known host."""
    kinds = _kinds(inventory.hosts)
    _name(kinds)
    key = "partitions" if inventory.scheduler == "slurm" else "queues"
    questions = list(inventory.questions)
    node_types: dict[str, Any] = {}
    for kind in kinds:
        node_types[kind.name], more = _node_type(kind, kinds, inventory)
        questions += more
    queues: dict[str, Any] = {}
    for queue in inventory.queues:
        nodes = {kind.name: count for kind in kinds if (count := sum(h.name in queue.hosts for h in kind.hosts))}
        if nodes:
            queues[queue.name] = {"nodes": nodes, **queue.limits}
            questions += [f"{key}.{queue.name}.{question}" for question in queue.questions]
        else:
            questions.append(f"{key}.{queue.name}: the scheduler shows none of its nodes; describe them if you use it")
    used = {name for queue in queues.values() for name in queue["nodes"]}
    node_types = {name: value for name, value in node_types.items() if name in used}
    questions = [item for item in questions if not item.startswith("node_types.") or _type_of(item, node_types)]
    tree = {
        "name": _valid_name(inventory.name),
        "scheduler": inventory.scheduler,
        **{name: value for name, value in inventory.site.items() if value is not None},
        "node_types": node_types,
        key: queues,
    }
    return _rendered(tree, questions, command)


def _rendered(tree: dict[str, Any], questions: list[str], command: str) -> str:
    comments: dict[str, str] = {}
    for item in questions:
        path, _, question = item.partition(": ")
        _open(tree, path)
        comments[path] = f"? {question}"
    head = (
        f"# Written by `{command}`. `# ?` marks unknown values: write them there, then remove the question from "
        "`questions`.\n"
    )
    listed = "".join(f"  - {scalar(item)}\n" for item in questions)
    return head + mapping(tree, comments) + (f"questions:\n{listed}" if listed else "")


def _open(tree: dict[str, Any], path: str) -> None:
    """Set the key of an open question to null, if its section exists and the schema allows null."""
    section, _, key = path.rpartition(".")
    kind, _, name = section.partition(".")
    owner = tree if not section else tree.get(kind, {}).get(name)
    if isinstance(owner, dict) and key not in _NEVER_NULL:
        owner.setdefault(key, None)


def _type_of(question: str, node_types: Mapping[str, Any]) -> bool:
    return question.partition(": ")[0].removeprefix("node_types.").rpartition(".")[0] in node_types


def _kinds(hosts: Iterable[Host]) -> list[_Kind]:
    kinds: list[_Kind] = []
    for host in hosts:
        for gpus in host.gpus or (None,):
            like = next((kind for kind in kinds if _is_like(kind, host, gpus)), None)
            if like is None:
                kinds.append(_Kind(gpus, host.cpus, host.memory_mib, [host], host.cpu_architecture))
            else:
                like.hosts.append(host)
                if host.memory_mib is not None and like.memory_mib is not None:
                    like.memory_mib = min(like.memory_mib, host.memory_mib)
    return kinds


def _is_like(kind: _Kind, host: Host, gpus: Gpus | None) -> bool:
    if (kind.gpus, kind.cpus, kind.cpu_architecture) != (gpus, host.cpus, host.cpu_architecture):
        return False
    if kind.memory_mib is None or host.memory_mib is None:
        return kind.memory_mib is host.memory_mib
    return abs(kind.memory_mib - host.memory_mib) <= _ALIKE * kind.memory_mib


def _name(kinds: list[_Kind]) -> None:
    """Give the kinds the shortest unique names: the card, then with the number of GPUs, then with the cores."""
    for kind in kinds:
        card = _card(kind.gpus)[0] if kind.gpus else None
        kind.name = _valid_name((card or kind.gpus.kind or "gpu") if kind.gpus else "cpu")

    for mark in (_by_gpus, _by_cores, _by_size, _by_number):
        same: dict[str, list[_Kind]] = {}
        for kind in kinds:
            same.setdefault(kind.name, []).append(kind)
        for alike in same.values():
            marks = [mark(kind, number) for number, kind in enumerate(alike, 1)]
            if len(set(marks)) > 1:
                for kind, added in zip(alike, marks, strict=True):
                    kind.name += added


def _by_gpus(kind: _Kind, _: int) -> str:
    return f"-x{kind.gpus.count}" if kind.gpus else ""


def _by_cores(kind: _Kind, _: int) -> str:
    return f"-{kind.cpus}cpu"


def _by_size(kind: _Kind, _: int) -> str:
    return f"-{kind.memory_mib // 1024}g" if kind.memory_mib else ""


def _by_number(_: _Kind, number: int) -> str:
    return f"-{number}"


def _node_type(kind: _Kind, kinds: list[_Kind], inventory: Inventory) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of a node type, and the questions on it."""
    path, questions = f"node_types.{kind.name}", []
    keys: dict[str, Any] = {"gpus_per_node": kind.gpus.count if kind.gpus else 0}
    if kind.gpus:
        keys["gpu"], question = _card(kind.gpus)
        if question:
            questions.append(f"{path}.gpu: {question}")
        if kind.gpus.kind:
            keys["gpu_type"] = kind.gpus.kind
    keys["cpus"] = kind.cpus
    if kind.memory_mib is None:
        questions.append(f"{path}.memory: how much memory can a job ask for on such a node?")
    else:
        keys["memory"] = f"{kind.memory_mib >> 10}GB" if kind.memory_mib % 1024 == 0 else f"{kind.memory_mib}MB"
    if kind.cpu_architecture is not None:
        keys["cpu_architecture"] = kind.cpu_architecture
    others = [other for other in kinds if other is not kind and _share_queue(kind, other, inventory)]
    if others:
        feature = _own_feature(kind, others)
        if feature:
            keys["constraint"] = feature
        elif alike := [other for other in others if _confusable(kind, other, inventory.scheduler)]:
            names = " and ".join(f"`{other.name}`" for other in alike)
            questions.append(
                f"{path}.constraint: which constraint keeps jobs from {names}, in the same {_queue_word(inventory)}?"
            )
    return keys, questions


def _queue_word(inventory: Inventory) -> str:
    return "partition" if inventory.scheduler == "slurm" else "queue"


def _share_queue(kind: _Kind, other: _Kind, inventory: Inventory) -> bool:
    own, theirs = ({host.name for host in side.hosts} for side in (kind, other))
    return any(own & set(queue.hosts) and theirs & set(queue.hosts) for queue in inventory.queues)


def _confusable(kind: _Kind, other: _Kind, scheduler: str) -> bool:
    """Whether a job for one kind could land on the other. Slurm gives untyped GRES to no request with a type."""
    if kind.gpus is None or other.gpus is None:
        return False
    untyped = other.gpus.kind is None and scheduler != "slurm"
    return kind.gpus.kind is None or other.gpus.kind == kind.gpus.kind or untyped


def _own_feature(kind: _Kind, others: list[_Kind]) -> str | None:
    common = set.intersection(*(set(host.features) for host in kind.hosts))
    foreign = {feature for other in others for host in other.hosts for feature in host.features}
    return min(common - foreign, key=lambda feature: (len(feature), feature), default=None)


def _card(gpus: Gpus) -> tuple[str | None, str | None]:
    """The catalogue's name of a card and no question, or None and the question to ask."""
    if gpus.kind is None:
        return None, "which card is it? the scheduler gives no type for its GPUs"
    found = recognise(gpus.kind, gpus.memory_mib)
    if isinstance(found, str):
        return found, None
    if found:
        return None, f"which card is `{gpus.kind}`: {' or '.join(found)}?"
    wanted = "a name from docs/reference/cards.md, or `gpu_memory_mib` and `compute_capability`"
    return None, f"which card is `{gpus.kind}`? ({wanted})"


def recognise(kind: str, memory_mib: int | None = None) -> str | tuple[str, ...]:
    """Return the card of a scheduler's name such as ``h100``, ``TeslaV100_SXM2_32GB`` or ``NVIDIAA100_SXM4_80GB``, or
    the possible ones. ``memory_mib`` decides between them.
    """
    plain = re.sub(r"[\s_]+", "-", kind.strip().lower())
    if re.search(r"\b\d+g\.\d+gb", plain):  # a slice of a card (MIG): its family alone would be the whole card
        found = find_card(plain)
        return found.id if isinstance(found, Card) else found
    for spelling in (plain, re.sub(r"^(nvidia|tesla)-?(geforce|tesla|quadro)?-?", "", plain)):
        found = find_card(spelling)
        if isinstance(found, Card):
            return found.id
        if found:
            return _by_memory(found, memory_mib)
    families = sorted({name.partition("-")[0] for name in card_names()}, key=len, reverse=True)
    family = next((name for name in families if name in plain), None)
    if family is None:
        return ()
    size = re.search(r"(\d{2,3})gb", plain[plain.index(family) + len(family) :])
    for spelling in ([f"{family}-{size[1]}gb"] if size else []) + [family]:
        found = find_card(spelling)
        if isinstance(found, Card):
            return found.id
        if found:
            return _by_memory(found, memory_mib)
    return ()


def _by_memory(names: tuple[str, ...], memory_mib: int | None) -> str | tuple[str, ...]:
    """Return the one card within 5 % of this memory, since drivers and catalogues differ by little; else all names."""
    if memory_mib:
        cards = [card for name in names if isinstance(card := find_card(name), Card)]
        near = [card.id for card in cards if abs(card.memory_bytes / 2**20 - memory_mib) < 0.05 * memory_mib]
        if len(near) == 1:
            return near[0]
    return names


def _valid_name(name: str) -> str:
    """Return the name with each run of invalid characters replaced by a dash, at most 100 characters long."""
    return _NOT_A_NAME.sub("-", name).strip("-._")[:100] or "cluster"
