"""The lock as typed, frozen dataclasses: reading `lock.yaml` is the only way into a run.

The classes mirror docs/reference/lock.md field by field. Reading is strict: an unknown or a missing key, a value of
another type or a version this runtime does not know is R505, because a lock that is read half is not the run
that was reviewed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ratc_runtime.config.strict import LOCK_VERSION, load_yaml, read_class, unreadable
from ratc_runtime.tasks import METRICS, PARTS, metrics

#: An artifact's path from its lock's folder: nothing outside of that folder.
_ARTIFACT = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*/)*[A-Za-z0-9_][A-Za-z0-9._-]*")
#: From a point's lock, the one that all points share.
_SHARED = "../../lock.yaml"
# What of the data decides the weights: not where they lie, what classes are called, or how they are loaded.
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


@dataclass(frozen=True)
class Model:
    name: str
    multi_scale: bool
    args: dict[str, Any]
    attention_memory: Literal["full", "fused", "chunked"]
    #: The key of the logits in a mapping that the model returns; None: it returns what its task needs.
    output: str | None = None


@dataclass(frozen=True)
class Loss:
    name: str
    args: dict[str, Any]


@dataclass(frozen=True)
class Training:
    epochs: int
    max_steps_per_epoch: int | None
    learning_rate: float
    optimizer: Literal["adamw"]
    weight_decay: float
    betas: list[float]
    scheduler: Literal["cosine", "step", "none"]
    warmup_epochs: float
    min_learning_rate: float
    step_epochs: int
    step_gamma: float
    gradient_clipping: float | None
    loss: Loss
    precision: Literal["fp32", "fp16", "bf16"]
    tf32: bool
    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    last_batch: Literal["drop", "keep"]
    activation_checkpointing: bool
    compile: bool
    callbacks: list[str]
    #: How torch's CUDA allocator takes memory; None on the CPU, and in locks from before it was planned.
    allocator: Literal["native", "expandable_segments"] | None = None


@dataclass(frozen=True)
class Engine:
    use_accelerate: bool
    deepspeed: bool
    zero_stage: int
    offload_optimizer: bool


@dataclass(frozen=True)
class Data:
    dataset: str
    args: dict[str, Any]
    data_dir: str
    image_size: list[int]
    channels: int
    num_classes: int
    class_names: list[str]
    ignore_index: int | None
    scales: list[float]
    on_bad_sample: Literal["fail", "skip"]
    augmentations: list[dict[str, Any]]
    cache: Literal["none", "memory", "disk"]
    cache_size_bytes: int | None
    num_workers: int
    pin_memory: bool
    persistent_workers: bool
    prefetch_factor: int | None


@dataclass(frozen=True)
class Evaluation:
    hausdorff: bool


@dataclass(frozen=True)
class Detection:
    queries: int
    decoder_layers: int


@dataclass(frozen=True)
class PartData:
    """What the data of one of several tasks has for itself; sizes, channels and loading are those of all."""

    folder: str
    dataset: str
    args: dict[str, Any]
    num_classes: int
    class_names: list[str]
    ignore_index: int | None


@dataclass(frozen=True)
class Part:
    """One of several tasks of a run."""

    task_type: str
    weight: float
    loss: Loss
    data: PartData
    detection: Detection | None = None


@dataclass(frozen=True)
class Logging:
    tensorboard: bool
    mlflow: bool
    mlflow_experiment_name: str
    wandb: bool
    wandb_project: str
    wandb_mode: Literal["online", "offline"]
    log_every_steps: int


@dataclass(frozen=True)
class Checkpoint:
    every_epochs: int
    every_steps: int | None
    keep_last: int
    keep_best: int
    best_metric: str
    resume: Literal["auto", "never"]
    asynchronous: bool
    own_code: Literal["strict", "warn"] = "strict"


@dataclass(frozen=True)
class Parallel:
    world_size: int
    nodes: int
    processes_per_node: int
    backend: Literal["gloo", "nccl"]
    threads_per_process: int | None
    timeout_seconds: int | None


@dataclass(frozen=True)
class Hardware:
    device: Literal["cpu", "cuda"]
    card: str | None
    compute_capability: str | None
    memory_bytes: int | None


@dataclass(frozen=True)
class Memory:
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    margin: float | None


@dataclass(frozen=True)
class Compression:
    """How the model is made smaller; without `begin_epoch` it is pruned after training."""

    sparsity: float
    structured: bool
    begin_epoch: int | None
    end_epoch: int | None
    quantization: Literal["none", "weight_only", "dynamic"]
    aware: bool
    metric: str
    tolerance: float

    def learnt(self) -> dict[str, Any]:
        """What of it decides the weights that are trained."""
        return {key: getattr(self, key) for key in ("sparsity", "structured", "begin_epoch", "end_epoch", "aware")}


@dataclass(frozen=True)
class OwnModule:
    """A module of the user's own: the digest of its file, and a short one of each function and class in it."""

    digest: str
    parts: dict[str, str]


@dataclass(frozen=True)
class Lock:
    """One run, every value concrete."""

    lock_version: int
    ratc_version: str
    target: str
    experiment_name: str
    description: str
    task_type: str
    seed: int
    debug: bool
    model: Model
    training: Training
    engine: Engine
    data: Data
    evaluation: Evaluation
    logging: Logging
    checkpoint: Checkpoint
    output_dir: str
    parallel: Parallel
    hardware: Hardware
    memory: Memory
    inputs: dict[str, str]
    artifacts: dict[str, str]
    #: The detection head; None for other tasks.
    detection: Detection | None = None
    #: The tasks of `task_type: multi`, by name; None where there is one.
    tasks: dict[str, Part] | None = None
    #: How the model is made smaller; None where it is not.
    compression: Compression | None = None
    #: What the job asked a scheduler for; absent on `local`. For people: nothing here is acted upon.
    job: dict[str, Any] | None = None
    #: The modules beside the spec that its names reach, by their path from its folder; None where there are none.
    own_code: dict[str, OwnModule] | None = None
    #: The name of this point of an array, whose lock adds to a shared one; None outside of arrays.
    point: str | None = None

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.data.image_size)

    def part(self, name: str) -> Lock:
        """Return the lock that one of several tasks would have for itself, but for `data.data_dir`."""
        found = (self.tasks or {})[name]
        known = {key: value for key, value in vars(found.data).items() if key != "folder"}
        distances = bool(self.evaluation.hausdorff) and found.task_type == "segmentation"
        return dataclasses.replace(
            self,
            task_type=found.task_type,
            training=dataclasses.replace(self.training, loss=found.loss),
            data=dataclasses.replace(self.data, **known),
            evaluation=dataclasses.replace(self.evaluation, hausdorff=distances),
            detection=found.detection,
            tasks=None,
        )

    def file(self, name: str) -> str | None:
        """Return the path, from the lock's folder, of the artifact of that name; None where the lock has none.

        A point's own file comes before the one that all points share.
        """
        found = [path for path in self.artifacts if path.rpartition("/")[2] == name]
        return min(found, key=len) if found else None

    def learnt(self) -> dict[str, Any]:
        """Return what decides the weights: task, seed, model, training and data.

        World size, micro-batch and loader settings are left out: the order of samples depends on the global
        batch alone, so a run may go on with another number of processes.
        """
        training = dataclasses.asdict(self.training)
        for placement in (
            "micro_batch_size",
            "gradient_accumulation_steps",
            "activation_checkpointing",
            "compile",
            "tf32",
            "callbacks",
            "allocator",
        ):
            del training[placement]
        data = {key: getattr(self.data, key) for key in _LEARNT_DATA}
        # The same model, computed with less memory.
        model = {key: value for key, value in dataclasses.asdict(self.model).items() if key != "attention_memory"}
        if self.model.output is None:  # as it was before there was this key
            del model["output"]
        head = None if self.detection is None else dataclasses.asdict(self.detection)
        learnt = {
            "task_type": self.task_type,
            "seed": self.seed,
            "model": model,
            "training": training,
            "data": data,
            "detection": head,
        }
        # Only where there are some: the fingerprints of other locks stay what they were.
        if self.tasks is not None:
            learnt["tasks"] = _learnt_parts(self.tasks)
        if self.compression is not None:
            learnt["compression"] = self.compression.learnt()
        return learnt

    def fingerprint(self) -> str:
        """Return the hash of what decides the weights; a checkpoint is continued only under the same one."""
        parts = list(self.learnt().values())
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def code(self) -> str | None:
        """Return the hash of the user's own code, for which comments and blank lines do not count; None if none."""
        if self.own_code is None:
            return None
        parts = {path: module.parts or module.digest for path, module in self.own_code.items()}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _learnt_parts(tasks: dict[str, Part]) -> dict[str, Any]:
    """What of several tasks decides the weights: not where their data lie, or what classes are called."""
    parts = {name: dataclasses.asdict(part) for name, part in tasks.items()}
    for part in parts.values():
        del part["data"]["folder"], part["data"]["class_names"]
    return parts


def read_lock(path: Path) -> Lock:
    """Read and check `lock.yaml`.

    Raises R505 if it cannot be read, is of another version, or has unknown or missing keys or wrong types.
    """
    content = _load(path)
    if isinstance(content, dict) and "shared" in content:
        content = _with_shared(path, content)
    return lock_from(content)


def lock_digest(path: Path) -> str:
    """Return the SHA-256 of a lock's files, one after the other: by this a job script knows "this very lock".

    A point's lock is two files, the shared one first. Raises R505 if a file cannot be read.
    """
    content = load_yaml(path)
    shared = content.get("shared") if isinstance(content, dict) else None
    digest = hashlib.sha256()
    try:
        for file in [path] if shared is None else [path.parent / str(shared), path]:
            digest.update(file.read_bytes())
    except OSError as error:
        raise unreadable(f"{error.filename} cannot be read", error.strerror or str(error)) from None
    return digest.hexdigest()


def lock_from(content: Any) -> Lock:
    """Return the lock of a plain mapping, as `dataclasses.asdict` makes it of one; raises R505 as `read_lock` does."""
    lock: Lock = read_class(Lock, content, "")
    _check_ranges(lock)
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
            raise unreadable(f"the lock's artifact {name!r:.80} is no file beside it")
    return content


def _with_shared(path: Path, own: dict[str, Any]) -> Any:
    """Return a point's lock laid over the one that it shares with the other points of its array.

    The shared lock's artifacts are named from its own folder; here they are from the point's.
    """
    relative = own.pop("shared")
    if relative != _SHARED or own.get("point") != path.resolve().parent.name:
        raise unreadable(f"{path} is no point's lock", f"`shared` is {_SHARED}, and `point` is the name of its folder")
    shared = _load(path.parent / relative)
    if not isinstance(shared, dict) or not isinstance(shared.get("artifacts"), dict):
        raise unreadable(f"the shared lock {path.parent / relative} is no lock")
    folder = relative.rpartition("/")[0]
    shared["artifacts"] = {f"{folder}/{name}": digest for name, digest in shared["artifacts"].items()}
    return _laid_over(shared, own)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def _check_ranges(lock: Lock) -> None:
    training, data = lock.training, lock.data
    positive: dict[str, float] = {
        "training.epochs": training.epochs,
        "training.global_batch_size": training.global_batch_size,
        "training.micro_batch_size": training.micro_batch_size,
        "training.gradient_accumulation_steps": training.gradient_accumulation_steps,
        "training.step_epochs": training.step_epochs,
        "parallel.world_size": lock.parallel.world_size,
        "checkpoint.every_epochs": lock.checkpoint.every_epochs,
        "checkpoint.every_steps": 1 if lock.checkpoint.every_steps is None else lock.checkpoint.every_steps,
        "checkpoint.keep_last": lock.checkpoint.keep_last,
        "checkpoint.keep_best": lock.checkpoint.keep_best,
        "logging.log_every_steps": lock.logging.log_every_steps,
        "data.channels": data.channels,
        "data.num_classes": data.num_classes,
        "data.scales": min(data.scales, default=0),
        "data.image_size": min(data.image_size, default=0),
    }
    if lock.parallel.timeout_seconds is not None:
        positive["parallel.timeout_seconds"] = lock.parallel.timeout_seconds
    if lock.detection is not None:
        positive["detection.queries"] = lock.detection.queries
        positive["detection.decoder_layers"] = lock.detection.decoder_layers
    for where, value in positive.items():
        if value <= 0:
            raise unreadable(f"the lock's {where} is {value}, expected more than zero")
    lengths = (
        ("data.image_size", data.image_size, (2, 3)),
        ("training.betas", training.betas, (2,)),
        ("data.class_names", data.class_names, (data.num_classes,)),
    )
    for where, found, expected in lengths:
        if len(found) not in expected:
            wanted = " or ".join(map(str, expected))
            raise unreadable(f"the lock's {where} has {len(found)} values, expected {wanted}")
    if len(data.scales) > 1 and not lock.model.multi_scale:
        raise unreadable("the lock's data.scales are several, and model.multi_scale is false")
    if lock.parallel.nodes * lock.parallel.processes_per_node != lock.parallel.world_size:
        raise unreadable("the lock's parallel.nodes x processes_per_node is not its world_size")
    if lock.engine.deepspeed and lock.checkpoint.asynchronous:
        raise unreadable("the lock's checkpoint.asynchronous is true, and engine.deepspeed writes shards itself")
    if lock.engine.deepspeed and lock.parallel.world_size == 1 and not lock.engine.use_accelerate:
        raise unreadable("the lock's engine.deepspeed without use_accelerate needs more than one process")
    if lock.task_type not in METRICS:
        known = " and ".join(METRICS)
        raise unreadable(f"the lock's task_type is {lock.task_type!r:.40}, this runtime trains {known}")
    if (lock.task_type == "detection") != (lock.detection is not None):
        raise unreadable("the lock's detection section goes with task_type detection, and only with it")
    if (lock.task_type == "multi") != bool(lock.tasks):
        raise unreadable("the lock's tasks section goes with task_type multi, and only with it")
    for name, part in (lock.tasks or {}).items():
        if part.task_type not in PARTS:
            raise unreadable(f"the lock's tasks.{name}.task_type is {part.task_type!r:.40}")
        if not 0 < part.weight < float("inf"):
            raise unreadable(f"the lock's tasks.{name}.weight is {part.weight}, expected more than zero")
        alone = dataclasses.replace(lock.checkpoint, best_metric="loss")
        _check_ranges(dataclasses.replace(lock.part(name), checkpoint=alone))
    if lock.compression is not None:
        if not 0 <= lock.compression.sparsity < 1:
            raise unreadable(f"the lock's compression.sparsity is {lock.compression.sparsity}, expected 0 to below 1")
        if lock.engine.deepspeed and (lock.compression.begin_epoch is not None or lock.compression.aware):
            raise unreadable("the lock's compression while training does not go with engine.deepspeed")
    if lock.checkpoint.best_metric not in (*metrics(lock), "loss"):
        raise unreadable(f"the lock's checkpoint.best_metric is {lock.checkpoint.best_metric!r:.40}")
