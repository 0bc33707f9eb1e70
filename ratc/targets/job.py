"""The parts that the scripts of all targets share: the title, the environment, the engine's files, a node's script."""

from __future__ import annotations

from typing import Any

from ratc.catalog import alloc_conf, launch_variables
from ratc.plan import Plan
from ratc.program import is_program
from ratc.shell import quote, render
from ratc.targets import accelerate, deepspeed
from ratc.targets.artifact import Artifact, Place, Pool, Shape
from ratc.units import counted, either

NODE = "node.sh"
#: The table of an array's points, and the folder of their locks.
TABLE, POINTS = "points.tsv", "points"
#: Variables that a script removes from the environment before it starts a launcher.
OVER = {
    "begin": " ".join(f'"${{!{prefix}@}}"' for prefix in launch_variables.PREFIXES),  # bash: all names that begin so
    "names": " ".join(launch_variables.NAMES),
    "mpi_begin": " ".join(f'"${{!{prefix}@}}"' for prefix in launch_variables.MPI_PREFIXES),
    "mpi_names": " ".join(launch_variables.MPI_NAMES),
}
#: Variables of the submission that a run needs on hosts without its environment: proxies for trackers.
GIVEN = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def engine_files(plan: Plan, place: Place) -> list[Artifact]:
    """The files that Accelerate and DeepSpeed read."""
    files = []
    if plan.values["engine.deepspeed"].value:
        files.append(deepspeed.artifact(plan))
    if plan.values["engine.use_accelerate"].value:
        files.append(accelerate.artifact(plan, place))
    return files


def title(plan: Plan, where: str, pool: Pool | None = None) -> str:
    """Return one sentence: the experiment, its processes and device, and its batch; or a study's number of trials."""
    values = plan.values
    if pool:
        each = f"{counted(pool.gpus, 'GPU')} and " if pool.gpus else ""
        trials, cores = counted(pool.trials, "trial"), counted(pool.cpus, "core")
        return f"Runs the study {values['experiment_name'].value} {where}: {trials}, each on {each}{cores}."
    if plan.sizes:
        device = values["hardware.card"].value or "the CPU"
        worlds = either([str(size.values["parallel.world_size"].value) for size in plan.sizes])
        return (
            f"Trains {values['experiment_name'].value} {where}: {worlds} processes on {device}, "
            f"{values['training.precision'].value}, global batch {values['training.global_batch_size'].value}."
        )
    world = values["parallel.world_size"].value
    device = values["hardware.card"].value or "the CPU"
    batch = " x ".join(
        str(values[f"training.{key}"].value) for key in ("micro_batch_size", "gradient_accumulation_steps")
    )
    processes = f"{world} process{'es' if world > 1 else ''} on {device}"
    return (
        f"Trains {values['experiment_name'].value} {where}: {processes}, {values['training.precision'].value}, "
        f"global batch {values['training.global_batch_size'].value} = {batch} x {world}."
    )


def derived_reason(plan: Plan, path: str) -> str:
    """Return the reason of a value that neither the spec nor an option gives; "" for one that they give.

    The script does not name the option or variable: the command in its head makes the same script again.
    """
    value = plan.values[path]
    given = value.origin == "spec" or (value.origin == "layer" and value.reason.startswith(("--", "RAT_")))
    return "" if given else value.reason


def environment(plan: Plan, modules: bool = True) -> dict[str, Any]:
    """Return the template variables of a script's environment: ``environment`` and ``variables``; ``sourced`` if it
    sources a file, ``own_python`` if it chooses the Python. Without ``modules`` a host has loaded them.
    """
    settings, values = plan.settings, plan.values
    section = "environment."
    given = {path.removeprefix(section): settings[path].value for path in settings if path.startswith(section)}
    own_python = any(settings[f"environment.{key}"].value is not None for key in ("venv", "conda", "container"))
    threads = values.get("parallel.threads_per_process")
    own = {} if threads is None or threads.value is None else {"OMP_NUM_THREADS": str(threads.value)}
    if values["hardware.device"].value == "cpu":
        # Threads that wait actively slow a CPU run several times over as soon as anything else wants a core.
        own["OMP_WAIT_POLICY"] = "passive"
    variables = {**own, **_network(plan), **plan.variables}
    allocator = values.get("training.allocator")
    setting = None
    if allocator is not None and allocator.value is not None:
        # Set last, under the names that torch reads in all its versions.
        setting = alloc_conf.settings(allocator.value, variables)
        variables = {name: value for name, value in variables.items() if name not in alloc_conf.READ}
    return {
        "environment": {**given, "modules": given["modules"] if modules else []},
        "variables": variables,
        "allocator": setting,
        "modules_init": modules_init(plan) if modules else None,
        "sourced": bool(given["modules"] or given["venv"] or given["conda"]),
        "own_python": own_python,
        "cpu_architecture": processor.value if (processor := values.get("hardware.cpu_architecture")) else None,
        "over": OVER,
    }


def _network(plan: Plan) -> dict[str, str]:
    """Return the cluster's network interface for NCCL and gloo."""
    if "cluster.scheduler" not in plan.facts:
        return {}
    interface, several = plan.facts["cluster.interface"].value, plan.values["parallel.nodes"].value > 1
    return {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface} if interface and several else {}


def node(plan: Plan, place: Place, caller: str, rank: str, shape: Shape | Pool | None, given: bool = False) -> Artifact:
    """Return ``node.sh``: the environment, and the launcher of one node, or its part of a study. ``rank`` is the bash
    expression of the node's rank; ``given`` says that the batch script leaves its variables in a file.
    """
    values = plan.values
    around = environment(plan, modules=plan.settings["environment.container"].value is None)
    head = {
        "header": place.header,
        "caller": caller,
        "rank": rank,
        "rank_given": " RANK" if rank.startswith("$5") else "",
        "up": place.up,
        "given": given,
        "infiniband": infiniband(plan),
        **around,
    }
    if isinstance(shape, Pool):
        text = render(
            "node_ray.sh.j2",
            title=title(plan, f"on {plan.nodes_text}", shape),
            again=place.again,
            spec=place.spec_name,
            sets=shape.sets,
            cpus=str(shape.node_cpus),
            gpus=str(shape.node_gpus),
            alone=values["parallel.nodes"].value == 1,
            **head,
        )
        return Artifact(NODE, text, consumer="bash", executable=True)
    single = values["parallel.world_size"].value == 1
    launcher = values["job.launcher"].value
    varies = shape is not None and "training.allocator" in shape.varied
    text = render(
        "node.sh.j2",
        title=title(plan, f"on {plan.nodes_text}"),
        array=shape is not None,
        allocator_varies=varies,
        native=alloc_conf.settings(alloc_conf.NATIVE, {"PYTORCH_ALLOC_CONF": around["allocator"] or ""}),
        expandable=alloc_conf.settings(alloc_conf.EXPANDABLE, {"PYTORCH_ALLOC_CONF": around["allocator"] or ""}),
        program=is_program(plan.settings),
        each=starts_processes(plan),
        health=checks_health(plan),
        direct=launcher in ("srun", "none") or (single and launcher == "torchrun"),
        accelerate=launcher == "accelerate",
        processes=str(values["parallel.processes_per_node"].value),
        nodes=str(values["parallel.nodes"].value),
        counts=bool(plan.sizes),
        several=values["parallel.nodes"].value > 1 or starts_processes(plan),
        **head,
    )
    return Artifact(NODE, text, consumer="bash", executable=True)


def checks_health(plan: Plan) -> bool:
    """Whether the nodes are tested before training."""
    return "health.max_excluded_nodes" in plan.values


def starts_processes(plan: Plan) -> bool:
    """Whether the scheduler starts each process of a node itself, without a launcher."""
    return bool(plan.values["job.launcher"].value == "srun")


def tasks_per_node(plan: Plan) -> int:
    """Return the number of processes that the scheduler starts on a node."""
    return plan.values.get_as(int, "parallel.processes_per_node") if starts_processes(plan) else 1


def modules_init(plan: Plan) -> str | None:
    """Return the file that defines ``module``, if modules are loaded and the cluster's facts name one."""
    init: str | None = plan.facts["cluster.modules_init"].value if "cluster.modules_init" in plan.facts else None
    return init if plan.settings["environment.modules"].value else None


def infiniband(plan: Plan) -> bool:
    """Whether the cluster's facts name InfiniBand. Its driver locks memory."""
    interface, variables = plan.facts["cluster.interface"].value, plan.facts["cluster.variables"].value
    return str(interface or "").startswith("ib") or any(name.startswith(("NCCL_IB_", "UCX_")) for name in variables)


def container(plan: Plan) -> list[str]:
    """Return the lines before ``bash node.sh`` that start it in the spec's container; empty without one.

    The folders of the spec, the data and the results are mounted under their own paths.
    """
    image = plan.settings["environment.container"].value
    if image is None:
        return []
    options = " ".join(quote(option) for option in plan.facts["cluster.container_options"].value)
    cuda = "--nv " if plan.values["hardware.device"].value == "cuda" else ""
    binds = '--bind "$PWD" --bind "$RAT_DATA_DIR" --bind "$RAT_OUTPUT_DIR" --pwd "$PWD"'
    return [f"apptainer exec {cuda}{options}{' ' if options else ''}{binds}", quote(image)]


def common(plan: Plan, place: Place, shape: Shape | Pool | None) -> dict[str, Any]:
    """Return the template variables of the batch scripts of both schedulers."""
    values = plan.values
    first, last = values["job.ports"].value
    ports = last - first + 1
    nodes = values.get_as(int, "parallel.nodes")
    pool = shape if isinstance(shape, Pool) else None
    counts = plan.node_counts if plan.sizes else []
    return {
        "header": place.header,
        "title": title(plan, f"on {plan.nodes_text}", pool),
        "up": place.up,
        "down": place.down,
        "data_dir": values["data.data_dir"].value,
        "output_dir": values["output_dir"].value,
        "nodes": str(nodes),
        "counts": " ".join(map(str, reversed(counts))),
        "named_counts": either(list(map(str, counts))),
        # Ray needs a port on one node, too, and so do processes that Slurm starts.
        "several": nodes > 1 or pool is not None or starts_processes(plan),
        "study": pool is not None,
        "outcome": "study/study.json" if pool else "results.json",
        "from_scratch": pool is None and values["checkpoint.resume"].value == "never",
        # Of a program's own checkpoints nothing is known.
        "goes_on": pool is None and values["checkpoint.resume"].value != "never" and not is_program(plan.settings),
        "first_port": str(first),
        "ports": str(ports),
        # The ports of starts and tasks of one job are spread evenly for any number: close ones belong to other jobs.
        "spread": str(round(ports * 0.618034)),
        "index_spread": str(round(ports * 0.754878)),
        "requeue": values["job.requeue"].value,
        "max_restarts": str(values["job.max_restarts"].value),
        "host_modules": plan.settings["environment.modules"].value if container(plan) else [],
        "modules_init": modules_init(plan),
        "array": isinstance(shape, Shape),
    }
