"""``--target slurm``: a script for sbatch, the script of a node, and the files that both use.

Rules: sbatch(1), srun(1).
"""

from __future__ import annotations

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Plan
from ratc.shell import line, printable, quote, render
from ratc.targets import job
from ratc.targets.artifact import Artifact, Place, Pool, Shape
from ratc.units import duration, slurm_time

NAME = "job.sbatch"


def files(
    plan: Plan, place: Place, shape: Shape | Pool | None
) -> tuple[tuple[Artifact, ...] | None, tuple[Diagnostic, ...]]:
    """The files of a Slurm job beside its lock. Code: R405."""
    found = []
    settings = plan.settings
    if settings["resources.queue"].value is not None and settings["resources.partition"].value is None:
        message, span = "`queue` has no effect with the target `slurm`", settings["resources.queue"].span
        found.append(Diagnostic("R405", message, span, helps=("use `partition`",), severity=Severity.WARNING))
    rank = "${SLURM_PROCID:?}" if job.starts_processes(plan) else "${SLURM_NODEID:?}"
    node = job.node(plan, place, NAME, rank, shape)
    script = Artifact(NAME, _script(plan, place, shape), consumer="bash")
    engine = [] if isinstance(shape, Pool) else job.engine_files(plan, place)
    return (*engine, node, script), tuple(found)


def _script(plan: Plan, place: Place, shape: Shape | Pool | None) -> str:
    array = shape if isinstance(shape, Shape) else None
    return render(
        "job.sbatch.j2",
        **job.common(plan, place, shape),
        name=NAME,
        directives=[(title, _aligned(lines)) for title, lines in _directives(plan, array)],
        container=plan.settings["environment.container"].value is not None,
        start=_start(plan),
        health=job.checks_health(plan),
        task='"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if array else "$SLURM_JOB_ID",
    )


def _directives(plan: Plan, shape: Shape | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return groups of (directive, reason). Plain words reach sbatch's own parser, which has quotes and backslashes."""
    values = plan.values
    given = {key: values[f"job.{key}"].value for key in ("partition", "account", "qos", "constraint")}
    walltime, memory = values["job.walltime_seconds"], values["job.memory_bytes_per_node"]
    megabytes = -(-(memory.value or 0) // 2**20)  # rounded up: `--mem=0` is all that a node has
    cpus, lead = values["job.cpus_per_node"], values["job.stop_before_seconds"].value
    who = [("--job-name", values["job.name"].value, "")]
    who += [(f"--{key}", given[key], job.derived_reason(plan, f"job.{key}")) for key in ("partition", "account", "qos")]
    who.append(("--array", _range(shape), f"the points of {job.TABLE}, one task each"))
    log = "%A_%a" if shape else "%j"
    tasks = job.tasks_per_node(plan)
    why = (
        "one launcher per node, which starts the processes of the node"
        if not job.starts_processes(plan)
        else "Slurm starts every process"
    )
    segment = values.get("job.segment_nodes")
    # With a number of tasks Slurm gives a range's fewest nodes, and never more: seen on 22.05.
    on_a_node = 1 if plan.sizes else tasks
    what = [
        ("--nodes", _nodes(plan), "as many as there are" if plan.sizes else ""),
        ("--ntasks-per-node", None if plan.sizes else tasks, why),
        ("--segment", segment and segment.value, segment.reason if segment else ""),
        _gpus(plan),
        ("--constraint", given["constraint"], job.derived_reason(plan, "job.constraint")),
        (
            "--cpus-per-task",
            cpus.value and max(1, cpus.value // on_a_node),
            job.derived_reason(plan, "job.cpus_per_node"),
        ),
        ("--mem", f"{megabytes}M" if megabytes else None, job.derived_reason(plan, "job.memory_bytes_per_node")),
        (
            "--time",
            slurm_time(walltime.value) if walltime.value else None,
            job.derived_reason(plan, "job.walltime_seconds"),
        ),
    ]
    signal = f"B:USR2@{lead}" if walltime.value else None
    requeue = "--requeue" if values["job.requeue"].value else "--no-requeue"
    if "job.expedited_requeue" in values:
        requeue = "--requeue=expedite"
    end = [
        ("--export", "ALL", "pass on the variables of the submitting shell: path of Python, secrets, trackers"),
        ("--signal", signal, f"{duration(lead)} before the end of the walltime, this script asks the run to save"),
        (requeue, "", job.derived_reason(plan, "job.requeue")),
        ("--open-mode", "append", "a requeued job appends to its log"),
        ("--output", f"{values['experiment_name'].value}-{log}.out", "in the folder where sbatch was called"),
    ]
    groups = (("The job", who), ("What the job asks for", what), ("How the job ends and is requeued", end))
    return [
        (title, [(_directive(option, value), why) for option, value, why in lines if value is not None])
        for title, lines in groups
    ]


def _nodes(plan: Plan) -> str:
    """Return the number of nodes, or the range of an elastic plan."""
    return "-".join(map(str, sorted({plan.node_counts[0], plan.node_counts[-1]})))


def _range(shape: Shape | None) -> str | None:
    if shape is None:
        return None
    return f"1-{shape.points}" + (f"%{shape.max_parallel}" if shape.max_parallel else "")


def _gpus(plan: Plan) -> tuple[str, str | None, str]:
    """Return the request for GPUs in this cluster's form; none for a run on the CPU."""
    values, facts = plan.values, plan.facts
    if values["hardware.device"].value == "cpu":
        return "--gpus-per-node", None, ""
    count, kind = values["parallel.processes_per_node"].value, values["job.gpu_type"].value
    typed = f"{kind}:{count}" if kind else str(count)
    if facts["cluster.gpu_request"].value == "gres":
        return "--gres", f"gpu:{typed}", ""
    return "--gpus-per-node", typed, ""


def _directive(option: str, value: object) -> str:
    text = str(value)
    if value == "":
        return option
    if not text or any(char in text for char in " \t#'\"\\"):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{option}={text}"


def _aligned(lines: list[tuple[str, str]]) -> list[str]:
    width = max((len(text) for text, why in lines if why), default=0)
    return [printable(f"{text:<{width}}  # {line(why)}" if why else text) for text, why in lines]


def _start(plan: Plan) -> list[str]:
    """Return the lines of srun. Since 22.05 it does not inherit --cpus-per-task from sbatch."""
    nodes = plan.values["parallel.nodes"].value
    asked = ['--nodes="$ratc_nodes"', '--nodelist="$ratc_nodelist"'] if plan.sizes else [f"--nodes={nodes}"]
    words = ["srun", *asked, f"--ntasks-per-node={job.tasks_per_node(plan)}"]
    cpus = plan.values["job.cpus_per_node"].value
    if cpus is not None:
        # A range's own directive has all cores of a node.
        share = str(max(1, cpus // job.tasks_per_node(plan))) if plan.sizes else '"$SLURM_CPUS_PER_TASK"'
        words.append(f"--cpus-per-task={share}")
    words.append("--kill-on-bad-exit=1")
    image = plan.settings["environment.container"].value
    if image is not None and plan.facts["cluster.container"].value == "pyxis":
        options = " ".join(map(quote, plan.facts["cluster.container_options"].value))
        return [
            " ".join(words),
            f'  --container-image={quote(image)} --container-workdir="$PWD"{" " if options else ""}{options}',
            '  --container-mounts="$PWD:$PWD,$RAT_DATA_DIR:$RAT_DATA_DIR,$RAT_OUTPUT_DIR:$RAT_OUTPUT_DIR"',
        ]
    return [" ".join(words), *(f"  {line}" for line in job.container(plan))]
