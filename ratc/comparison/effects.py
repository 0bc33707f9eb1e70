"""The table of consequences: what it means for a reviewer that a path has another value. The first match counts.

``RESUME`` is what the runtime's checkpoint fingerprint holds (`ratc_runtime.config.lock.Lock.fingerprint`); a test
compares the two for every path of a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

from ratc.comparison.model import Effect
from ratc.plan import Value

_T, _R, _M, _C, _P, _N = Effect
#: What decides the weights.
_LEARNT = (_T, _R)

_Row = tuple[str, tuple[Effect, ...], str]

#: Paths of a plan, as in a lock.
PLAN: tuple[_Row, ...] = (
    ("experiment_name", (_N,), "another name"),
    ("description", (_N,), "words only"),
    ("task_type", _LEARNT, "another task"),
    ("seed", _LEARNT, "other initial weights and another order of samples"),
    ("debug", (_T, _C), "a debug run is short and proves nothing about the whole"),
    ("model.attention_memory", (_M, _C), "the same attention computed with other memory and speed"),
    ("model.*", (*_LEARNT, _M), "another model"),
    ("training.precision", (*_LEARNT, _M), "other rounding: losses are not the same to the digit"),
    ("training.tf32", (_T,), "other rounding of float32 products"),
    ("training.global_batch_size", _LEARNT, "another number of samples in each optimizer step"),
    ("training.micro_batch_size", (_M,), "the same step in other pieces; batch statistics and rounding may differ"),
    ("training.gradient_accumulation_steps", (_C,), "the same step in more or fewer pieces"),
    (
        "training.last_batch",
        (*_LEARNT, _C),
        "the rest of an epoch that fills no global batch is learnt from, or not",
    ),
    ("training.activation_checkpointing", (_M, _C), "activations are computed again instead of kept, or kept"),
    ("training.allocator", (_M,), "the same tensors in other segments of the card's memory"),
    ("training.compile", (_C,), "other kernels for the same step"),
    ("training.callbacks", (_T,), "other code of your own is called by the loop"),
    ("training.epochs", (*_LEARNT, _C), "another length, and with it another schedule"),
    ("training.max_steps_per_epoch", (*_LEARNT, _C), "another number of steps in an epoch"),
    ("training.optimizer", (*_LEARNT, _M), "another optimizer, with other state"),
    ("training.*", _LEARNT, "other training"),
    ("engine.use_accelerate", (_P,), "another launcher for the same step"),
    ("engine.deepspeed", (_R, _M), "checkpoints of the one engine are not read by the other"),
    (
        "engine.zero_stage",
        (_R, _M),
        "states are split over the ranks in another way; shards of another stage are not read",
    ),
    ("engine.offload_optimizer", (_M, _C), "the optimizer works in the host's memory, or in the GPU's"),
    ("deepspeed.*", (_M,), "other buckets for communication"),
    ("data.data_dir", (_P,), "the data lies elsewhere; whether it is the same data ratc cannot see"),
    ("data.num_workers", (_P,), "other loader processes; the order of samples stays"),
    ("data.pin_memory", (_P,), "another way to copy to the GPU"),
    ("data.persistent_workers", (_P,), "loader processes live on between epochs, or not"),
    ("data.prefetch_factor", (_P,), "more or fewer batches prepared ahead"),
    ("data.cache*", (_P,), "decoded images are kept in another way; what is learnt is the same"),
    ("data.augmentations", _LEARNT, "other random changes of the training images"),
    ("data.image_size", (*_LEARNT, _M), "other images"),
    ("data.scales", (*_LEARNT, _M), "another image pyramid"),
    ("data.channels", (*_LEARNT, _M), "other images"),
    ("data.num_classes", (*_LEARNT, _M), "other classes, and with them another head"),
    ("data.class_names", (_N,), "other words for the same classes"),
    ("data.ignore_index", _LEARNT, "other pixels count"),
    ("detection.*", (*_LEARNT, _M), "another head"),
    ("tasks.*.weight", _LEARNT, "another weight of the task's loss"),
    ("tasks.*.loss.*", (*_LEARNT, _M), "another loss of the task"),
    ("tasks.*.data.folder", (_P,), "the task's data lie elsewhere; whether it is the same data ratc cannot see"),
    ("tasks.*.data.class_names", (_N,), "other words for the same classes"),
    ("tasks.*.data.num_classes", (*_LEARNT, _M), "other classes, and with them another head"),
    ("tasks.*.data.*", _LEARNT, "other data of the task"),
    ("tasks.*", (*_LEARNT, _M), "another task"),
    ("data.*", _LEARNT, "other data"),
    ("compression.quantization", (_N,), "another way to make the trained model smaller"),
    ("compression.metric", (_N,), "another score is held when the trained model is made smaller"),
    ("compression.tolerance", (_N,), "the smaller model may lose more, or less"),
    ("compression.*", _LEARNT, "other weights are zero or rounded while training"),
    ("evaluation.*", (_C,), "other scores of the same model"),
    ("logging.*", (_N,), "other records of the same run"),
    ("checkpoint.best_metric", (_T,), "another epoch is kept as the best"),
    ("checkpoint.resume", (_P,), "whether an interrupted run is continued"),
    ("checkpoint.own_code", (_P,), "whether own code that changed keeps a run from starting"),
    ("checkpoint.asynchronous", (_P, _M), "checkpoints are written from a copy in host memory, or training waits"),
    ("checkpoint.*", (_P,), "other checkpoints of the same run"),
    ("output_dir", (_P,), "another folder; a run begins anew there"),
    ("parallel.world_size", (_C,), "another number of processes; the order of samples stays"),
    ("parallel.nodes", (_C,), "another number of nodes"),
    ("parallel.processes_per_node", (_C,), "another number of processes on a node"),
    ("parallel.timeout_seconds", (_P,), "a run that hangs is ended sooner or later"),
    ("parallel.*", (_P,), "other processes for the same step"),
    ("hardware.card", (_C, _M), "another card"),
    ("hardware.device", (_C, _M), "another kind of device"),
    ("hardware.memory_bytes", (_M,), "another limit for what fits"),
    ("hardware.*", (_P,), "other hardware"),
    ("memory.*", (_M,), ""),
    ("job.walltime_seconds", (_C,), "another time limit"),
    ("job.cpus_per_node", (_C,), "other cores are asked for"),
    ("job.memory_bytes_per_node", (_C,), "other memory is asked for"),
    ("job.name", (_N,), "another name in the queue"),
    ("job.*", (_P,), "another request to the scheduler"),
)

#: Paths of a spec whose change shows in no value of the plan.
SPEC: tuple[_Row, ...] = (
    ("sweep.max_parallel", (_P,), "more or fewer points at a time"),
    ("sweep*", (_T, _C), "other points in the array"),
    ("tuning*", (_T, _C), "another study"),
    ("environment.*", (_P,), "another environment for the script"),
    ("resources.*", (_P,), "other hardware, or another job, is asked for"),
    ("launcher*", (_P,), "another way to start the processes"),
    ("*", (_N,), "nothing that runs follows from it here"),
)


def _sharded(values: Mapping[str, Value]) -> bool:
    stage = values.get("engine.zero_stage")
    return stage is not None and bool(stage.value)


#: Paths that mean more where both plans are of a kind; these stand before `PLAN`.
_WHERE: dict[str, tuple[Callable[[Mapping[str, Value]], bool], tuple[Effect, ...], str]] = {
    # DeepSpeed refuses another number of processes when it loads ZeRO's optimizer states.
    "parallel.world_size": (_sharded, (_R, _C), "ZeRO's shards are read by as many processes as wrote them"),
}


def of_plan(
    path: str, old: Mapping[str, Value] | None = None, new: Mapping[str, Value] | None = None
) -> tuple[tuple[Effect, ...], str]:
    """Effects and meaning of another value at a plan's path, in view of both plans. Every path of a lock has a row."""
    if path in _WHERE:
        holds, effects, meaning = _WHERE[path]
        if holds(old or {}) and holds(new or {}):
            return effects, meaning
    return _first(PLAN, path)


def is_known(path: str) -> bool:
    """Whether a lock can hold a value at a path."""
    return any(fnmatchcase(path, pattern) for pattern, _, _ in PLAN)


def of_spec(path: str) -> tuple[tuple[Effect, ...], str]:
    """Effects and meaning of another value at a spec's path that no value of the plan shows."""
    return _first(SPEC, path)


def _first(rows: tuple[_Row, ...], path: str) -> tuple[tuple[Effect, ...], str]:
    for pattern, effects, meaning in rows:
        if fnmatchcase(path, pattern):
            return tuple(effect for effect in Effect if effect in effects), meaning
    raise KeyError(f"{path} has no row in the table of consequences")
