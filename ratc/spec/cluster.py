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

    gpus_per_node: Count = Field(..., description="GPUs on each node; 0 for none.", examples=[8])
    gpu: Text | None = Field(None, description="Card: a name from ratc's catalogue of cards.", examples=["h100"])
    gpu_memory_mib: PositiveInt | None = Field(None, description="Memory of a card that is not in the catalogue.")
    compute_capability: str | None = Field(
        None,
        pattern=COMPUTE_CAPABILITY,
        description="NVIDIA's compute capability of a card that is not in the catalogue.",
        examples=["9.0"],
    )
    gpu_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = Field(
        None,
        description="The scheduler's name for the card: Slurm's GRES type or LSF's `gmodel`. If absent, jobs ask for "
        "GPUs without a type.",
        examples=["h100", "NVIDIAH10080GBHBM3"],
    )
    cpus: PositiveInt = Field(..., description="CPUs that jobs can ask for on each node.", examples=[96])
    memory: Memory | None = Field(
        None, description="Memory that jobs can ask for on each node; a bare number is in GB.", examples=["1024GB"]
    )
    constraint: Expression | None = Field(
        None,
        description="Expression that selects these nodes: a Slurm feature, or an LSF `select[]` expression.",
        examples=["h100", "type==X86_64"],
    )
    cpu_architecture: Literal["x86_64", "aarch64", "ppc64le"] | None = Field(
        None,
        description="Processor of these nodes, as `uname -m` gives it there. The environment of a job must be made for "
        "it. Taken from the card if that is sold with one kind only, such as GB200.",
        examples=["aarch64"],
    )
    block_nodes: PositiveInt | None = Field(
        None,
        description="Slurm with the block topology: nodes of one block, such as a rack of GB200 NVL72. A job of "
        "several nodes then asks for segments that lie within blocks (`--segment`).",
        examples=[18],
    )
    gpu_link_gb_s: Annotated[float, Field(ge=0.01, le=2000)] | None = Field(
        None,
        description="GB/s that a GPU sends to the other GPUs of its node, in one direction. Used for predicted times "
        "only.",
        examples=[450],
    )
    network_gb_s: Annotated[float, Field(ge=0.01, le=1600)] | None = Field(
        None,
        description="GB/s that a node sends to other nodes, over all of its ports. Used for predicted times only.",
        examples=[50],
    )
    price_per_gpu_hour: Annotated[float, Field(ge=0, le=1_000_000_000)] | None = Field(
        None,
        description="Price of one GPU for an hour; needs `currency`. Used for predicted costs only.",
        examples=[2.1],
    )
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = Field(
        None, description="Currency of `price_per_gpu_hour`, in three letters.", examples=["EUR"]
    )
    watts_per_gpu: Annotated[float, Field(ge=1, le=5000)] | None = Field(
        None,
        description="Power of one GPU under load and of its share of the node, in W. Used for predicted energy only.",
        examples=[900],
    )


class Partition(Section):
    """A Slurm partition or an LSF queue: its nodes, and the limits of a job."""

    nodes: dict[Name, PositiveInt] = Field(
        ..., description="Number of nodes of each type of `node_types`.", examples=[{"h100": 16}]
    )
    default: bool = Field(False, description="Use this partition or queue if the spec names none.")
    max_nodes: PositiveInt | None = Field(None, description="Largest number of nodes in one job.", examples=[8])
    max_gpus_per_job: PositiveInt | None = Field(None, description="Largest number of GPUs in one job.", examples=[64])
    max_cpus_per_gpu: PositiveInt | None = Field(
        None, description="Largest number of CPU cores for each GPU.", examples=[12]
    )
    max_cpus_per_node: PositiveInt | None = Field(
        None, description="Largest number of CPU cores on each node.", examples=[32]
    )
    max_memory_per_node: Memory | None = Field(
        None, description="Largest amount of memory on each node.", examples=["256GB"]
    )
    max_memory_per_cpu: Memory | None = Field(
        None, description="Largest amount of memory for each CPU core that a job asks for.", examples=["8GB"]
    )
    min_nodes: PositiveInt | None = Field(None, description="Smallest number of nodes in one job.", examples=[2])
    accounts: list[Text] | None = Field(
        None,
        description="Accounts that jobs may be charged to; if absent, any account.",
        examples=[["physics", "biology"]],
    )
    qos: list[Text] | None = Field(
        None,
        description="Qualities of service (QoS) that jobs may name; if absent, any.",
        examples=[["normal", "long"]],
    )
    default_walltime: Walltime | None = Field(
        None, description="Time limit of a job that asks for none; if absent, `max_walltime`.", examples=["04:00:00"]
    )
    max_walltime: Walltime | None = Field(
        None, description="Longest time limit that a job may ask for.", examples=["2-00:00:00"]
    )
    account_required: bool = Field(False, description="Whether a job must name the account that it is charged to.")
    preemption: Literal["none", "requeue", "suspend", "cancel"] = Field(
        "none", description="What the scheduler does with a job that is preempted."
    )
    grace_seconds: Count = Field(
        0, description="Time between the signal of a preemption and the end of the job.", examples=[60]
    )
    requeue: bool = Field(True, description="Whether a job may be requeued.")


class Lsf(Section):
    """How an LSF site reads requests; only `scheduler: lsf` looks here."""

    limit_unit: Literal["KB", "MB", "GB", "TB"] = Field(
        "KB", description="Unit of a `-M` that names none: `LSF_UNIT_FOR_LIMITS` of lsf.conf, or KB if that is not set."
    )
    rusage_unit: Literal["KB", "MB", "GB", "TB"] | None = Field(
        None,
        description="Unit of a `rusage[mem=]` that names none. If absent, MB if `limit_unit` is KB (LSF's two "
        "defaults differ), otherwise `limit_unit`.",
    )
    memory_limit: Literal["process", "job"] = Field(
        "process", description="Scope of `-M`; set `job` if lsf.conf has `LSB_JOB_MEMLIMIT=Y`."
    )
    rusage: Literal["job", "task", "host"] = Field(
        "host",
        description="Scope of `rusage[mem=]`; see `RESOURCE_RESERVE_PER_TASK` of lsf.conf and the settings "
        "of the queue.",
    )
    explicit_units: bool = Field(
        True, description="Whether LSF accepts a limit with its unit, such as `-M 64GB`: 10.1.0.2 or later."
    )


class Cluster(Section):
    """A cluster: its scheduler, its kinds of nodes, its partitions or queues, and its customs."""

    name: Name = Field(..., description="Name of the cluster in messages and job scripts.", examples=["alps"])
    scheduler: Literal["slurm", "lsf"] = Field(..., description="Scheduler of the cluster.", examples=["slurm"])
    version: Line | None = Field(None, description="Version of the scheduler.", examples=["23.02", "10.1.0.14"])
    node_types: dict[Name, NodeType] = Field(..., description="Kinds of nodes, by a name of your choice.")
    partitions: dict[Name, Partition] = Field({}, description="Slurm: partitions, by name.")
    queues: dict[Name, Partition] = Field({}, description="LSF: queues, by name, with the same keys as partitions.")
    gpu_request: Literal["gpus-per-node", "gres"] = Field(
        "gpus-per-node", description="Slurm: whether jobs ask with `--gpus-per-node=h100:8` or `--gres=gpu:h100:8`."
    )
    launcher: Literal["srun", "blaunch", "jsrun"] | None = Field(
        None,
        description="Command that starts a job's tasks on its nodes; if absent, `srun` on Slurm and `blaunch` on LSF.",
    )
    max_array_size: PositiveInt | None = Field(
        None, description="Largest number of tasks in a job array.", examples=[1000]
    )
    modules_init: Text | None = Field(
        None,
        description="Shell file that defines the command `module`; job scripts source it first.",
        examples=["/etc/profile.d/modules.sh"],
    )
    container: Literal["apptainer", "pyxis"] | None = Field(
        None, description="Container runtime for `environment.container`; if absent, the cluster has none."
    )
    container_options: list[Text] = Field(
        [], description="Options of the container runtime, for every container.", examples=[["--bind=/scratch"]]
    )
    interface: Word | None = Field(
        None,
        description="Network interface between nodes; sets `NCCL_SOCKET_IFNAME` and `GLOO_SOCKET_IFNAME`.",
        examples=["ib0"],
    )
    variables: dict[Variable, str | int | float] = Field(
        {},
        description="Environment variables that every job on this cluster needs.",
        examples=[{"NCCL_IB_HCA": "mlx5"}],
    )
    scratch: Text | None = Field(
        None, description="Folder on fast storage that all nodes see.", examples=["/scratch/$USER"]
    )
    ephemeral_ports: Annotated[list[Port], Field(min_length=2, max_length=2)] = Field(
        [32768, 60999],
        description="First and last port of the range that the operating system gives to connections; the port of a "
        "job's rendezvous lies outside of it.",
    )
    lsf: Lsf = Field(Lsf(), description="How LSF reads a job's request at this site.")
    health_check: bool = Field(
        False, description="Whether jobs test their nodes before training, if the spec says `health_check: auto`."
    )
    expedited_requeue: bool = Field(
        False,
        description="Slurm 25.11 or later: jobs ask with `--requeue=expedite`, and start again first if a node fails.",
    )
    questions: list[Line] = Field(
        [],
        description="Questions that `ratc probe` could not answer, each `KEY: question`. Write the answer under the "
        "key, then remove the question.",
        examples=[["node_types.a100.gpu: a100-40 or a100-80?"]],
    )
