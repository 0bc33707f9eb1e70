"""``--target local``: a script that trains on the machine that runs it."""

from __future__ import annotations

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Plan
from ratc.shell import render
from ratc.targets import accelerate, deepspeed, lock
from ratc.targets.artifact import Artifact, Place

NAME = "run.sh"
_CLUSTER_ONLY = ("walltime", "partition", "queue", "account", "qos")


def artifacts(plan: Plan, place: Place) -> tuple[tuple[Artifact, ...] | None, tuple[Diagnostic, ...]]:
    """The files of a local run; the lock, which names the others, comes last. Codes: R401, R405."""
    settings, values = plan.settings, plan.values
    container = settings["environment.container"]
    if container.value is not None:
        message = "the target `local` does not start containers"
        helps = ("use `venv` or `conda`, or a scheduler's target",)
        return None, (Diagnostic("R401", message, container.span, helps=helps),)
    if values["parallel.nodes"].value > 1:
        message = f"the target `local` is one machine, and the spec asks for {values['parallel.nodes'].value} nodes"
        return None, (Diagnostic("R401", message, settings["resources.nodes"].span, helps=("use `nodes: 1`",)),)
    found = tuple(
        Diagnostic(
            "R405",
            f"`{key}` means nothing to the target `local`",
            settings[f"resources.{key}"].span,
            severity=Severity.WARNING,
        )
        for key in _CLUSTER_ONLY
        if settings[f"resources.{key}"].value is not None
    )
    files = []
    if values["engine.deepspeed"].value:
        files.append(deepspeed.artifact(plan))
    if values["engine.use_accelerate"].value:
        files.append(accelerate.artifact(plan, place))
    files.append(Artifact(NAME, _script(plan, place), consumer="bash", executable=True))
    return (*files, lock.artifact(plan, place, "local", files)), found


def _script(plan: Plan, place: Place) -> str:
    settings, values = plan.settings, plan.values
    environment = {
        key: settings[f"environment.{key}"].value
        for key in ("modules", "venv", "conda", "variables", "secrets", "setup")
    }
    debug = {"CUDA_LAUNCH_BLOCKING": "1", "TORCH_DISTRIBUTED_DEBUG": "DETAIL"} if values["debug"].value else {}
    threads = values["parallel.threads_per_process"]
    own = {} if threads.value is None else {"OMP_NUM_THREADS": str(threads.value)}
    if values["hardware.device"].value == "cpu":
        # Threads that wait actively slow a CPU run several times over as soon as anything else wants a core.
        own["OMP_WAIT_POLICY"] = "passive"
    return render(
        "local.sh.j2",
        header=place.header,
        title=_title(plan),
        up=place.up,
        environment=environment,
        variables={**own, **debug, **{key: str(value) for key, value in environment["variables"].items()}},
        data_dir=values["data.data_dir"].value,
        output_dir=values["output_dir"].value,
        accelerate=bool(values["engine.use_accelerate"].value),
        accelerate_file=accelerate.NAME,
        processes=str(values["parallel.processes_per_node"].value),
        single=values["parallel.world_size"].value == 1,
    )


def _title(plan: Plan) -> str:
    values = plan.values
    world = values["parallel.world_size"].value
    device = values["hardware.card"].value or "the CPU"
    batch = " x ".join(
        str(values[f"training.{key}"].value) for key in ("micro_batch_size", "gradient_accumulation_steps")
    )
    processes = f"{world} process{'es' if world > 1 else ''} on {device}"
    return (
        f"Trains {values['experiment_name'].value} on this machine: {processes}, {values['training.precision'].value}, "
        f"global batch {values['training.global_batch_size'].value} = {batch} x {world}."
    )
