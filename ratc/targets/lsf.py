"""``--target lsf``: a script for bsub's standard input, the script of a node, and the files that both use.

Rules: IBM Spectrum LSF 10.1, bsub, blaunch, lsf.conf and "LSF resource requirement strings". jsrun: IBM JSM.
"""

from __future__ import annotations

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Plan
from ratc.shell import line, printable, render
from ratc.targets import job
from ratc.targets.artifact import Artifact, Place, Pool, Shape
from ratc.units import duration, lsf_time

NAME = "job.lsf"
_UNITS = {"KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
#: Characters with a meaning of their own in a job's name for bsub's parser or LSF's array syntax.
_NOT_IN_NAMES = "\"'\\[]%$`"


def files(
    plan: Plan, place: Place, shape: Shape | Pool | None
) -> tuple[tuple[Artifact, ...] | None, tuple[Diagnostic, ...]]:
    """The files of an LSF job beside its lock. Codes: R401, R405."""
    settings = plan.settings
    name = plan.values["job.name"]
    if any(char in _NOT_IN_NAMES for char in name.value) or name.value.startswith("-"):
        message = f"LSF does not allow any of {' '.join(_NOT_IN_NAMES)} in a job's name, and no `-` at its start"
        return None, (Diagnostic("R401", message, settings["resources.job_name"].span),)
    if plan.facts["cluster.container"].value == "pyxis" and settings["environment.container"].value is not None:
        message = "pyxis starts containers through srun, which LSF does not have"
        span = plan.facts["cluster.container"].span
        return None, (Diagnostic("R401", message, span, helps=("use `container: apptainer` in the facts",)),)
    constraint = plan.values["job.constraint"]
    if constraint.value is not None and any(char in "[]" for char in constraint.value):
        message = "LSF takes no brackets within `select[]`"
        return None, (Diagnostic("R401", message, plan.facts["cluster.name"].span),)
    found = []
    for key, instead in (("partition", "use `queue`"), ("qos", "LSF has service classes in its queues")):
        if settings[f"resources.{key}"].value is not None and settings["resources.queue"].value is None:
            message, span = f"`{key}` has no effect with the target `lsf`", settings[f"resources.{key}"].span
            found.append(Diagnostic("R405", message, span, helps=(instead,), severity=Severity.WARNING))
    jsrun = plan.values["job.start"].value == "jsrun"
    if (why := _one_size(plan)) is not None:
        span, helps = settings["resources.nodes"].span, ("give `nodes` as one number",)
        return None, (Diagnostic("R401", why, span, helps=helps),)
    blaunch = plan.values["job.start"].value == "blaunch" and plan.values["parallel.nodes"].value > 1
    rank = "${JSM_NAMESPACE_RANK:?}" if jsrun else "$5"
    node = job.node(plan, place, NAME, rank, shape, given=blaunch)
    script = Artifact(NAME, _script(plan, place, node, shape), consumer="bash")
    engine = [] if isinstance(shape, Pool) else job.engine_files(plan, place)
    return (*engine, node, script), tuple(found)


def _one_size(plan: Plan) -> str | None:
    """Return why an elastic plan cannot be asked for here; None if it can."""
    values, facts = plan.values, plan.facts
    if not plan.sizes:
        return None
    if values["job.start"].value == "jsrun":
        return "`-nnodes`, which a job for jsrun asks with, is one number, and the nodes are a range"
    counted = [key for key in ("rusage", "memory_limit") if facts[f"cluster.lsf.{key}"].value == "job"]
    if counted and values["job.memory_bytes_per_node"].value is not None:
        return "this site counts memory by job, and the nodes are a range: their memory is not one number"
    return None


def _script(plan: Plan, place: Place, node: Artifact, shape: Shape | Pool | None) -> str:
    return render(
        "job.lsf.j2",
        **job.common(plan, place, shape),
        name=NAME,
        directives=_directives(plan, shape if isinstance(shape, Shape) else None),
        node_digest=node.digest.removeprefix("sha256:"),
        container=job.container(plan),
        slots=str(_slots_of_a_node(plan)),
        jsrun=plan.values["job.start"].value == "jsrun",
        blaunch=plan.values["job.start"].value == "blaunch" and plan.values["parallel.nodes"].value > 1,
        health=job.checks_health(plan),
        given=(*plan.settings["environment.secrets"].value, *job.GIVEN),
    )


def _directives(plan: Plan, shape: Shape | None) -> list[tuple[str, list[str]]]:
    """Return groups of `#BSUB …` lines, derived values after their reasons."""
    values = plan.values
    queue, account = values["job.partition"], values["job.account"]
    who = [
        ("-J", _name(values["job.name"].value, shape), ""),
        ("-q", queue.value, job.why(plan, "job.partition")),
        ("-P", account.value, ""),
    ]
    walltime, lead = values["job.walltime_seconds"].value, values["job.stop_before_seconds"].value
    end = [
        (
            "-wt",
            f"'{-(-lead // 60)}' -wa 'USR2'" if walltime else None,
            f"{duration(-(-lead // 60) * 60)} before the end of the walltime, this script asks the run to save",
        ),
        ("-Q", '"99"' if values["job.requeue"].value else None, job.why(plan, "job.requeue")),
        ("-r", "" if values["job.requeue"].value else None, "LSF starts the job again if a host fails"),
        (
            "-o",
            f"{values['experiment_name'].value}-{'%J.%I' if shape else '%J'}.out",
            "in the folder where bsub was called; LSF appends to it",
        ),
    ]
    groups = (("The job", who), ("What the job asks for", _resources(plan)), ("How the job ends and is requeued", end))
    return [(title, _lines(lines)) for title, lines in groups]


def _resources(plan: Plan) -> list[tuple[str, str | None, str]]:
    values = plan.values
    nodes, walltime = values["parallel.nodes"].value, values["job.walltime_seconds"].value
    time = ("-W", lsf_time(walltime) if walltime else None, job.why(plan, "job.walltime_seconds"))
    if values["job.start"].value == "jsrun":
        return [("-nnodes", str(nodes), "whole nodes"), time]
    slots = _slots_of_a_node(plan)
    why = job.why(plan, "job.cpus_per_node")
    sections, limit = _requirement(plan, nodes, slots)
    return [
        ("-n", *_slots(plan, slots, why)),
        ("-R", f'"{" ".join(section for section, _ in sections)}"', "; ".join(why for _, why in sections if why)),
        ("-gpu", _gpus(plan), ""),
        limit,
        time,
    ]


def _slots_of_a_node(plan: Plan) -> int:
    values = plan.values
    return int(values["job.cpus_per_node"].value or values["parallel.processes_per_node"].value)


def _slots(plan: Plan, slots: int, why: str) -> tuple[str, str]:
    """Return the slots, and where they come from; of an elastic plan the fewest and the most."""
    ends = sorted({plan.node_counts[0], plan.node_counts[-1]})
    words = " to ".join(map(str, ends))
    return ",".join(
        str(nodes * slots) for nodes in ends
    ), f"{words} x {slots} slots, one core each{': ' if why else ''}{why}"


def _gpus(plan: Plan) -> str | None:
    """Return the value of `-gpu`, always per host: a bare number means per task at some sites. None on the CPU."""
    values = plan.values
    if values["hardware.device"].value == "cpu":
        return None
    kind = values["job.gpu_type"].value
    model = f":gmodel={kind}" if kind else ""
    return f'"num={values["parallel.processes_per_node"].value}/host:mode=exclusive_process:j_exclusive=yes{model}"'


def _requirement(plan: Plan, nodes: int, slots: int) -> tuple[list[tuple[str, str]], tuple[str, str | None, str]]:
    """Return the sections of the one `-R` with their reasons, and `-M`. Memory is counted by the site's facts."""
    values, facts = plan.values, plan.facts
    constraint, memory = values["job.constraint"], values["job.memory_bytes_per_node"].value
    sections = []
    if constraint.value:
        sections.append((f"select[{constraint.value}]", job.why(plan, "job.constraint")))
    most = None
    if memory is not None:
        rusage, limit = facts["cluster.lsf.rusage"].value, facts["cluster.lsf.memory_limit"].value
        reserved = {"job": memory * nodes, "task": memory // slots, "host": memory}[rusage]
        why = job.why(plan, "job.memory_bytes_per_node")
        reason = f"memory for each {rusage} at this site{': ' if why else ''}{why}"
        sections.append((f"rusage[mem={_size(plan, reserved, _rusage_unit(plan))}]", reason))
        limited = {"job": memory * nodes, "process": memory}[limit]
        most = _size(plan, limited, facts["cluster.lsf.limit_unit"].value)
    span = f"span[ptile={slots}]" if nodes > 1 else "span[hosts=1]"
    sections.append((span, f"{slots} slots on each host"))
    return sections, ("-M", most, f"for each {facts['cluster.lsf.memory_limit'].value} at this site")


def _rusage_unit(plan: Plan) -> str:
    """Without LSF_UNIT_FOR_LIMITS, `-M` counts in KB and `rusage[mem=]` in MB (lsf.conf, bsub -R)."""
    given, limit = (str(plan.facts[f"cluster.lsf.{key}"].value or "") for key in ("rusage_unit", "limit_unit"))
    return given or ("MB" if limit == "KB" else limit)


def _size(plan: Plan, size: int, site_unit: str) -> str:
    """Return bytes as LSF text: with a unit if this LSF takes one, else a number in the site's unit."""
    facts = plan.facts
    if facts["cluster.lsf.explicit_units"].value:
        unit = "GB" if size % _UNITS["GB"] == 0 else "MB"
        return f"{-(-size // _UNITS[unit])}{unit}"
    return str(-(-size // _UNITS[site_unit]))


def _lines(lines: list[tuple[str, str | None, str]]) -> list[str]:
    """Return the lines with each reason on its own: LSF's documentation has no comment behind a directive."""
    text = []
    for option, value, why in lines:
        if value is not None:
            text += [f"# {option}: {line(why)}"] if why else []
            text.append(printable(f"#BSUB {option} {value}".rstrip()))
    return text


def _name(name: str, shape: Shape | None) -> str:
    if shape:
        limit = f"%{shape.max_parallel}" if shape.max_parallel else ""
        return f'"{name}[1-{shape.points}]{limit}"'
    return f'"{name}"' if " " in name or not name.isascii() else name
