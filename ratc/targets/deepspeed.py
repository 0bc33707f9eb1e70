"""``deepspeed.json``: the configuration of DeepSpeed, with Accelerate or by itself. Sizes that cost memory are set."""

from __future__ import annotations

import json
from typing import Any

from ratc.plan import Plan
from ratc.targets.artifact import Artifact

NAME = "deepspeed.json"


def artifact(plan: Plan) -> Artifact:
    """The file for a plan that uses DeepSpeed."""
    return Artifact(NAME, json.dumps(config(plan), indent=2) + "\n", consumer="deepspeed")


def config(plan: Plan) -> dict[str, Any]:
    """The configuration as DeepSpeed 0.17 to 0.19 reads it."""
    values = plan.values
    stage = values.get_as(int, "engine.zero_stage")
    precision = values["training.precision"].value
    bucket = values.get_as(int, "deepspeed.bucket_elements")
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": values["hardware.device"].value == "cuda",
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_partitions": True,
        "allgather_bucket_size": bucket,
        # Its order of weights is lost when a checkpoint is converted for another number of processes.
        "round_robin_gradients": stage == 2 and not plan.sizes,
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": 100_000,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    if values["engine.offload_optimizer"].value:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": values["hardware.device"].value == "cuda"}
    body: dict[str, Any] = {
        "train_batch_size": values["training.global_batch_size"].value,
        "train_micro_batch_size_per_gpu": values["training.micro_batch_size"].value,
        "gradient_accumulation_steps": values["training.gradient_accumulation_steps"].value,
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        # The runtime's AdamW is torch's own, which DeepSpeed calls untested with ZeRO.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if precision == "fp16":
        body["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        }
    if values["training.gradient_clipping"].value is not None:
        body["gradient_clipping"] = values["training.gradient_clipping"].value
    return body
