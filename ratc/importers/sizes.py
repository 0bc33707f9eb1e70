"""The nodes, GPUs and cores that a job requests: schedulers count them by node, by task or in all.

Rules: sbatch(1) of Slurm 23 to 25; bsub(1) of LSF 10.1, for `span` and `-gpu`. A count that the scheduler would decide
is reported as lost, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ratc.diagnostics import Span
from ratc.importers.model import Carried, Item, Left

_CARD = "the scheduler's name for a card: set `resources.gpu`"
_UNITS = {"K": 1, "M": 2**10, "G": 2**20, "T": 2**30}


@dataclass(frozen=True, slots=True)
class Option:
    """An effective option, the last one of its name."""

    name: str
    value: str
    span: Span

    @property
    def source(self) -> str:
        """The option as text."""
        return f"{self.name} {self.value}".strip()

    @property
    def number(self) -> int | None:
        """The value as a whole number, or None."""
        return int(self.value) if re.fullmatch(r"\d{1,9}", self.value) else None


_Options = Mapping[str, Option]
#: Options that :func:`slurm` and :func:`lsf` read.
SLURM = frozenset(
    ("nodes", "ntasks", "ntasks-per-node", "gres", "gpus", "gpus-per-node", "gpus-per-task", "cpus-per-task")
) | frozenset(("mem-per-cpu", "mem-per-gpu", "cpus-per-gpu"))
LSF = frozenset(("n", "gpu", "R"))


def slurm(given: _Options) -> Iterator[Item]:
    """Nodes, GPUs, cores and memory of an sbatch script."""
    nodes, tasks, each = (_count(given, name) for name in ("nodes", "ntasks", "ntasks-per-node"))
    of_range = _range(given["nodes"]) if "nodes" in given else None
    if "nodes" in given and not nodes and not of_range:
        why_not = "it is neither a number of nodes above 0 nor a range such as 2-8"
        yield Left(given["nodes"].source, given["nodes"].span, why_not)
    yield from _unreadable(given, ("ntasks", "ntasks-per-node", "cpus-per-task"))
    if of_range:
        yield Carried("resources.nodes", of_range, given["nodes"].span, given["nodes"].source)
    why = nodes
    if nodes is None and not of_range and tasks is not None and each and tasks % each == 0:
        nodes, why = tasks // each, tasks
    if nodes is not None:
        option = given["nodes" if "nodes" in given and why is nodes else "ntasks"]
        yield Carried("resources.nodes", nodes, option.span, option.source)
    open_nodes = nodes is None and not of_range and tasks not in (None, 1)
    if each is None and tasks is None:
        each = 1
    elif each is None and nodes and tasks is not None and tasks % nodes == 0:
        each = tasks // nodes
    elif each is None and tasks == 1:
        each = 1
    for name in ("ntasks", "ntasks-per-node"):
        if name in given and given[name].number is not None:
            if open_nodes and name == "ntasks":
                lost = "Slurm chooses the number of nodes for it: set `resources.nodes`"
                yield Left(given[name].source, given[name].span, lost)
            else:
                yield Left(given[name].source, given[name].span, "ratc starts the processes itself", deliberate=True)
    gpus: list[int] = []
    for item in _slurm_gpus(given, nodes, tasks, each):
        if isinstance(item, Carried) and item.path == "resources.gpus_per_node":
            gpus.append(item.value)
        yield item
    cpus: list[int] = []
    for item in _slurm_cpus(given, each, gpus[0] if gpus else None):
        if isinstance(item, Carried):
            cpus.append(item.value)
        yield item
    for name, number in (("mem-per-cpu", cpus), ("mem-per-gpu", gpus)):
        if name in given:
            yield _memory(given[name], number[0] if number else None)


def _range(option: Option) -> dict[str, int] | None:
    """A range of nodes, `2-8`, as the spec has it; None for one number, for a list and for any other text."""
    match = re.fullmatch(r"(\d{1,9})-(\d{1,9})", option.value)
    fewest, most = (int(text) for text in match.groups()) if match else (0, 0)
    return {"min": fewest, "max": most} if 0 < fewest <= most else None


def _count(given: _Options, name: str) -> int | None:
    number = given[name].number if name in given else None
    return number or None


def _unreadable(given: _Options, names: tuple[str, ...]) -> Iterator[Item]:
    for name in names:
        if name in given and not given[name].number:
            yield Left(given[name].source, given[name].span, "it is not a whole number above 0")


def _slurm_gpus(given: _Options, nodes: int | None, tasks: int | None, each: int | None) -> Iterator[Item]:
    for name in ("gres", "gpus-per-node"):
        if name in given:
            yield from _generic(given[name], "resources.gpus_per_node")
    if "gpus" in given:
        yield from _generic(given["gpus"], "resources.num_gpus")
    option = given.get("gpus-per-task")
    if option is None:
        return
    kind, _, number = option.value.rpartition(":")
    if kind:
        yield Left(kind, option.span, _CARD)
    if not re.fullmatch(r"\d{1,9}", number) or any(name in given for name in ("gres", "gpus-per-node", "gpus")):
        if not re.fullmatch(r"\d{1,9}", number):
            yield Left(option.source, option.span, "it is not a number of GPUs")
        else:
            yield Left(option.source, option.span, "the GPUs of a node or of the job are given, too", deliberate=True)
    elif each is not None and (nodes is not None or tasks in (None, 1)):
        yield Carried("resources.gpus_per_node", int(number) * each, option.span, option.source)
    elif tasks is not None and nodes is not None:
        yield Carried("resources.num_gpus", int(number) * tasks, option.span, option.source)
    else:
        lost = "Slurm chooses how many of the tasks run on a node: set `resources.nodes` and `gpus_per_node`"
        yield Left(option.source, option.span, lost)


def _generic(option: Option, path: str) -> Iterator[Item]:
    """`gpu:4`, `gpu:a100:4`, `gpu:1g.5gb:1`, `a100:4`, `4`, and lists of these and of other resources."""
    counts: list[int] = []
    for entry in option.value.split(","):
        words = re.split(r"[:=]", re.sub(r"\(.*?\)$", "", entry.strip().removeprefix("gres/").removeprefix("gres:")))
        if option.name == "gres" and words[0] != "gpu":
            yield Left(entry, option.span, "it asks for a resource other than GPUs")
            continue
        kind = words[1:] if words[0] == "gpu" else words
        number = kind.pop() if kind and re.fullmatch(r"\d{1,9}", kind[-1]) else "1"
        if len(kind) > 1 or any(not re.fullmatch(r"[\w.-]*[A-Za-z][\w.-]*", word) for word in kind):
            yield Left(option.source, option.span, "it is not a number of GPUs")
            return
        counts.append(int(number))
        for word in kind:
            yield Left(word, option.span, _CARD)
    if len(counts) > 1:
        yield Left(option.source, option.span, "it asks for several kinds of GPUs; a run has one")
    elif counts:
        yield Carried(path, counts[0], option.span, option.source)


def _slurm_cpus(given: _Options, each: int | None, gpus: int | None) -> Iterator[Item]:
    for name, factor in (("cpus-per-task", each), ("cpus-per-gpu", gpus)):
        option = given.get(name)
        if option is None or not option.number:
            continue
        if factor:
            yield Carried("resources.cpus", option.number * factor, option.span, option.source)
        else:
            whose = "task" if name == "cpus-per-task" else "GPU"
            yield Left(option.source, option.span, f"cores of one {whose}; set `resources.cpus`, the cores of a node")


def _memory(option: Option, factor: int | None) -> Item:
    match = re.fullmatch(r"(\d{1,9})([KMGT]?)B?", option.value.upper())
    if not match or not factor or not int(match[1]):
        return Left(
            option.source, option.span, "a share of a node's memory; set `resources.memory`, the memory of a node"
        )
    size = int(match[1]) * factor * _UNITS[match[2] or "M"]
    text = f"{size // 2**20}GB" if size % 2**20 == 0 else f"{-(-size // 2**10)}MB"
    return Carried("resources.memory", text, option.span, option.source)


def lsf(given: _Options) -> Iterator[Item]:
    """Hosts and GPUs of a bsub script: slots by `-n`, their spread by `span`, GPUs by `-gpu`."""
    slots = _count(given, "n")
    spread = re.search(r"\bspan\[\s*(ptile|hosts)\s*=\s*(\d{1,9})\s*\]", given["R"].value) if "R" in given else None
    each: int | None = None
    hosts: int | None = 1 if slots in (None, 1) and not spread else None
    if spread and spread[1] == "ptile" and int(spread[2]):
        each = int(spread[2])
        hosts = -(-slots // each) if slots else None
    elif spread and spread[1] == "hosts" and int(spread[2]) == 1:
        each, hosts = slots or 1, 1
    elif hosts:
        each = slots or 1
    if "n" in given:
        yield from _hosts(given["n"], slots, hosts, spread is not None)
    rest = re.sub(r"\bspan\[[^\]]*\]", "", given["R"].value).strip() if spread and hosts else ""
    if "R" in given and (rest or not (spread and hosts)):
        why = "a resource string whose unit and scope depend on the site; set `resources.memory`, the memory of a node"
        yield Left(f"R {rest or given['R'].value}", given["R"].span, why)
    if "gpu" in given:
        yield from _lsf_gpus(given["gpu"], each)


def _hosts(option: Option, slots: int | None, hosts: int | None, spread: bool) -> Iterator[Item]:
    if slots is None:
        yield Left(option.source, option.span, "it is not a whole number above 0")
    elif hosts is None:
        yield Left(option.source, option.span, "LSF chooses the number of hosts for it: set `resources.nodes`")
    elif spread:
        yield Carried("resources.nodes", hosts, option.span, option.source)
    else:
        yield Left(option.source, option.span, "ratc starts the processes itself", deliberate=True)


def _lsf_gpus(option: Option, each: int | None) -> Iterator[Item]:
    number = re.search(r"\bnum=(\d{1,9})(?:/(task|host))?(?![\w/])", option.value)
    if not number:
        yield Left(option.source, option.span, "it gives no number of GPUs")
    elif number[2] != "task":
        yield Carried("resources.gpus_per_node", int(number[1]), option.span, option.source)
    elif each is not None:
        yield Carried("resources.gpus_per_node", int(number[1]) * each, option.span, option.source)
    else:
        lost = "LSF chooses how many of the tasks run on a host: set `resources.nodes` and `gpus_per_node`"
        yield Left(option.source, option.span, lost)
    for part in re.split(r"[: ]", option.value):
        if part and not part.startswith("num="):
            yield Left(part, option.span, _CARD if part.startswith("gmodel=") else "the spec has no such key")
