"""Slurm's answers -> the cluster. Formats: scontrol(1), slurm.conf(5); recorded in tests/unit/ratc/probe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ratc.probe.inventory import Gpus, Host, Inventory, Queue

#: The commands, by the names of their answers for the readers below. They change nothing.
COMMANDS = {
    "nodes": ("scontrol", "show", "node", "-a", "-o"),
    "partitions": ("scontrol", "show", "partition", "-a", "-o"),
    "config": ("scontrol", "show", "config"),
}
NEEDED = ("nodes", "partitions")

#: Processors that cluster facts have a word for: `Arch` of a node is the machine's name by uname(2).
PROCESSORS = ("x86_64", "aarch64", "ppc64le")
#: A key of a line of `scontrol -o`: a word before `=`, at the line's start or behind a space.
_KEY = re.compile(r"(?:^|\s)([A-Za-z][A-Za-z0-9_/:]*)=")
_PREEMPTION = {"REQUEUE": "requeue", "SUSPEND": "suspend", "GANG,SUSPEND": "suspend", "CANCEL": "cancel"}


def inventory(answers: Mapping[str, str]) -> Inventory | None:
    """Return the inventory in the answers, or None if they hold no nodes or no partitions."""
    nodes = [fields for line in answers["nodes"].splitlines() if "NodeName" in (fields := _fields(line))]
    partitions = [fields for line in answers["partitions"].splitlines() if "PartitionName" in (fields := _fields(line))]
    hosts = [host for fields in nodes if (host := _host(fields))]
    if not hosts or not partitions:
        return None
    config = _config(answers.get("config", ""))
    members = {fields["NodeName"]: fields.get("Partitions", "").split(",") for fields in nodes}
    queues = [
        _partition(fields, [name for name, parts in members.items() if fields["PartitionName"] in parts], config)
        for fields in partitions
        if fields.get("RootOnly") != "YES" and fields.get("State", "UP") != "INACTIVE"
    ]
    site, questions = _site(config)
    return Inventory(config.get("ClusterName", "slurm"), "slurm", hosts, queues, site, questions)


def _fields(line: str) -> dict[str, str]:
    """``Key=value`` pairs of a line; values such as an operating system's name hold spaces."""
    keys = list(_KEY.finditer(line))
    ends = [*(key.start() for key in keys[1:]), len(line)]
    return {key[1]: line[key.end() : end].strip() for key, end in zip(keys, ends, strict=False)}


def _config(text: str) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _host(fields: Mapping[str, str]) -> Host | None:
    """A node; None for one that is only planned (FUTURE), and for a line that says nothing of cores."""
    cpus, memory = _number(fields.get("CPUEfctv")) or _number(fields.get("CPUTot")), _number(fields.get("RealMemory"))
    if not cpus or "FUTURE" in fields.get("State", ""):
        return None
    if memory:
        memory -= _number(fields.get("MemSpecLimit")) or 0
    features = fields.get("AvailableFeatures", "(null)")
    named = tuple(word for word in features.split(",") if word not in ("", "(null)"))
    processor = fields.get("Arch")
    known = processor if processor in PROCESSORS else None
    return Host(fields["NodeName"], cpus, memory, _gpus(fields.get("Gres", "")), named, known)


def _gpus(gres: str) -> tuple[Gpus, ...]:
    """The GPUs of ``gpu:h100:4(S:0-1)``, ``gpu:8`` or ``gpu:a100:2,gpu:v100:2,shard:8``."""
    found = re.findall(r"(?:^|,)gpu:(?:([^:,()]+):)?(\d+)", gres)
    return tuple(Gpus(kind or None, int(count)) for kind, count in found if int(count))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _time(text: str | None) -> str | None:
    """Return a time in the schema's form; None for UNLIMITED, NONE and any other text."""
    return text if text and re.fullmatch(r"(\d+-)?\d{1,4}(:\d{1,2}){1,2}", text) else None


def _partition(fields: Mapping[str, str], hosts: list[str], config: Mapping[str, str]) -> Queue:
    # slurm.conf(5): a partition's own limits replace those of the whole cluster, and one of the two kinds excludes the
    # other.
    own = any(_number(fields.get(key)) for key in ("MaxMemPerNode", "MaxMemPerCPU"))
    of = fields if own else config
    memory, per_cpu = _number(of.get("MaxMemPerNode")), _number(of.get("MaxMemPerCPU"))
    fewest = _number(fields.get("MinNodes")) or 0
    limits: dict[str, Any] = {
        "default": True if fields.get("Default") == "YES" else None,
        "max_nodes": _number(fields.get("MaxNodes")) or None,
        "min_nodes": fewest if fewest > 1 else None,
        "max_cpus_per_node": _number(fields.get("MaxCPUsPerNode")) or None,
        "max_memory_per_node": f"{memory}MB" if memory else None,
        "max_memory_per_cpu": f"{per_cpu}MB" if per_cpu else None,
        "accounts": _allowed(fields, "Accounts"),
        "qos": _allowed(fields, "Qos"),
        "default_walltime": _time(fields.get("DefaultTime")),
        "max_walltime": _time(fields.get("MaxTime")),
    }
    questions = _forbidden(fields, config)
    plugin = config.get("PreemptType", "")
    if plugin == "preempt/partition_prio":
        limits["preemption"] = _PREEMPTION.get(fields.get("PreemptMode", "OFF"))
    elif plugin == "preempt/qos":
        questions.append(
            "preemption: Slurm preempts jobs by their QoS here; what happens to such a job: none, "
            "requeue, suspend or cancel?"
        )
    if limits.get("preemption"):
        limits["grace_seconds"] = _number(fields.get("GraceTime")) or None
    total = _number(fields.get("TotalNodes"))
    if hosts and total and total > len(hosts):
        questions.append(f"nodes: it has {total} nodes, and the answer shows {len(hosts)}; what are the others?")
    given = {key: value for key, value in limits.items() if value is not None}
    return Queue(fields["PartitionName"], tuple(hosts), given, tuple(questions))


def _allowed(fields: Mapping[str, str], what: str) -> list[str] | None:
    """The names that a partition lets in; None for all."""
    text = fields.get(f"Allow{what}", "ALL")
    return None if text in ("ALL", "", "(null)", "N/A") else text.split(",")


def _forbidden(fields: Mapping[str, str], config: Mapping[str, str]) -> list[str]:
    """Return questions on rules of a partition that may keep jobs out, and that its configuration does not settle."""
    questions = []
    state = fields.get("State", "UP")
    if state != "UP":
        questions.append(f"state: the partition is {state} and starts no jobs now; will it be UP again?")
    groups = _allowed(fields, "Groups")
    if groups:
        questions.append(f"groups: only members of {' and '.join(groups)} may submit; are you one?")
    for what, key in (("Accounts", "account"), ("Qos", "QOS")):
        denied = fields.get(f"Deny{what}", "")
        if denied not in ("", "(null)", "NONE", "N/A") and _allowed(fields, what) is None:
            questions.append(f"{what.lower()}: jobs of the {key} {denied} are refused; which is yours?")
    enforced = {word.strip().lower() for word in config.get("AccountingStorageEnforce", "none").split(",")}
    if enforced & {"associations", "limits", "qos", "safe", "all"}:
        questions.append("account_required: accounting is enforced here; must a job name its account?")
    per_cpu = _number((fields if _number(fields.get("DefMemPerCPU")) else config).get("DefMemPerCPU"))
    if per_cpu and not _number(fields.get("MaxMemPerCPU")) and not _number(config.get("MaxMemPerCPU")):
        questions.append(f"max_memory_per_cpu: a CPU comes with {per_cpu} MB; may a job ask for more?")
    return questions


def _site(config: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the top-level keys in Slurm's configuration, and questions on the missing ones."""
    site: dict[str, Any] = {"version": config.get("SLURM_VERSION")}
    questions = []
    if config:
        # --gpus-per-node needs select/cons_tres (sbatch(1), --gpus-per-node); elsewhere GPUs are plain GRES.
        typed = config.get("SelectType", "").endswith("cons_tres")
        site["gpu_request"] = "gpus-per-node" if typed else "gres"
        most = _number(config.get("MaxArraySize"))
        # slurm.conf(5): the largest index is one less than MaxArraySize, and the compiler counts from 1.
        site["max_array_size"] = most - 1 if most and most > 1 else None
        if config.get("TopologyPlugin") == "topology/block":
            questions.append("node_types: the topology has blocks; how many nodes are in one (`block_nodes`)?")
    else:
        questions.append("gpu_request: `--gpus-per-node` (gpus-per-node) or `--gres` (gres)?")
    if "pyxis" in config.get("PlugStackConfig", ""):
        site["container"] = "pyxis"
    return site, tuple(questions)
