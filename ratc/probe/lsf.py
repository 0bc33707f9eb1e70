"""LSF's answers -> the cluster. Formats: IBM Spectrum LSF 10.1, command reference."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from ratc.probe.inventory import Gpus, Host, Inventory, Queue

#: The commands, by the names of their answers for the readers below. They change nothing.
COMMANDS = {
    "lsid": ("lsid",),
    "hosts": ("bhosts", "-w"),
    "machines": ("lshosts", "-w"),
    "queues": ("bqueues", "-l"),
    "gpus": ("lshosts", "-gpu", "-w"),
    "load": ("lsload", "-gpuload", "-w"),
    "groups": ("bmgroup", "-w", "-r"),
}
NEEDED = ("lsid", "hosts", "machines", "queues")

_MIB = {"K": 2**-10, "M": 1, "G": 2**10, "T": 2**20, "P": 2**30}
#: The default limits of a queue, up to the largest ones.
_DEFAULT = re.compile(r"^ ?DEFAULT LIMITS:((?:.*\n)*?)(?=^ ?MAXIMUM LIMITS:|^SCHEDULING|\Z)", re.MULTILINE)
#: bhosts: states of hosts that have no slots for jobs.
_GONE = ("unavail", "unlicensed")


def inventory(answers: Mapping[str, str]) -> Inventory | None:
    """Return the inventory in the answers, or None if they hold no hosts or no queues."""
    slots = _slots(answers["hosts"])
    memory = _memory(answers["machines"])
    models = _gpus(answers.get("gpus", ""), answers.get("load", ""))
    hosts = [Host(name, count, memory.get(name), models.get(name, ())) for name, count in slots.items()]
    groups = _groups(answers.get("groups", ""))
    queues = [_queue(block, list(slots), groups) for block in re.split(r"^QUEUE:", answers["queues"], flags=re.M)[1:]]
    if not hosts or not queues:
        return None
    cluster = re.search(r"^My cluster name is (\S+)", answers["lsid"], re.MULTILINE)
    version = re.search(r"\bLSF\b.*?(\d+(?:\.\d+)+)", answers["lsid"])
    site: dict[str, Any] = {"version": version[1] if version else None}
    questions = [
        "lsf.limit_unit: LSF_UNIT_FOR_LIMITS of lsf.conf: KB, MB, GB or TB?",
        "lsf.memory_limit: does `-M` limit a process or a job (LSB_JOB_MEMLIMIT=Y)?",
        "lsf.rusage: is `rusage[mem=]` for the job, each task or each host (RESOURCE_RESERVE_PER_TASK)?",
    ]
    if not models:
        questions.append("node_types: `lshosts -gpu` shows no GPUs; does the cluster have GPUs?")
    return Inventory(cluster[1] if cluster else "lsf", "lsf", hosts, queues, site, tuple(questions))


def _table(text: str, first: str) -> list[dict[str, str]]:
    """Rows of a table under a heading that begins with a word; a first column left out repeats the one above."""
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.split()[:1] == [first]), None)
    if start is None:
        return []
    names, rows, last = lines[start].split(), [], ""
    for line in lines[start + 1 :]:
        words = line.split()
        if line[:1].isspace() and words and last:
            words.insert(0, last)
        # The last column may be of several words, such as the resources in brackets.
        row = dict(zip(names, [*words[: len(names) - 1], " ".join(words[len(names) - 1 :])], strict=False))
        if len(words) >= 2:
            last = words[0]
            rows.append(row)
    return rows


def _slots(text: str) -> dict[str, int]:
    """Job slots of each host: `bhosts -w`, MAX."""
    rows = _table(text, "HOST_NAME")
    return {
        row["HOST_NAME"]: int(row["MAX"])
        for row in rows
        if row.get("MAX", "").isdigit() and int(row["MAX"]) and row.get("STATUS") not in _GONE
    }


def _memory(text: str) -> dict[str, int | None]:
    """Memory of each host in MiB: `lshosts -w`, maxmem."""
    return {row["HOST_NAME"]: _size(row.get("maxmem", "-")) for row in _table(text, "HOST_NAME")}


def _size(text: str) -> int | None:
    match = re.fullmatch(r"([0-9.]+)([KMGTP])B?", text)
    return int(float(match[1]) * _MIB[match[2]]) if match else None


def _gpus(models: str, memory: str) -> dict[str, tuple[Gpus, ...]]:
    """The GPUs of each host: `lshosts -gpu -w` has the whole model's name, `lsload -gpuload` the memory."""
    found: dict[str, dict[str, int]] = {}
    for row in _table(models, "HOST_NAME"):
        model = row.get("gpu_model")
        if model and row.get("gpu_id", "").isdigit():
            kinds = found.setdefault(row["HOST_NAME"], {})
            kinds[model] = kinds.get(model, 0) + 1
    sizes = {row["HOST_NAME"]: _size(row.get("gpu_mtotal", "-")) for row in _table(memory, "HOST_NAME")}
    return {
        host: tuple(Gpus(model, count, sizes.get(host)) for model, count in kinds.items())
        for host, kinds in found.items()
    }


def _groups(text: str) -> dict[str, list[str]]:
    """The hosts of each host group: `bmgroup -w -r`."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: row[1:] for row in rows if len(row) > 1 and row[0] != "GROUP_NAME"}


def _queue(block: str, hosts: list[str], groups: Mapping[str, list[str]]) -> Queue:
    """One queue of `bqueues -l`, from behind ``QUEUE:`` to the next."""
    name = block.split(maxsplit=1)[0]
    default, longest = _limits(block, "RUNLIMIT")
    policies = re.search(r"^SCHEDULING POLICIES:(.*)$", block, re.MULTILINE)
    preempted = bool(policies and re.search(r"\bPREEMPTABLE\b", policies[1]))
    limits: dict[str, Any] = {
        "default": True if "This is the default queue" in block else None,
        "default_walltime": _walltime(default),
        "max_walltime": _walltime(longest),
        # LSF suspends preempted jobs unless the queue's job controls say otherwise.
        "preemption": "suspend" if preempted else None,
    }
    members, questions = _members(block, hosts, groups)
    given = {key: value for key, value in limits.items() if value is not None}
    return Queue(name, tuple(members), given, (*questions, *_forbidden(block)))


def _forbidden(block: str) -> Iterator[str]:
    """Yield questions on rules of a queue that may keep jobs out, and that its configuration does not settle."""
    state = re.search(r"\b(?:Open|Closed):\w+", block)
    if state and state[0] not in ("Open:Active", "Open:Inact_Win"):
        yield f"state: the queue is {state[0]}: it takes no jobs now, or starts none; will it be Open:Active again?"
    users = re.search(r"^USERS:[ \t]*(.*(?:\n[ \t]+\S.*)*)", block, re.MULTILINE)
    names = users[1].split() if users else []
    if names and names != ["all"]:
        shown = ", ".join(name.rstrip("/") for name in names)
        yield f"groups: those who may submit are {shown} (`~` is for those who may not); are you one?"
    if limit := _value(_maximum(block), "MEMLIMIT"):
        yield f"max_memory_per_node: its MEMLIMIT is {limit}; does it count a process, or all of a job on a host?"


def _value(block: str, what: str) -> str | None:
    """The text that begins under the heading of a limit: a number and its unit."""
    for heading, row in pairwise(block.splitlines()):
        if what in heading.split():
            column = heading.index(what)
            values = [(match.start(), match[0]) for match in re.finditer(r"[0-9.]+ [KMGTP]B?\b", row)]
            return min(values, key=lambda value: abs(value[0] - column))[1] if values else None
    return None


def _limits(block: str, what: str) -> tuple[float | None, float | None]:
    """The default and the largest value of a limit in minutes: ``RUNLIMIT`` over ``60.0 min of hostA``."""
    default = _DEFAULT.search(block)
    return _minutes(default[1] if default else "", what), _minutes(_maximum(block), what)


def _maximum(block: str) -> str:
    """A queue without its default limits."""
    return _DEFAULT.sub("", block, count=1)


def _minutes(text: str, what: str) -> float | None:
    lines = text.splitlines()
    for heading, row in pairwise(lines):
        if what in heading.split():
            # Limits stand side by side, each above its value: the value that begins under the heading is its own.
            values = [(match.start(), float(match[1])) for match in re.finditer(r"([0-9.]+) min\b", row)]
            column = heading.index(what)
            return min(values, key=lambda value: abs(value[0] - column))[1] if values else None
    return None


def _walltime(minutes: float | None) -> str | None:
    return f"{int(minutes) // 60:02}:{int(minutes) % 60:02}" if minutes else None


def _members(block: str, hosts: list[str], groups: Mapping[str, list[str]]) -> tuple[list[str], tuple[str, ...]]:
    """The hosts of a queue: names, groups (``gpu_hosts/``), preferences (``host1+2``), ``all`` and ``~host``."""
    match = re.search(r"^HOSTS:(.*(?:\n[ \t]+\S.*)*)", block, re.MULTILINE)
    words = match[1].split() if match else ["all"]
    chosen: list[str] = []
    unknown = []
    for word in words:
        out, bare = word.startswith("~"), re.sub(r"\+\d*$", "", word.lstrip("~"))
        named = hosts if bare == "all" else groups.get(bare.rstrip("/"), groups.get(bare, []))
        if bare == "all" or named:
            several = hosts if named == ["all"] else [host.rstrip("/") for host in named]
        elif bare in hosts:
            several = [bare]
        else:
            several = []
            unknown.append(word)
        chosen = [host for host in chosen if host not in several] if out else [*chosen, *several]
    questions = (f"nodes: which hosts are {', '.join(unknown)}?",) if unknown else ()
    return [host for host in hosts if host in chosen], questions
