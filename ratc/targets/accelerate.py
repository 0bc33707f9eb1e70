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
    kind = "DEEPSPEED" if uses_deepspeed else ("MULTI_GPU" if world > 1 else "NO")
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
    return body | {
        "num_machines": values["parallel.nodes"].value,
        "num_processes": world,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": cpu,
    }
