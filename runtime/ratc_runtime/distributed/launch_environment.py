"""The launcher of this process and its place among the others, from environment variables alone.

torchrun and Accelerate set RANK, LOCAL_RANK and WORLD_SIZE; under a bare `srun` or `jsrun` they follow from Slurm's and
JSM's variables. Hosts and job are the scheduler's, with any launcher. Sources: torchrun's manual, srun(1) "OUTPUT
ENVIRONMENT VARIABLES", IBM Spectrum LSF 10.1 "Environment variables", IBM JSM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

#: Ports below the ephemeral range, as in the compiled scripts.
FIRST_PORT, PORTS = 10_000, 19_000
#: Distances of the ports of one job's starts and of one array's tasks. Adjacent ports belong to other jobs.
SPREAD, INDEX_SPREAD = 11_743, 14_343
#: What to do with variables that another command left in a shell.
UNSET = "`unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT`"


@dataclass(frozen=True)
class LaunchEnvironment:
    """One process of `world_size`: its `rank` among all, and its `local_rank` on its node.

    `scheduler` is `slurm`, `lsf` or None; `hosts` are in the scheduler's order. `restarts` counts the earlier starts of
    the job.
    """

    launcher: str | None
    scheduler: str | None
    rank: int
    local_rank: int
    world_size: int
    hosts: tuple[str, ...]
    job: str | None
    restarts: int


def detect(environment: Mapping[str, str]) -> LaunchEnvironment:
    """Return the launcher and place of this process. Without a launcher it is rank 0 of 1.

    Raises ValueError if a launcher's variables are incomplete or no numbers.
    """
    scheduler = "slurm" if "SLURM_JOB_ID" in environment else "lsf" if "LSB_JOBID" in environment else None
    launcher, place = _place(environment)
    hosts = {"slurm": _slurm_hosts, "lsf": _lsf_hosts}[scheduler](environment) if scheduler else ()
    return LaunchEnvironment(launcher, scheduler, *place, hosts, _job(environment, scheduler), _restarts(environment))


def set_torchrun_variables(environment: MutableMapping[str, str]) -> None:
    """Set torchrun's variables if a bare `srun` or `jsrun` started this process as one of several.

    The rendezvous is on the first process's host, on a port derived from the job's number. Raises ValueError as
    `detect`.
    """
    here = detect(environment)
    if here.launcher not in ("srun", "jsrun") or here.world_size == 1:
        return
    environment.update(RANK=str(here.rank), LOCAL_RANK=str(here.local_rank), WORLD_SIZE=str(here.world_size))
    # The first host of a job that jsrun starts is the launch node, where no rank runs.
    hosts = here.hosts[1:] if here.launcher == "jsrun" else here.hosts
    environment.setdefault("MASTER_ADDR", hosts[0] if hosts else "localhost")
    environment.setdefault("MASTER_PORT", str(FIRST_PORT + _number(environment, here.restarts) % PORTS))


def is_started(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher is present. RANK alone may be left over from another command."""
    return any(name in environment for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "JSM_NAMESPACE_RANK"))


def _number(environment: Mapping[str, str], restarts: int) -> int:
    """Return a number unique to this start, as in job scripts. Tasks of a Slurm array have own ids, those of LSF share
    one.
    """
    job = environment.get("SLURM_JOB_ID") or environment.get("LSB_JOBID", "0")
    index = "0" if "SLURM_JOB_ID" in environment else environment.get("LSB_JOBINDEX", "0")
    first, second = (int(text) if text.isdecimal() else 0 for text in (job, index))
    return first + second * INDEX_SPREAD + restarts * SPREAD


def record(environment: Mapping[str, str]) -> dict[str, object] | None:
    """Return the results' entry for the job; None if there is no scheduler."""
    here = detect(environment)
    if here.scheduler is None:
        return None
    return {"scheduler": here.scheduler, "id": here.job, "restarts": here.restarts, "hosts": list(here.hosts)}


def _place(environment: Mapping[str, str]) -> tuple[str | None, tuple[int, int, int]]:
    """Return the launcher, and (rank, local rank, world size)."""
    launchers = (
        ("torchrun", "RANK", "LOCAL_RANK", "WORLD_SIZE"),
        ("jsrun", "JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"),
        ("srun", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
    )
    for launcher, *names in launchers:
        if launcher == "srun" and "SLURM_STEP_ID" not in environment:
            continue  # a batch script has SLURM_PROCID too, and is not a task
        if launcher == "torchrun" and not any(name in environment for name in ("RANK", "WORLD_SIZE")):
            continue
        if names[0] not in environment and launcher != "torchrun":
            continue
        missing = [name for name in names if name not in environment]
        if missing:
            raise ValueError(f"{launcher} sets {', '.join(names)}, and {', '.join(missing)} is missing")
        try:
            rank, local, size = (int(environment[name]) for name in names)
        except ValueError:
            shown = ", ".join(f"{name}={environment[name]!r}" for name in names)
            raise ValueError(f"{shown}: these are not whole numbers") from None
        if not 0 <= rank < size:
            raise ValueError(f"{names[0]}={rank} is not a rank of {names[2]}={size}")
        return launcher, (rank, local, size)
    return None, (0, 0, 1)


def _job(environment: Mapping[str, str], scheduler: str | None) -> str | None:
    if scheduler == "slurm":
        array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
        return f"{array}_{task}" if array and task else environment["SLURM_JOB_ID"]
    if scheduler == "lsf":
        index = environment.get("LSB_JOBINDEX", "0")
        return environment["LSB_JOBID"] if index == "0" else f"{environment['LSB_JOBID']}[{index}]"
    return None


def _restarts(environment: Mapping[str, str]) -> int:
    # LSF counts none: its job script does.
    text = environment.get("SLURM_RESTART_COUNT") or environment.get("RATC_RESTARTS", "0")
    return int(text) if text.isdecimal() else 0


def _slurm_hosts(environment: Mapping[str, str]) -> tuple[str, ...]:
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if environment.get(name):
            return tuple(expand(environment[name]))
    return ()


def expand(hostlist: str) -> list[str]:
    """Expand a Slurm host list, as `scontrol show hostnames` does: ``n[1-3,07],gpu`` is n1 n2 n3 n07 gpu.

    Zeros in front are kept, and several brackets in one name are all expanded. Raises ValueError on a broken list.
    """
    hosts: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", hostlist):
        names = [""]
        for literal, ranges in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", part):
            choices = [literal] if literal else _numbers(ranges)
            names = [name + choice for name in names for choice in choices]
        hosts += names
    if hostlist.count("[") != hostlist.count("]"):
        raise ValueError(f"{hostlist!r} is not a host list of Slurm's")
    return hosts


def _numbers(ranges: str) -> list[str]:
    numbers = []
    for part in ranges.split(","):
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        if not match:
            raise ValueError(f"[{ranges}] is not a range of hosts")
        first, last = match[1], match[2] or match[1]
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def _lsf_hosts(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return each host once, in order. The host file has a line per slot, LSB_MCPU_HOSTS pairs of host and slots."""
    file = Path(environment.get("LSB_DJOB_HOSTFILE") or "/nonexistent")
    try:
        names = file.read_text().split()
    except OSError:
        names = environment.get("LSB_MCPU_HOSTS", "").split()[::2] or environment.get("LSB_HOSTS", "").split()
    return tuple(dict.fromkeys(names))
