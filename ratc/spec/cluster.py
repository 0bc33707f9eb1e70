"""A cluster's shape: pydantic models, the one source of ``schemas/cluster.schema.json`` and of its reference.

As with :mod:`ratc.spec.experiment`, the compiler itself reads the generated schema.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ratc.spec.base import (
    COMPUTE_CAPABILITY,
    MEMORY,
    Count,
    Expression,
    Line,
    Name,
    NonNegative,
    PositiveInt,
    Section,
    Text,
    Variable,
    Word,
)
from ratc.units import WALLTIME

Port = Annotated[int, Field(ge=1, le=65535)]
Memory = Annotated[str, Field(pattern=MEMORY)] | PositiveInt
Walltime = Annotated[str, Field(pattern=WALLTIME)]


class NodeType(Section):
    """Nodes that are all alike, described by one of them."""

    gpus_per_node: Count = Field(..., description="GPUs on each; 0 for none.", examples=[8])
    gpu: Text | None = Field(None, description="Card: a name of the catalogue.", examples=["h100"])
    gpu_memory_mib: PositiveInt | None = Field(None, description="Memory of a card that the catalogue lacks.")
    compute_capability: str | None = Field(
        None,
        pattern=COMPUTE_CAPABILITY,
        description="NVIDIA's compute capability of a card that the catalogue lacks.",
        examples=["9.0"],
    )
    gpu_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = Field(
        None,
        description="The scheduler's own name of the card: Slurm's GRES type, LSF's `gmodel`; untyped if absent.",
        examples=["h100", "NVIDIAH10080GBHBM3"],
    )
    cpus: PositiveInt = Field(..., description="CPUs that jobs can ask for on each node.", examples=[96])
    memory: Memory | None = Field(
        None, description="Memory that jobs can ask for on each node; a bare number is in GB.", examples=["1024GB"]
    )
    constraint: Expression | None = Field(
        None,
        description="Selects these nodes: a Slurm feature, or an LSF `select[]` expression.",
        examples=["h100", "type==X86_64"],
    )
    gpu_link_gb_s: Annotated[float, Field(gt=0, le=2000)] | None = Field(
        None,
        description="GB/s that a GPU sends to the others of its node, in one direction; for predicted times only.",
        examples=[450],
    )
    network_gb_s: Annotated[float, Field(gt=0, le=1600)] | None = Field(
        None,
        description="GB/s that a node sends to the others, over all of its ports; for predicted times only.",
        examples=[50],
    )
    price_per_gpu_hour: NonNegative | None = Field(
        None, description="Price of an hour of one GPU, with its `currency`; for predicted costs only.", examples=[2.1]
    )
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = Field(
        None, description="Currency of the price, in three letters.", examples=["EUR"]
    )
    watts_per_gpu: Annotated[float, Field(gt=0, le=5000)] | None = Field(
        None,
        description="Power of one GPU under load with its share of the node, in W; for predicted energy only.",
        examples=[900],
    )


class Partition(Section):
    """A Slurm partition or an LSF queue: its nodes, and the limits of a job."""

    nodes: dict[Name, PositiveInt] = Field(
        ..., description="How many nodes of each type of `node_types`.", examples=[{"h100": 16}]
    )
    default: bool = Field(False, description="Taken if the spec names none.")
    max_nodes: PositiveInt | None = Field(None, description="Most nodes of one job.", examples=[8])
    max_gpus_per_job: PositiveInt | None = Field(None, description="Most GPUs of one job.", examples=[64])
    max_cpus_per_gpu: PositiveInt | None = Field(None, description="Most CPUs for each GPU.", examples=[12])
    max_cpus_per_node: PositiveInt | None = Field(None, description="Most CPUs on each node.", examples=[32])
    max_memory_per_node: Memory | None = Field(None, description="Most memory on each node.", examples=["256GB"])
    max_memory_per_cpu: Memory | None = Field(
        None, description="Most memory for each CPU that a job asks for.", examples=["8GB"]
    )
    min_nodes: PositiveInt | None = Field(None, description="Fewest nodes of one job.", examples=[2])
    accounts: list[Text] | None = Field(
        None, description="The accounts that jobs may be charged to; any if absent.", examples=[["physics", "biology"]]
    )
    qos: list[Text] | None = Field(
        None, description="The qualities of service that jobs may name; any if absent.", examples=[["normal", "long"]]
    )
    default_walltime: Walltime | None = Field(
        None, description="Time of a job that asks for none; `max_walltime` if absent.", examples=["04:00:00"]
    )
    max_walltime: Walltime | None = Field(None, description="Longest time of a job.", examples=["2-00:00:00"])
    account_required: bool = Field(False, description="Whether a job must name the account that it is charged to.")
    preemption: Literal["none", "requeue", "suspend", "cancel"] = Field(
        "none", description="Fate of a job that has to make room."
    )
    grace_seconds: Count = Field(0, description="Time between the signal of a preemption and the end.", examples=[60])
    requeue: bool = Field(True, description="Whether a job may be requeued.")


class Lsf(Section):
    """How an LSF site reads requests; only `scheduler: lsf` looks here."""

    limit_unit: Literal["KB", "MB", "GB", "TB"] = Field(
        "KB", description="Unit of `-M` without one: `LSF_UNIT_FOR_LIMITS` of lsf.conf, KB if that is not set."
    )
    rusage_unit: Literal["KB", "MB", "GB", "TB"] | None = Field(
        None,
        description="Unit of `rusage[mem=]` without one. If absent, that of `LSF_UNIT_FOR_LIMITS`: MB if `limit_unit` "
        "is KB, for LSF's defaults differ, else `limit_unit`.",
    )
    memory_limit: Literal["process", "job"] = Field(
        "process", description="Scope of `-M`; `job` with `LSB_JOB_MEMLIMIT=Y`."
    )
    rusage: Literal["job", "task", "host"] = Field(
        "host", description="Scope of `rusage[mem=]`: `RESOURCE_RESERVE_PER_TASK` and queue settings."
    )
    explicit_units: bool = Field(True, description="Whether `-M 64GB` is understood: 10.1.0.2 or later.")


class Cluster(Section):
    """A cluster: its scheduler, its kinds of nodes, its partitions or queues, and its customs."""

    name: Name = Field(..., description="How messages and job scripts call the cluster.", examples=["alps"])
    scheduler: Literal["slurm", "lsf"] = Field(..., description="The scheduler for jobs.", examples=["slurm"])
    version: Line | None = Field(None, description="The scheduler's version.", examples=["23.02", "10.1.0.14"])
    node_types: dict[Name, NodeType] = Field(..., description="Kinds of nodes by name; below.")
    partitions: dict[Name, Partition] = Field({}, description="Slurm: partitions by name; below.")
    queues: dict[Name, Partition] = Field({}, description="LSF: queues by name, with the keys of partitions.")
    gpu_request: Literal["gpus-per-node", "gres"] = Field(
        "gpus-per-node", description="Slurm: whether jobs ask with `--gpus-per-node=h100:8` or `--gres=gpu:h100:8`."
    )
    launcher: Literal["srun", "blaunch", "jsrun"] | None = Field(
        None,
        description="Starts a job's tasks on its nodes; `srun` on Slurm and `blaunch` on LSF if absent.",
    )
    max_array_size: PositiveInt | None = Field(None, description="Most tasks of a job array.", examples=[1000])
    modules_init: Text | None = Field(
        None, description="File to source before `module` is there.", examples=["/etc/profile.d/modules.sh"]
    )
    container: Literal["apptainer", "pyxis"] | None = Field(
        None, description="Runtime for `environment.container`; none if absent."
    )
    container_options: list[Text] = Field(
        [], description="Options for every container.", examples=[["--bind=/scratch"]]
    )
    interface: Word | None = Field(
        None,
        description="Network interface between nodes: `NCCL_SOCKET_IFNAME` and `GLOO_SOCKET_IFNAME`.",
        examples=["ib0"],
    )
    variables: dict[Variable, str | int | float] = Field(
        {}, description="Variables that every job needs here.", examples=[{"NCCL_IB_HCA": "mlx5"}]
    )
    scratch: Text | None = Field(None, description="Fast storage that all nodes see.", examples=["/scratch/$USER"])
    ephemeral_ports: Annotated[list[Port], Field(min_length=2, max_length=2)] = Field(
        [32768, 60999],
        description="First and last port that the system gives away; the rendezvous avoids them.",
    )
    lsf: Lsf = Field(Lsf(), description="How this LSF site reads a request.")
    health_check: bool = Field(
        False, description="Whether jobs test their nodes before training, if the spec says `health_check: auto`."
    )
    expedited_requeue: bool = Field(
        False,
        description="Slurm 25.11 or later: jobs ask with `--requeue=expedite`, and start again first if a node fails.",
    )
    questions: list[Line] = Field(
        [],
        description="Values unknown to a probe, each `KEY: question`. Answer it under the key, then remove it.",
        examples=[["node_types.a100.gpu: a100-40 or a100-80?"]],
    )
