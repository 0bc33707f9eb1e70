"""The lock of a spec with `entrypoint`: the values for the spec's own program, which trains.

It has no model and no loop. The common sections of both kinds of lock are those of `lock.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ratc_runtime.config.lock import Hardware, Lock, OwnModule, Parallel, Positive, Section, load, lock_from
from ratc_runtime.config.refusal import LOCK_VERSION, Wrong, not_plain, refuse_all, wrong_values

#: More than any machine has: the first node waits for the word of each.
MOST_PROCESSES = 1_000_000


class Entrypoint(Section):
    """The program, its arguments, and the values of the plan that it gets."""

    launcher: Literal["accelerate", "torchrun", "srun", "none"] = Field(
        description="Command that starts the processes of a node; `none` starts the program once on each."
    )
    kind: Literal["script", "module", "command"] = Field(description="Kind of `program`.")
    program: str = Field(description="Path of a script from the spec's folder, a module, or a command.")
    args: list[str] = Field(
        description="Its arguments. `${data_dir}`, `${output_dir}` and `${lock}` are filled in when it starts; `$$` is "
        "a dollar sign."
    )
    plan: dict[str, str | int | float | bool | None] = Field(
        description="Values that the program gets: as variables `RATC_…`, and by `ratc_runtime.plan()`."
    )


class ProgramTraining(Section):
    """How a global batch is split, and other values of training."""

    precision: Literal["fp32", "fp16", "bf16"] = Field(description="Arithmetic that the card is good for.")
    tf32: bool = Field(description="Whether products of float32 matrices may be computed in TF32.")
    global_batch_size: Positive = Field(description="Samples in an optimizer step.")
    micro_batch_size: Positive = Field(description="Samples in one forward pass of one process.")
    gradient_accumulation_steps: Positive = Field(description="Forward passes of a process in an optimizer step.")
    learning_rate: float = Field(description="Learning rate, scaled with the global batch if the spec asks for that.")
    epochs: Positive = Field(description="Passes over the training data.")


class ProgramEngine(Section):
    """As in the lock of the built-in loop, for the files of launchers."""

    deepspeed: Literal[False] = Field(description="A program configures DeepSpeed itself.")
    zero_stage: Literal[0] = Field(description="As `deepspeed`.")
    use_accelerate: bool = Field(description="Whether Accelerate starts the processes.")


class ProgramData(Section):
    """Folder of the data, and how many processes load them."""

    data_dir: str = Field(description="Folder of the data; the spec's own if it names none.")
    num_workers: int = Field(ge=0, description="Loader processes of each process that fit its share of the cores.")


class ProgramCheckpoint(Section):
    """Whether a run goes on."""

    resume: Literal["auto", "never"] = Field(description="Whether the program is asked to go on where it stopped.")


class ProgramLock(Section):
    """One run of a program of the spec's own."""

    lock_version: int = Field(ge=LOCK_VERSION, le=LOCK_VERSION, description="Version of this format.")
    ratc_version: str = Field(description="The ratc that compiled the lock.")
    target: str = Field(description="Target that it was compiled for: `local`, `slurm` or `lsf`.")
    experiment_name: str = Field(description="Name of the run.")
    description: str = Field(description="Purpose of the run; words only.")
    seed: int = Field(description="A seed for the program.")
    debug: bool = Field(description="Whether the program is asked for a short run.")
    entrypoint: Entrypoint
    training: ProgramTraining
    engine: ProgramEngine
    data: ProgramData
    checkpoint: ProgramCheckpoint
    output_dir: str = Field(description="Folder of the results, relative to the spec's folder.")
    parallel: Parallel
    hardware: Hardware
    inputs: dict[str, str] = Field(description="Digests of the files this was compiled from, by their path.")
    artifacts: dict[str, str] = Field(description="Digests of the files that were compiled with it, by their path.")
    job: dict[str, Any] | None = Field(default=None, description="Request to a scheduler.")
    own_code: dict[str, OwnModule] | None = Field(
        default=None, description="The program's own files, by their path from the spec's folder, if there are some."
    )
    point: str | None = Field(default=None, description="Name of this point of an array.")

    file = Lock.file


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
    parallel = lock.parallel
    if parallel.nodes * parallel.processes_per_node != parallel.world_size:
        wrong.append(Wrong("parallel.nodes", "x processes_per_node is not its world_size"))
    if parallel.world_size > MOST_PROCESSES:
        wrong.append(Wrong("parallel.world_size", f"is {parallel.world_size}, expected at most {MOST_PROCESSES}"))
    if wrong:
        raise refuse_all(wrong)
    return lock
