"""Declarations for the plan's values that no key of the spec gives under its own name; see `ratc/spec/keys.py`."""

from __future__ import annotations

from ratc.spec.keys import LEARNT, Effect, Key

#: By the pattern of the plan's path.
DERIVED: dict[str, Key] = {
    "training.tf32": Key((Effect.TRAINING,), "float32 products are rounded in another way", memory="depends"),
    "training.max_steps_per_epoch": Key((*LEARNT, Effect.COST), "another number of steps in an epoch"),
    "training.optimizer_args.*": Key((*LEARNT, Effect.MEMORY), "the optimizer gets other arguments", memory="depends"),
    "training.callback_args": Key((Effect.TRAINING,), "your callbacks are made with other arguments"),
    "training.loss.*": Key(LEARNT, "other training", memory="depends"),
    "data.persistent_workers": Key((Effect.PLACEMENT,), "loader processes are kept from epoch to epoch, or not"),
    "data.cache_size_bytes": Key(
        (Effect.PLACEMENT,), "decoded images are cached in another way; the trained model is the same"
    ),
    "tasks.*.loss.*": Key((*LEARNT, Effect.MEMORY), "another loss of the task"),
    "deepspeed.bucket_elements": Key(
        (Effect.MEMORY,), "DeepSpeed sends data in buckets of another size", memory="decides"
    ),
    "deepspeed.*": Key((Effect.MEMORY,), "DeepSpeed sends data in buckets of another size"),
    "parallel.*": Key((Effect.PLACEMENT,), "another set of processes does the same step", job=True),
    "hardware.device": Key((Effect.COST, Effect.MEMORY), "another kind of device"),
    "hardware.memory_bytes": Key((Effect.MEMORY,), "another limit for the memory of a step"),
    "hardware.cpu_architecture": Key((Effect.PLACEMENT,), "the job's environment is for another processor", job=True),
    "hardware.*": Key((Effect.PLACEMENT,), "other hardware", memory="depends", job=True),
    "health.*": Key((Effect.PLACEMENT,), "another check of the nodes before training"),
    "memory.*": Key((Effect.MEMORY,)),
    "elastic.*.prefetch_factor": Key((Effect.PLACEMENT,), "other batches are prepared ahead"),
    "elastic.*.peak_*": Key((Effect.MEMORY,)),
    "elastic.*": Key((Effect.COST,), "the same step on another number of nodes"),
    "job.walltime_seconds": Key((Effect.COST,), "another time limit"),
    "job.cpus_per_node": Key((Effect.COST,), "the job asks for another number of CPU cores"),
    "job.memory_bytes_per_node": Key((Effect.COST,), "the job asks for another amount of memory"),
    "job.name": Key((Effect.COSMETIC,), "the job has another name in the queue", memory="apart"),
    "job.*": Key((Effect.PLACEMENT,), "the job asks the scheduler for something else", job=True),
}
