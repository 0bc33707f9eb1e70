"""``--target local``: a script that trains on the machine that runs it."""

from __future__ import annotations

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Plan
from ratc.program import is_program
from ratc.shell import render
from ratc.targets import accelerate, job
from ratc.targets.artifact import Artifact, Place, Pool, Shape

NAME = "run.sh"
_CLUSTER_ONLY = ("walltime", "partition", "queue", "account", "qos")


def files(
    plan: Plan, place: Place, shape: Shape | Pool | None
) -> tuple[tuple[Artifact, ...] | None, tuple[Diagnostic, ...]]:
    """The files of a local run beside its lock. Codes: R401, R405."""
    if isinstance(shape, Shape):
        message = "the target `local` cannot run an array"
        helps = ("use `--target slurm` or `lsf`, or remove `sweep` and give the values of one point with `--set`",)
        return None, (Diagnostic("R401", message, shape.span, helps=helps),)
    settings, values = plan.settings, plan.values
    container = settings["environment.container"]
    if container.value is not None:
        message = "the target `local` cannot start containers"
        helps = ("use `venv` or `conda`, or `--target slurm` or `lsf`",)
        return None, (Diagnostic("R401", message, container.span, helps=helps),)
    if values["parallel.nodes"].value > 1:
        message = f"the target `local` is one machine, and the spec asks for {values['parallel.nodes'].value} nodes"
        return None, (Diagnostic("R401", message, settings["resources.nodes"].span, helps=("use `nodes: 1`",)),)
    found = tuple(
        Diagnostic(
            "R405",
            f"`{key}` has no effect with the target `local`",
            settings[f"resources.{key}"].span,
            severity=Severity.WARNING,
        )
        for key in _CLUSTER_ONLY
        if settings[f"resources.{key}"].value is not None
    )
    script = Artifact(NAME, _script(plan, place), consumer="bash", executable=True)
    return (*job.engine_files(plan, place), script), found


def _script(plan: Plan, place: Place) -> str:
    values, program = plan.values, is_program(plan.settings)
    single = values["parallel.world_size"].value == 1
    torchrun = program and values["entrypoint.launcher"].value == "torchrun" and not single
    return render(
        "local.sh.j2",
        header=place.header,
        title=job.title(plan, "on this machine"),
        up=place.up,
        data_dir=values["data.data_dir"].value,
        output_dir=values["output_dir"].value,
        program=program,
        torchrun=torchrun,
        accelerate=bool(values["engine.use_accelerate"].value) and plan.settings["launcher"].value != "torchrun",
        accelerate_file=accelerate.NAME,
        processes=str(values["parallel.processes_per_node"].value),
        single=single,
        **job.environment(plan),
    )
