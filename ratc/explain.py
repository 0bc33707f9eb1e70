"""Why a value is what it is: the chain from a value down to the lines it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ratc.plan import Plan, Value
from ratc.yaml_text import scalar

#: What a key of a spec is called in the plan, where the two differ.
RENAMED = {
    "training.batch_size": "training.micro_batch_size",
    "training.target_batch_size": "training.global_batch_size",
    "training.deepspeed": "engine.deepspeed",
    "training.zero_stage": "engine.zero_stage",
    "training.offload_optimizer": "engine.offload_optimizer",
    "training.use_accelerate": "engine.use_accelerate",
    "training.mixed_precision": "training.precision",
    "training.loss": "training.loss.name",
    "distributed.backend": "parallel.backend",
    "logging.use_mlflow": "logging.mlflow",
    "logging.backend": "logging.tensorboard",
    "resources.num_gpus": "parallel.world_size",
    "resources.gpus_per_node": "parallel.processes_per_node",
    "resources.nodes": "parallel.nodes",
    "resources.gpu": "hardware.card",
}

#: What a prediction of memory may change.
DECIDED_BY_MEMORY = frozenset(
    (
        "training.micro_batch_size",
        "training.gradient_accumulation_steps",
        "model.attention_memory",
        "training.activation_checkpointing",
        "engine.zero_stage",
        "deepspeed.bucket_elements",
    )
)


@dataclass(frozen=True, slots=True)
class Step:
    """One link: ``depth`` counts how far it is from the value asked about."""

    depth: int
    path: str
    value: Value


def find(plan: Plan, path: str) -> str | None:
    """The plan's path, or input path, that a user's path means."""
    for candidate in (
        RENAMED.get(path, path),
        path,
        path.replace("model.", "model.args.", 1),
        f"spec:{path}",
        f"facts:{path}",
    ):
        if plan.lookup(candidate) is not None:
            return candidate
    return None


def known_paths(plan: Plan) -> list[str]:
    """Every path that can be asked about."""
    return [*plan.values, *plan.settings]


def chain(plan: Plan, path: str, depth: int = 0) -> Iterator[Step]:
    """The value and, below it, what it was made from. A setting that is kept as it is stands for itself."""
    value = plan.lookup(path)
    if value is None:
        return
    if value.origin != "derived" or not value.inputs:
        yield Step(depth, path.removeprefix("spec:").removeprefix("facts:"), value)
        return
    yield Step(depth, path, value)
    for below in value.inputs:
        yield from chain(plan, below, depth + 1)


def text(plan: Plan, path: str) -> str:
    """The chain as an indented list, one line a link."""
    lines = []
    for step in chain(plan, path):
        pad = "  " * step.depth
        lines.append(f"{pad}{step.path} = {scalar(step.value.value)}  [{_source(step.value)}]")
        if step.value.origin == "derived" and step.value.reason:
            lines.append(f"{pad}  because: {step.value.reason}")
    return "\n".join(lines) + "\n"


def _source(value: Value) -> str:
    if value.origin == "derived":
        return "worked out"
    if value.origin == "default":
        return "default"
    if value.span is None:
        return value.reason or value.origin
    # An override's place already says which variable or option it was.
    return value.span.place if value.origin in ("spec", "layer") else f"{value.reason}, {value.span.place}"
