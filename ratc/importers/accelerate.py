"""Accelerate's YAML, as `accelerate config` writes it."""

from __future__ import annotations

from collections.abc import Mapping

from ratc.importers import keys
from ratc.importers.model import Item
from ratc.yaml.parse import Document

_PLAIN = ("MULTI_GPU", "NO", "MULTI_CPU")


def _distributed(value: object) -> tuple[str, object] | str:
    if value == "DEEPSPEED":
        return "training.deepspeed", True
    return ("training.deepspeed", False) if value in _PLAIN else "ratc trains with DDP or DeepSpeed only"


def _precision(value: object) -> tuple[str, object] | str:
    known = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
    return ("training.precision", known[str(value)]) if str(value) in known else "ratc does not have this precision"


def _offload(value: object) -> tuple[str, object] | str:
    known = {"none": False, "cpu": True}
    return ("training.offload_optimizer", known[str(value)]) if str(value) in known else "ratc offloads to the CPU only"


def _cpu(value: object) -> tuple[str, object] | str:
    return ("resources.num_gpus", 0) if value is True else keys.OFF


TABLE: Mapping[str, keys.Target] = {
    "num_processes": "resources.num_gpus",
    "num_machines": "resources.nodes",
    "mixed_precision": _precision,
    "distributed_type": _distributed,
    "use_cpu": _cpu,
    "gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "deepspeed_config.gradient_accumulation_steps": "training.gradient_accumulation_steps",
    "deepspeed_config.gradient_clipping": "training.gradient_clipping",
    "deepspeed_config.zero_stage": "training.zero_stage",
    "deepspeed_config.offload_optimizer_device": _offload,
}
UNNEEDED = (
    dict.fromkeys(
        ("compute_environment", "machine_rank", "main_process_ip", "main_process_port", "rdzv_backend"),
        "ratc writes it for the cluster of the compilation",
    )
    | dict.fromkeys(
        (
            "same_network",
            "enable_cpu_affinity",
            "tpu_env",
            "downcast_bf16",
            "zero3_init_flag",
            "main_training_function",
            "gpu_ids",
            "debug",
        ),
        "ratc decides it",
    )
    | {
        "deepspeed_config.zero3_init_flag": "ratc decides it",
        "deepspeed_config.deepspeed_multinode_launcher": "ratc starts a launcher on each node",
        "deepspeed_config.deepspeed_config_file": "give that file to `ratc import` too",
    }
)


def read(document: Document) -> tuple[Item, ...]:
    """Import each leaf by the table. On a CPU, processes do not count as GPUs."""
    cpu = document.root.find(("use_cpu",))
    kind = document.root.find(("distributed_type",))
    on_cpu = (cpu is not None and cpu.value is True) or (kind is not None and kind.value == "MULTI_CPU")
    table = {**TABLE, "num_processes": lambda _: "on CPUs ratc starts one process per node"} if on_cpu else TABLE
    return keys.read(document, table, UNNEEDED)
