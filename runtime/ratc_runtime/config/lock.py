"""The lock as frozen pydantic models. A run can only start from a `lock.yaml` that they accept.

The models' descriptions are the reference: `schemas/lock.schema.json` and the page on the lock are generated from them.
Reading is strict: an unknown or a missing key, a value of another type or an unknown version is R505, because a lock
that is read in part is not the run that was reviewed.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field, ValidationError

from ratc_runtime.config.consistency import contradictions
from ratc_runtime.config.refusal import LOCK_VERSION, not_plain, refuse_all, unreadable, wrong_values
from ratc_runtime.config.sections import (
    Checkpoint,
    Compression,
    Data,
    Detection,
    Engine,
    Evaluation,
    Fsdp2,
    Hardware,
    Health,
    Logging,
    Memory,
    Model,
    OwnModule,
    Parallel,
    Part,
    Section,
    Size,
    Training,
)
from ratc_runtime.config.yaml_file import MAX_LOCK_BYTES, load_yaml, open_regular
from ratc_runtime.tasks import TaskType

#: An artifact's path from its lock's folder: nothing outside of that folder.
_ARTIFACT = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*/)*[A-Za-z0-9_][A-Za-z0-9._-]*")
#: From a point's lock, the one that all points share.
_SHARED = "../../lock.yaml"
# The values of the data that decide the weights, without folders, names of classes and loading.
_LEARNT_DATA = (
    "dataset",
    "args",
    "image_size",
    "channels",
    "num_classes",
    "ignore_index",
    "scales",
    "on_bad_sample",
    "augmentations",
)


class _Listed(Protocol):
    @property
    def artifacts(self) -> dict[str, str]: ...

    @property
    def own_code(self) -> dict[str, OwnModule] | None: ...


class Files:
    """The files that a lock lists, whether it is of the built-in loop or of a program."""

    def file(self: _Listed, name: str) -> str | None:
        """Return the path, relative to the lock's folder, of the artifact of that name; None if the lock has none.

        A point's own file takes precedence over the shared one.
        """
        found = [path for path in self.artifacts if path.rpartition("/")[2] == name]
        return min(found, key=len) if found else None

    def code(self: _Listed) -> str | None:
        """Return the hash of the user's own code, without comments and blank lines; None if there is none."""
        if self.own_code is None:
            return None
        parts = {path: module.parts or module.digest for path, module in self.own_code.items()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Lock(Files, Section):
    """One run, every value concrete."""

    lock_version: int = Field(ge=LOCK_VERSION, le=LOCK_VERSION, description="Version of this format.")
    ratc_version: str = Field(description="Version of the ratc that compiled the lock.")
    target: str = Field(description="The target of compilation: `local`, `slurm` or `lsf`.")
    experiment_name: str = Field(description="Name of the run.")
    description: str = Field(description="Purpose of the run, in words; it has no effect.")
    task_type: TaskType = Field(
        description="Kind of task. With `custom`, the model, the data set and the loss are your own; `multi` has "
        "several `tasks`."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        description="Seed of the initial weights, the order of samples and the augmentations."
    )
    debug: bool = Field(description="Whether this is a debug run: short, and each step is inspected.")
    model: Model
    training: Training
    engine: Engine
    data: Data
    evaluation: Evaluation
    logging: Logging
    checkpoint: Checkpoint
    output_dir: str = Field(
        description="Folder of the results, relative to the spec's folder. `--output-dir` or `RAT_OUTPUT_DIR` replaces "
        "it when the script runs."
    )
    parallel: Parallel
    elastic: dict[str, Size] | None = Field(
        default=None,
        description="The split of the batch by number of nodes. It is there only if `resources.nodes` is a range; a "
        "start takes the row of the nodes that it was given.",
    )
    hardware: Hardware
    memory: Memory
    inputs: dict[str, str] = Field(description="Digests of the files from which the lock was compiled, by their path.")
    artifacts: dict[str, str] = Field(
        description="Digests of the files that were compiled together with the lock, by their path from its folder. "
        "If one differs, the run refuses to start."
    )
    fsdp2: Fsdp2 | None = None
    detection: Detection | None = None
    tasks: dict[str, Part] | None = Field(
        default=None,
        description="The tasks by name. The key is present with `task_type: multi` only; `data.dataset` is then "
        "`joint`.",
    )
    compression: Compression | None = None
    health: Health | None = None
    job: dict[str, Any] | None = Field(
        default=None,
        description="Request to the scheduler, and how the job is started, stopped and requeued. Absent with the "
        "target `local`. The scripts act upon it, the runtime does not.",
    )
    own_code: dict[str, OwnModule] | None = Field(
        default=None,
        description="Your own modules that the spec's names import, by their path from the spec's folder. Absent if "
        "there are none.",
    )
    point: str | None = Field(
        default=None, description="Name of this point of an array. Its lock adds to a shared lock."
    )

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.data.image_size)

    def part(self, name: str) -> Lock:
        """Return the lock of one of several tasks as if it were alone, except for `data.data_dir`."""
        found = (self.tasks or {})[name]
        known = {key: value for key, value in found.data if key != "folder"}
        distances = bool(self.evaluation.hausdorff) and found.task_type == "segmentation"
        return self.replace(
            task_type=found.task_type,
            training=self.training.replace(loss=found.loss),
            data=self.data.replace(**known),
            evaluation=self.evaluation.replace(hausdorff=distances),
            detection=found.detection,
            tasks=None,
        )

    def learnt(self) -> dict[str, Any]:
        """Return the values that decide the weights: task, seed, model, training and data.

        World size, micro-batch and loader settings are left out: the order of samples depends on the global batch
        alone, so a run may continue with another number of processes.
        """
        training = self.training.model_dump()
        for placement in (
            "micro_batch_size",
            "gradient_accumulation_steps",
            "activation_checkpointing",
            "compile",
            "tf32",
            "callbacks",
            "callback_args",
            "allocator",
        ):
            del training[placement]
        if self.training.momentum is None:  # as it was before there was this key
            del training["momentum"]
        if self.training.early_stopping is None:
            del training["early_stopping"]
        if self.training.init_from is None:
            del training["init_from"]
        else:  # the digest says which weights they are
            del training["init_from"]["path"]
        for key in ("optimizer_args", "frozen", "parameter_groups", "extensions"):
            if not training[key]:
                del training[key]
        data = {key: getattr(self.data, key) for key in _LEARNT_DATA}
        if self.data.folds is not None:
            data["folds"] = self.data.folds.model_dump()
        # The same model, computed with less memory.
        model = {key: value for key, value in self.model.model_dump().items() if key != "attention_memory"}
        if self.model.output is None:  # checkpoints of locks without this key stay valid
            del model["output"]
        head = None if self.detection is None else self.detection.model_dump()
        learnt = {
            "task_type": self.task_type,
            "seed": self.seed,
            "model": model,
            "training": training,
            "data": data,
            "detection": head,
        }
        # Only if there are some, so that the fingerprints of other locks do not change.
        if self.tasks is not None:
            learnt["tasks"] = _learnt_parts(self.tasks)
        if self.compression is not None:
            learnt["compression"] = self.compression.learnt()
        return learnt

    def fingerprint(self) -> str:
        """Return the hash of the values that decide the weights. A checkpoint is continued only under the same one."""
        parts = list(self.learnt().values())
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def continues(self, fingerprint: str, epochs: int) -> Lock:
        """Return the plan under whose `fingerprint` a checkpoint was made, of `epochs` epochs, if this one only adds
        epochs to it; else this lock.

        A plan of fewer epochs has the same schedule in these if an extension begins after them, or if the schedule does
        not depend on their number (`step` and `none`).
        """
        training, earlier = self.training, list[Lock]()
        if self.compression is None:
            parts = training.extensions
            earlier = [
                self.replace(training=training.replace(epochs=part.after, extensions=parts[:number]))
                for number, part in enumerate(parts)
            ]
            if training.scheduler != "cosine" and max([0, *(part.after for part in parts)]) < epochs < training.epochs:
                earlier.append(self.replace(training=training.replace(epochs=epochs)))
        return next((plan for plan in earlier if plan.fingerprint() == fingerprint), self)


def _learnt_parts(tasks: dict[str, Part]) -> dict[str, Any]:
    """Return the values of several tasks that decide the weights, without folders and names of classes."""
    parts = {name: part.model_dump() for name, part in tasks.items()}
    for part in parts.values():
        del part["data"]["folder"], part["data"]["class_names"]
    return parts


def read_lock(path: Path) -> Lock:
    """Read and validate `lock.yaml`.

    Raises R505 if it cannot be read, is of another version, or has unknown or missing keys or wrong types.
    """
    content = load(path)
    if isinstance(content, dict) and "entrypoint" in content:
        raise unreadable(
            f"{path} is the lock of a program of its own (`entrypoint`)",
            "this command works only with runs of the built-in loop",
            "start the run.sh or the job that was compiled with it; scores and predictions come from the program "
            "itself",
        )
    return lock_from(content)


def load(path: Path) -> Any:
    """Return a lock's content, including the values that a point shares with its array. Raises R505 as `read_lock`."""
    content = _load(path)
    if isinstance(content, dict) and "shared" in content:
        content = _with_shared(path, content)
    return content


def lock_digest(path: Path) -> str:
    """Return the SHA-256 of a lock's concatenated files, by which a job script identifies the lock.

    A point's lock is two files, the shared one first. Raises R505 if a file cannot be read.
    """
    content = load_yaml(path)
    shared = content.get("shared") if isinstance(content, dict) else None
    digest = hashlib.sha256()
    try:
        for file in [path] if shared is None else [path.parent / str(shared), path]:
            with open_regular(file) as opened:
                digest.update(opened.read(MAX_LOCK_BYTES))
    except OSError as error:
        raise unreadable(f"{error.filename} cannot be read", error.strerror or str(error)) from None
    return digest.hexdigest()


def lock_from(content: Any) -> Lock:
    """Return the lock of a plain mapping, such as from `model_dump`. Raises R505 as `read_lock`."""
    wrong = list(not_plain(content))
    try:
        lock = Lock.model_validate(content)
    except ValidationError as error:
        named = {one.at for one in wrong}
        more = wrong_values(error.errors(include_url=False))
        raise refuse_all([*wrong, *(one for one in more if one.at not in named)]) from None
    wrong = wrong or list(contradictions(lock))
    if wrong:
        raise refuse_all(wrong)
    return lock


def _load(path: Path) -> Any:
    content = load_yaml(path)
    if isinstance(content, dict) and content.get("lock_version", LOCK_VERSION) != LOCK_VERSION:
        raise unreadable(
            f"{path} has lock_version {content['lock_version']!r:.40}",
            f"this runtime reads version {LOCK_VERSION}",
        )
    artifacts = content.get("artifacts") if isinstance(content, dict) else None
    for name in artifacts if isinstance(artifacts, dict) else ():
        if not isinstance(name, str) or not _ARTIFACT.fullmatch(name):
            raise unreadable(f"the lock lists the file {name!r:.80}, and there is no such file beside the lock")
    return content


def _with_shared(path: Path, own: dict[str, Any]) -> Any:
    """Return a point's lock merged over the shared lock of its array.

    The shared lock's artifacts are relative to its own folder; in the result they are relative to the point's.
    """
    relative = own.pop("shared")
    if relative != _SHARED or own.get("point") != path.resolve().parent.name:
        raise unreadable(
            f"{path} is not a point's lock", f"`shared` is {_SHARED}, and `point` is the name of its folder"
        )
    shared = _load(path.parent / relative)
    if not isinstance(shared, dict) or not isinstance(shared.get("artifacts"), dict):
        raise unreadable(f"the shared lock {path.parent / relative} is not a lock")
    folder = relative.rpartition("/")[0]
    shared["artifacts"] = {f"{folder}/{name}": digest for name, digest in shared["artifacts"].items()}
    return _laid_over(shared, own)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged
