"""The lock of a spec with `entrypoint`: the values for the spec's own program, which trains.

It has no model and no loop. The common sections of both kinds of lock are those of `lock.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ratc_runtime.config import elastic
from ratc_runtime.config.lock import Files, Lock, load, lock_from
from ratc_runtime.config.refusal import LOCK_VERSION, Wrong, not_plain, refuse_all, wrong_values
from ratc_runtime.config.sections import Hardware, Health, Memory, OwnModule, Parallel, Positive, ProgramSize, Section

#: More than any machine has: the first node waits for the word of each.
MOST_PROCESSES = 1_000_000
#: What the program is told, by name, and the path of it in the lock: as variables (`RATC_SEED`), and by
#: `ratc_runtime.plan()`. The compiler fills in the same names in arguments.
HANDED = {
    "experiment_name": "experiment_name",
    "seed": "seed",
    "debug": "debug",
    "epochs": "training.epochs",
    "learning_rate": "training.learning_rate",
    "micro_batch_size": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "global_batch_size": "training.global_batch_size",
    "precision": "training.precision",
    "num_workers": "data.num_workers",
    "nodes": "parallel.nodes",
    "processes_per_node": "parallel.processes_per_node",
    "world_size": "parallel.world_size",
}
#: What is filled in in arguments when the program starts.
AT_START = ("data_dir", "output_dir", "checkpoint_dir", "resume", "lock")
#: The same of an elastic lock alone: what each number of nodes has of its own.
OF_SIZE = ("micro_batch_size", "gradient_accumulation_steps", "nodes", "world_size")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_PLACEHOLDER = re.compile(r"\$(?:\$|\{([^{}]*)\})")


class Entrypoint(Section):
    """The program and its arguments."""

    launcher: Literal["accelerate", "torchrun", "srun", "none"] = Field(
        description="Command that starts the processes of a node; `none` starts the program once on each node."
    )
    kind: Literal["script", "module", "command"] = Field(
        description="Whether `program` is a script, a module or a command."
    )
    program: Annotated[str, Field(min_length=1)] = Field(
        description="Path of a script relative to the spec's folder, name of a module, or a command."
    )
    args: list[str] = Field(
        description="Arguments of the program. `${data_dir}`, `${output_dir}`, `${checkpoint_dir}`, `${resume}` and "
        "`${lock}` are filled in when it starts; `$$` is a dollar sign."
    )


class ProgramTraining(Section):
    """How a global batch is split, and other values of training."""

    precision: Literal["fp32", "fp16", "bf16"] = Field(description="Precision that suits the card.")
    tf32: bool = Field(description="Whether products of float32 matrices may be computed in TF32.")
    global_batch_size: Positive = Field(description="Samples in an optimizer step.")
    micro_batch_size: Positive = Field(description="Samples in one forward pass of one process.")
    gradient_accumulation_steps: Positive = Field(description="Forward passes of a process in an optimizer step.")
    learning_rate: float = Field(
        description="Learning rate, scaled with the global batch size if the spec asks for that."
    )
    epochs: Positive = Field(description="Passes over the training data.")
    allocator: Literal["native", "expandable_segments"] | None = Field(
        default=None,
        description="How torch's CUDA allocator reserves memory; null on the CPU. It is there only if the spec "
        "describes the program's step.",
    )


class ProgramEngine(Section):
    """As in the lock of the built-in loop, for the files of launchers."""

    deepspeed: Literal[False] = Field(description="Always false: the program configures DeepSpeed itself.")
    zero_stage: Literal[0] = Field(description="As `deepspeed`.")
    use_accelerate: bool = Field(description="Whether Accelerate starts the processes.")


class ProgramData(Section):
    """Folder of the data, and how many processes load them."""

    data_dir: str = Field(description="Folder of the data; the spec's folder if the spec has no `data.data_dir`.")
    num_workers: int = Field(
        ge=0, description="Number of loader processes for each process, from its share of the cores."
    )


class ProgramCheckpoint(Section):
    """Whether a run goes on."""

    resume: Literal["auto", "never"] = Field(description="Whether the program is asked to continue an interrupted run.")


class ProgramLock(Files, Section):
    """One run of a program of the spec's own."""

    lock_version: int = Field(ge=LOCK_VERSION, le=LOCK_VERSION, description="Version of this format.")
    ratc_version: str = Field(description="Version of the ratc that compiled the lock.")
    target: str = Field(description="Target of compilation: `local`, `slurm` or `lsf`.")
    experiment_name: str = Field(description="Name of the run.")
    description: str = Field(description="Purpose of the run, in words; it has no effect.")
    seed: int = Field(description="Seed for the program.")
    debug: bool = Field(description="Whether the program is asked for a short run.")
    entrypoint: Entrypoint
    training: ProgramTraining
    engine: ProgramEngine
    data: ProgramData
    checkpoint: ProgramCheckpoint
    output_dir: str = Field(description="Folder of the results, relative to the spec's folder.")
    parallel: Parallel
    elastic: dict[str, ProgramSize] | None = Field(
        default=None,
        description="The split of the batch by number of nodes. It is there only if `resources.nodes` is a range; a "
        "start takes the row of the nodes that it was given.",
    )
    hardware: Hardware
    inputs: dict[str, str] = Field(description="Digests of the files from which the lock was compiled, by their path.")
    artifacts: dict[str, str] = Field(
        description="Digests of the files that were compiled together with the lock, by their path."
    )
    memory: Memory | None = Field(
        default=None,
        description="Predicted memory of one process on the card. It is there only if the spec describes the program's "
        "step; its values are null if nothing was predicted, or if the spec gives the micro-batch.",
    )
    health: Health | None = None
    job: dict[str, Any] | None = Field(default=None, description="Request to the scheduler.")
    own_code: dict[str, OwnModule] | None = Field(
        default=None,
        description="The program's own files, by their path from the spec's folder. Absent if there are none.",
    )
    point: str | None = Field(default=None, description="Name of this point of an array.")

    def handed(self) -> dict[str, Any]:
        """Return the values that the program is told, by name."""
        told = {}
        for name, path in HANDED.items():
            value: Any = self
            for key in path.split("."):
                value = getattr(value, key)
            told[name] = value
        precision = self.training.precision
        return told | {"bf16": precision == "bf16", "fp16": precision == "fp16", "tf32": self.training.tf32}

    def identity(self) -> str:
        """Return a digest of the program with its files, its arguments and the values that it is told."""
        entry, handed = self.entrypoint, self.handed()
        if self.elastic is not None:  # the same run on any number of nodes
            handed = {name: value for name, value in handed.items() if name not in OF_SIZE}
        told = [entry.kind, entry.program, entry.args, handed, self.code()]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def fill(text: str, told: Mapping[str, str]) -> str:
    """Return an argument with the values that are known when the program starts; `$$` is a dollar sign."""
    return _PLACEHOLDER.sub(lambda match: "$" if match[1] is None else told[match[1]], text)


def read_any(path: Path) -> Lock | ProgramLock:
    """Read and validate `lock.yaml` of either kind. Raises R505 as `read_lock`."""
    content = load(path)
    if not isinstance(content, dict) or "entrypoint" not in content:
        return lock_from(content)
    wrong = list(not_plain(content))
    try:
        lock = ProgramLock.model_validate(content)
    except ValidationError as error:
        named = {one.at for one in wrong}
        more = wrong_values(error.errors(include_url=False))
        raise refuse_all([*wrong, *(one for one in more if one.at not in named)]) from None
    wrong = wrong or list(_contradictions(lock))
    if wrong:
        raise refuse_all(wrong)
    return lock


def _contradictions(lock: ProgramLock) -> Iterator[Wrong]:
    """Yield every contradiction of a lock whose values are right one by one."""
    parallel, entry, training = lock.parallel, lock.entrypoint, lock.training
    yield from elastic.contradictions(lock)
    if parallel.nodes * parallel.processes_per_node != parallel.world_size:
        yield Wrong("parallel.nodes", "x processes_per_node is not its world_size")
    if parallel.world_size > MOST_PROCESSES:
        yield Wrong("parallel.world_size", f"is {parallel.world_size}, expected at most {MOST_PROCESSES}")
    split = training.micro_batch_size * training.gradient_accumulation_steps * parallel.world_size
    if split != training.global_batch_size:
        yield Wrong("training.global_batch_size", "is not micro_batch_size x gradient_accumulation_steps x world_size")
    if lock.engine.use_accelerate != (entry.launcher == "accelerate"):
        yield Wrong("engine.use_accelerate", f"does not go with entrypoint.launcher {entry.launcher}")
    if entry.kind == "module" and not _MODULE.fullmatch(entry.program):
        yield Wrong("entrypoint.program", f"is {entry.program!r:.80}, expected the name of a module")
    for number, text in enumerate(entry.args):
        for match in _PLACEHOLDER.finditer(text):
            known = AT_START if lock.elastic is None else (*AT_START, *OF_SIZE)
            if match[1] is not None and match[1] not in known:
                wrong = f"holds {match[0]:.80}, expected one of {', '.join(known)}"
                yield Wrong(f"entrypoint.args[{number}]", wrong)
