"""Contradictions between values of a lock, each of which is valid alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ratc_runtime.config import elastic, optimizers
from ratc_runtime.config.refusal import Wrong
from ratc_runtime.tasks import metrics

if TYPE_CHECKING:
    from ratc_runtime.config.lock import Lock


def contradictions(lock: Lock) -> Iterator[Wrong]:
    """Yield every contradiction of a lock with valid values."""
    yield from _of_processes(lock)
    yield from elastic.contradictions(lock)
    yield from _of_task(lock, "")
    for name in lock.tasks or {}:
        yield from _of_task(lock.part(name), f"tasks.{name}.")
    if ("momentum" in optimizers.of(lock.training.optimizer).arguments) != (lock.training.momentum is not None):
        names = " or ".join(optimizers.names("momentum"))
        yield Wrong("training.momentum", f"goes with optimizer {names}, and only with them")
    if lock.training.optimizer_args and ":" not in lock.training.optimizer:
        yield Wrong("training.optimizer_args", "go with an optimizer of your own, and only with it")
    if lock.tasks and lock.evaluation.scores:
        yield Wrong("evaluation.scores", "are of one task, and the lock has several")
    if lock.training.callback_args and len(lock.training.callback_args) != len(lock.training.callbacks):
        yield Wrong("training.callback_args", "has not as many values as training.callbacks")
    if lock.engine.deepspeed and not optimizers.of(lock.training.optimizer).zero:
        taken = " and ".join(optimizers.names("zero"))
        yield Wrong("training.optimizer", f"is {lock.training.optimizer:.80}, and DeepSpeed takes {taken}")
    if len(lock.data.scales) > 1 and not lock.model.multi_scale:
        yield Wrong("data.scales", "are several, and model.multi_scale is false")
    during = lock.compression is not None and (lock.compression.begin_epoch is not None or lock.compression.aware)
    if during and lock.engine.deepspeed:
        yield Wrong("compression", "while training does not go with engine.deepspeed")
    known = (*metrics(lock), "loss")
    asked = {"checkpoint.best_metric": lock.checkpoint.best_metric}
    if lock.training.early_stopping is not None:
        asked["training.early_stopping.metric"] = lock.training.early_stopping.metric
    for path, name in asked.items():
        if name not in known:
            yield Wrong(path, f"is {name!r:.40}, expected {', '.join(known)}")


def _of_processes(lock: Lock) -> Iterator[Wrong]:
    parallel, engine = lock.parallel, lock.engine
    if parallel.nodes * parallel.processes_per_node != parallel.world_size:
        yield Wrong("parallel.nodes", "x processes_per_node is not its world_size")
    if lock.fsdp2 is not None:
        yield from _of_shards(lock)
    if engine.deepspeed and lock.checkpoint.asynchronous:
        yield Wrong("checkpoint.asynchronous", "is true, and engine.deepspeed writes shards itself")
    if engine.deepspeed and parallel.world_size == 1 and not engine.use_accelerate:
        yield Wrong("engine.deepspeed", "without use_accelerate needs more than one process")


def _of_shards(lock: Lock) -> Iterator[Wrong]:
    asked, size = lock.fsdp2, lock.parallel.world_size
    assert asked is not None
    if size % asked.shard_size:
        yield Wrong("fsdp2.shard_size", f"is {asked.shard_size}, which does not divide parallel.world_size {size}")
    elif (asked.shard == "hybrid") != (asked.shard_size < size):
        yield Wrong("fsdp2.shard_size", f"is {asked.shard_size} of {size} processes with shard {asked.shard}")
    if lock.engine.deepspeed:
        yield Wrong("fsdp2", "does not go with engine.deepspeed")
    if not optimizers.of(lock.training.optimizer).sharded:
        taken = ", ".join(optimizers.names("sharded"))
        yield Wrong("training.optimizer", f"is {lock.training.optimizer:.80}, and FSDP2 takes {taken}")
    if lock.training.precision == "fp16":
        yield Wrong("training.precision", "is fp16, and fsdp2 takes fp32 and bf16")
    if asked.weights == "bf16" and lock.training.precision != "bf16":
        yield Wrong("fsdp2.weights", "are bf16, and training.precision is not")
    if lock.training.compile:
        yield Wrong("training.compile", "does not go with fsdp2")
    if asked.offload and lock.hardware.device == "cpu":
        yield Wrong("fsdp2.offload", "needs a GPU to offload from")
    if lock.checkpoint.asynchronous:
        yield Wrong("checkpoint.asynchronous", "is true, and fsdp2 writes shards itself")
    if lock.compression is not None and (lock.compression.begin_epoch is not None or lock.compression.aware):
        yield Wrong("compression", "while training does not go with fsdp2")


def _of_task(lock: Lock, at: str) -> Iterator[Wrong]:
    names, number = len(lock.data.class_names), lock.data.num_classes
    if names != number:
        yield Wrong(f"{at}data.class_names", f"has {names} values, expected {number}")
    if lock.task_type == "classification" and number < 2:
        yield Wrong(f"{at}data.num_classes", f"is {number}, expected at least 2 with task_type classification")
    if (lock.task_type == "detection") != (lock.detection is not None):
        yield Wrong(f"{at}detection", "section goes with task_type detection, and only with it")
    if (lock.task_type == "multi") != bool(lock.tasks):
        yield Wrong(f"{at}tasks", "section goes with task_type multi, and only with it")
