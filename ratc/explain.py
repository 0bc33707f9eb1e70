"""Why a value is what it is: the chain from a value down to the lines it was made from."""

from __future__ import annotations

from dataclasses import dataclass

from ratc.plan import Plan, Value

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
class Link:
    """A value with what it was made from. ``is_above`` says that those stand above, under the same path, already."""

    path: str
    value: Value
    below: tuple[Link, ...] = ()
    is_above: bool = False


def find(plan: Plan, path: str) -> list[str]:
    """The plan's paths, or input paths, that a user's words mean: one, those of a section, or those that end so."""
    for candidate in (
        RENAMED.get(path, path),
        path,
        path.replace("model.", "model.args.", 1),
        f"spec:{path}",
        f"facts:{path}",
    ):
        if plan.lookup(candidate) is not None:
            return [candidate]
    section = [name for name in plan.values if name.startswith(f"{path}.")]
    return section or [name for name in plan.values if name.endswith(f".{path}")]


def known_paths(plan: Plan) -> list[str]:
    """Every path that can be asked about."""
    return [*plan.values, *plan.settings]


def tree(plan: Plan, path: str, seen: set[str] | None = None) -> Link | None:
    """The value and, below it, what it was made from; None where there is none. A setting that is kept as it is stands
    for itself.
    """
    value = plan.lookup(path)
    if value is None:
        return None
    if value.origin != "derived" or not value.inputs:
        return Link(path.removeprefix("spec:").removeprefix("facts:"), value)
    seen = set() if seen is None else seen
    if path in seen:
        return Link(path, value, is_above=True)
    seen.add(path)
    links = (tree(plan, below, seen) for below in value.inputs)
    return Link(path, value, tuple(link for link in links if link))


def source(value: Value) -> str:
    """Where a value comes from, in words."""
    if value.origin == "derived":
        return "worked out"
    if value.origin == "default":
        return "default"
    if value.span is None:
        return value.reason or value.origin
    # An override's place already says which variable or option it was.
    return value.span.place if value.origin in ("spec", "layer") else f"{value.reason}, {value.span.place}"
