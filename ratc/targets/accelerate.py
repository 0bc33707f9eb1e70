"""``accelerate.yaml``: the configuration of ``accelerate launch``, with keys that Accelerate 1.10 to 1.15 reads."""

from __future__ import annotations

from typing import Any

from ratc.plan import Plan
from ratc.targets import deepspeed
from ratc.targets.artifact import Artifact, Place
from ratc.yaml.write import mapping

NAME = "accelerate.yaml"


def artifact(plan: Plan, place: Place) -> Artifact:
    """The file for a plan that trains through Accelerate."""
    head = "".join(f"# {line}\n" for line in place.header)
    return Artifact(NAME, head + mapping(config(plan, place)), consumer="accelerate")


def config(plan: Plan, place: Place) -> dict[str, Any]:
    """Return the keys. With a DeepSpeed file the precision stands in that: Accelerate would refuse it here."""
    values = plan.values
    world, cpu = values.get_as(int, "parallel.world_size"), values["hardware.device"].value == "cpu"
    uses_deepspeed = bool(values["engine.deepspeed"].value)
    # MULTI_CPU would want MPI and silently starts one process without it; MULTI_GPU with use_cpu starts them all.
    shards = "fsdp2.shard" in values
    kind = "DEEPSPEED" if uses_deepspeed else "FSDP" if shards else "MULTI_GPU" if world > 1 else "NO"
    body: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": kind,
    }
    if uses_deepspeed:
        body["deepspeed_config"] = {
            "deepspeed_config_file": f"{place.down}/{deepspeed.NAME}",
            "deepspeed_multinode_launcher": "standard",
            "zero3_init_flag": False,
        }
    if shards:
        body["fsdp_config"] = _fsdp2(plan)
    body |= {
        "enable_cpu_affinity": False,
        "machine_rank": 0,
        "main_training_function": "main",
    }
    if world > 1 and values["parallel.nodes"].value == 1:
        body["main_process_port"] = 0  # a free one: a constant collides with the next job
    if not uses_deepspeed:
        precision = values["training.precision"].value
        body["mixed_precision"] = "no" if precision == "fp32" else precision
    body |= {
        "num_machines": values["parallel.nodes"].value,
        "num_processes": world,
    }
    if shards and values["fsdp2.shard_size"].value < world:
        size = values.get_as(int, "fsdp2.shard_size")
        body["parallelism_config"] = {
            "parallelism_config_dp_replicate_size": world // size,
            "parallelism_config_dp_shard_size": size,
        }
    return body | {
        "rdzv_backend": "static",
        "same_network": True,
        # With FSDP Accelerate would start one process on the CPU; the runtime takes the device from the lock.
        "use_cpu": cpu and not shards,
    }


def _fsdp2(plan: Plan) -> dict[str, Any]:
    """The keys of FSDP2. Without `wrap` the runtime finds the units, and the file says nothing of them."""
    values = plan.values
    keys: dict[str, Any] = {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": values["fsdp2.shard"].value != "grads",
        "fsdp_offload_params": values["fsdp2.offload"].value,
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_activation_checkpointing": False,
        "fsdp_cpu_ram_efficient_loading": False,
    }
    if values["fsdp2.wrap"].value:
        keys |= {
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_transformer_layer_cls_to_wrap": ",".join(values["fsdp2.wrap"].value),
        }
    return keys
