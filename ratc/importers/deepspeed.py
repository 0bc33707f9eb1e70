"""DeepSpeed's JSON."""

from __future__ import annotations

from collections.abc import Mapping

from ratc.importers import keys
from ratc.importers.model import Carried, Item
from ratc.yaml.parse import Document


def _offload(value: object) -> tuple[str, object] | str:
    known = {"none": False, "cpu": True}
    return ("training.offload_optimizer", known[str(value)]) if str(value) in known else "ratc offloads to the CPU only"


def _precision(name: str) -> keys.Target:
    def target(value: object) -> tuple[str, object] | str:
        return ("training.precision", name) if value is True else keys.OFF

    return target


def _adamw(value: object) -> tuple[str, object] | str:
    known = str(value).lower() == "adamw"
    return ("training.optimizer", "adamw") if known else "ratc copies settings of AdamW only"


TABLE: Mapping[str, keys.Target] = {
    "train_batch_size": "training.target_batch_size",
    "train_micro_batch_size_per_gpu": "training.batch_size",
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "gradient_clipping": "training.gradient_clipping",
    "zero_optimization.stage": "training.zero_stage",
    "zero_optimization.offload_optimizer.device": _offload,
    "bf16.enabled": _precision("bf16"),
    "fp16.enabled": _precision("fp16"),
    "optimizer.type": _adamw,
    "optimizer.params.lr": "training.learning_rate",
    "optimizer.params.betas": "training.betas",
    "optimizer.params.weight_decay": "training.weight_decay",
}
_BUCKETS = ("contiguous_gradients", "overlap_comm", "reduce_scatter", "reduce_bucket_size", "allgather_partitions")
UNNEEDED = {
    f"zero_optimization.{name}": "ratc chooses it"
    for name in (*_BUCKETS, "allgather_bucket_size", "round_robin_gradients")
} | dict.fromkeys(
    ("steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
    "ratc writes it itself",
)


def read(document: Document) -> tuple[Item, ...]:
    """Import each leaf by the table. ``deepspeed`` itself follows from the stage."""
    items = keys.read(document, TABLE, UNNEEDED)
    return tuple(_zero(item) for item in items)


def _zero(item: Item) -> Item:
    """Turn a clipping of 0 into None: it means no clipping."""
    if isinstance(item, Carried) and item.path == "training.gradient_clipping" and item.value == 0:
        return Carried(item.path, None, item.span, item.source)
    return item
