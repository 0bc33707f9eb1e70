"""The sections of a spec about its job: `entrypoint`, `parallel`, `distributed`, `resources` and `environment`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from ratc.spec.base import (
    MEMORY,
    MODULE,
    Count,
    Line,
    Name,
    PositiveInt,
    Section,
    Text,
    Variable,
    Word,
)
from ratc.spec.keys import Effect, Key
from ratc.units import WALLTIME


class Entrypoint(Section):
    """A program of your own that trains, instead of the built-in loop: one of `script`, `module` and `command`.

    Texts of `args` and `command` may hold placeholders: `${micro_batch_size}` is the number that the plan has.
    """

    script: Text | None = Field(
        None, description="Python script; relative to the spec's folder.", examples=["train.py"]
    )
    module: Annotated[str, Field(max_length=200, pattern=MODULE)] | None = Field(
        None, description="Python module, as `python -m` runs it from the spec's folder.", examples=["my_package.train"]
    )
    command: Annotated[list[Text], Field(min_length=1)] | None = Field(
        None,
        description="Any other command: the program and its first arguments. No shell reads them.",
        examples=[["bash", "train.sh"]],
    )
    args: list[str | int | float | bool] = Field(
        [],
        description="Arguments of the program, one per entry. No shell reads them.",
        examples=[["--batch-size", "${micro_batch_size}", "--output", "${output_dir}"]],
    )


class Distributed(Section):
    """How processes talk."""

    auto_detect: bool = Field(True, description="Let ratc choose `backend` for the hardware.")
    backend: Annotated[Literal["nccl", "gloo"] | None, Key(plan="parallel.backend")] = Field(
        None, description="Library for collective communication; if absent, `nccl` on GPUs and `gloo` on CPUs."
    )
    timeout_seconds: Annotated[
        PositiveInt | None,
        Key(
            (Effect.PLACEMENT,),
            "a run that hangs is ended sooner or later",
            plan="parallel.timeout_seconds",
        ),
    ] = Field(
        1800,
        description="Seconds without progress after which the run is ended and the hanging process is named; null "
        "means never.",
        examples=[1800, 600],
    )


class Parallel(Section):
    """How model and optimizer are spread over the processes."""

    strategy: Annotated[
        Literal["auto", "ddp", "fsdp2", "deepspeed"] | None,
        Key(
            (Effect.RESUME, Effect.MEMORY),
            "a run with one strategy cannot read the checkpoints of another",
            plan="parallel.strategy",
            memory="decides",
        ),
    ] = Field(
        None,
        description="How processes hold weights, gradients and optimizer states: `ddp` keeps all of them on each "
        "process, `fsdp2` and `deepspeed` (ZeRO) shard them. `auto` compares the three by predicted memory and "
        "network traffic. If absent, `deepspeed` on several GPUs with Accelerate, otherwise `ddp`.",
        examples=["fsdp2", "auto"],
    )
    shard: Annotated[
        Literal["full", "grads", "hybrid"],
        Key((Effect.MEMORY, Effect.COST), "other states are sharded", plan="fsdp2.shard", memory="depends"),
    ] = Field(
        "full",
        description="FSDP2: `full` shards weights, gradients and optimizer states. `grads` gathers weights once per "
        "step instead of twice. `hybrid` shards within groups of `shard_size` processes; each group holds a whole "
        "copy.",
    )
    shard_size: Annotated[
        Annotated[int, Field(ge=2)] | None,
        Key(
            (Effect.MEMORY, Effect.COST),
            "the same states are spread over more or fewer processes",
            plan="fsdp2.shard_size",
            memory="depends",
        ),
    ] = Field(
        None,
        description="FSDP2: number of processes in a group of `shard: hybrid`; if absent, the processes of a node. "
        "It must divide the number of all processes.",
        examples=[8],
    )
    wrap: Annotated[
        list[Text] | Annotated[str, Field(pattern="^auto$")],
        Key((Effect.MEMORY, Effect.COST), "other modules are gathered as units", plan="fsdp2.wrap", memory="depends"),
    ] = Field(
        "auto",
        description="FSDP2: names of the module classes whose weights are gathered as one unit; `auto` takes the "
        "classes of repeated layers.",
        examples=["auto", ["Block"]],
    )
    offload: Annotated[
        bool,
        Key(
            (Effect.MEMORY, Effect.COST),
            "shards lie in the host's memory, or in the GPU's",
            plan="fsdp2.offload",
            memory="depends",
        ),
    ] = Field(False, description="FSDP2: keep shards in host memory; the optimizer then runs on the CPU.")
    mixed_precision: Annotated[
        Literal["fp32", "bf16"],
        Key(
            (Effect.TRAINING, Effect.MEMORY),
            "weights are gathered in another precision",
            plan="fsdp2.weights",
            memory="depends",
        ),
    ] = Field(
        "fp32",
        description="FSDP2: precision in which weights are gathered. `fp32` gives the results of `ddp`; `bf16` "
        "halves the network traffic and needs `training.precision: bf16`.",
    )


class NodeRange(TypedDict):
    """From how many machines to how many a job takes. A mapping, not a section: a number may stand in its place."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    min: Annotated[PositiveInt, Field(description="Fewest machines.")]
    max: Annotated[PositiveInt, Field(description="Most machines.")]


class Resources(Section):
    """Resources of the job. Absent on `local`: all of the machine."""

    cluster: Annotated[Text | None, Key(option="cluster", order=9, path="name")] = Field(
        None,
        description="Cluster facts: a file, or the name of a `clusters/<name>.yaml` in the spec's folder or a folder "
        "above it.",
        examples=["example-slurm", "../clusters/ours.yaml"],
    )
    nodes: Annotated[
        PositiveInt | NodeRange,
        Key((Effect.COST,), "another number of nodes", plan="parallel.nodes", option="nodes", order=10),
    ] = Field(
        1,
        description="Number of nodes, or a range `{min, max}`: the scheduler gives the job a number of nodes in it. "
        "After a requeue the number may differ (docs/concepts/elastic.md).",
        examples=[1, 4, {"min": 2, "max": 8}],
    )
    num_gpus: Annotated[
        Count | None,
        Key(
            (Effect.COST,),
            "another number of processes; the order of samples stays",
            plan="parallel.world_size",
            memory="depends",
            option="num-gpus",
            order=11,
        ),
    ] = Field(None, description="Number of GPUs on all nodes together; 0 trains on the CPU.", examples=[8])
    gpus_per_node: Annotated[
        Count | None,
        Key((Effect.COST,), "another number of processes on a node", plan="parallel.processes_per_node"),
    ] = Field(None, description="GPUs on each node, instead of `num_gpus`.", examples=[4])
    gpu: Annotated[
        Text | None,
        Key((Effect.COST, Effect.MEMORY), "another card", plan="hardware.card", option="gpu", order=12),
    ] = Field(
        None,
        description="Card: a name from ratc's catalogue of cards.",
        examples=["a100-80", "h100", "v100-32", "rtx4090"],
    )
    cpus: PositiveInt | None = Field(None, description="CPU cores on each node.", examples=[32])
    memory: Annotated[Annotated[str, Field(pattern=MEMORY)] | PositiveInt | None, Key(option="memory", order=13)] = (
        Field(
            None, description="Host memory on each node, more than 0; a bare number is in GB.", examples=["128GB", 128]
        )
    )
    walltime: Annotated[str | None, Key(option="walltime", order=14)] = Field(
        None,
        pattern=WALLTIME,
        description="Time limit of the job: HH:MM, HH:MM:SS or D-HH:MM:SS.",
        examples=["24:00:00"],
    )
    partition: Annotated[Word | None, Key(option="partition", order=15)] = Field(
        None, description="Slurm partition.", examples=["gpu"]
    )
    queue: Annotated[Word | None, Key(option="queue", order=16)] = Field(
        None, description="LSF queue.", examples=["gpu_h100"]
    )
    account: Annotated[Word | None, Key(option="account", order=17)] = Field(
        None, description="Account or project that the job is charged to.", examples=["imaging"]
    )
    qos: Annotated[Word | None, Key(option="qos", order=18)] = Field(
        None, description="Slurm's quality of service (QoS) for the job.", examples=["normal"]
    )
    node_type: Name | None = Field(
        None,
        description="Kind of node, if the partition or queue has several: a name from `node_types` of the "
        "cluster facts.",
        examples=["h100"],
    )
    job_name: Line | None = Field(
        None, description="Name of the job in the queue; if absent, `experiment_name`.", examples=["RAT on ISIC"]
    )
    health_check: Annotated[
        Literal["auto", "always", "never"],
        Key((Effect.PLACEMENT,), "whether the nodes are tested before training", script=True),
    ] = Field(
        "auto",
        description="Test the nodes for a minute at most before each start trains, and leave out the bad ones; `auto`: "
        "if the cluster's facts ask for it.",
    )
    max_excluded_nodes: Annotated[
        Count, Key((Effect.PLACEMENT,), "how many nodes may be left out", plan="health.max_excluded_nodes")
    ] = Field(2, description="Nodes that one job may leave out by `health_check`; the job ends if there are more.")


class Environment(Section):
    """What the job script sets up before it starts. One of `venv`, `conda` and `container`."""

    modules: list[Text] = Field([], description="Environment modules to load, in this order.", examples=[["cuda/12.4"]])
    venv: Annotated[Text | None, Key(path="folder")] = Field(
        None, description="Folder of a Python virtual environment, relative to the spec's folder.", examples=[".venv"]
    )
    conda: Annotated[Text | None, Key(path="name")] = Field(
        None, description="Conda environment, by name or path.", examples=["rat"]
    )
    container: Annotated[Text | None, Key(path="name")] = Field(
        None, description="Container image.", examples=["images/rat.sif"]
    )
    variables: dict[Variable, str | int | float] = Field(
        {}, description="Environment variables to export, with their values.", examples=[{"OMP_NUM_THREADS": 4}]
    )
    secrets: list[Variable] = Field(
        [],
        description="Names of variables that must be set when the job starts; ratc never writes their values.",
        examples=[["WANDB_API_KEY"]],
    )
    setup: list[Text] = Field([], description="Shell lines to run first, as they are.", examples=[["ulimit -n 65536"]])
