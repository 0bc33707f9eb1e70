"""The request to the runtime for a trace of a plan's step: docs/reference/trace.md."""

from __future__ import annotations

from typing import Any

from ratc.catalog import cublas
from ratc.memory.choose import Variant
from ratc.plan import Plan

_TRAINING = (
    "optimizer",
    "betas",
    "weight_decay",
    "learning_rate",
    "gradient_clipping",
    "compile",
)


def variant(plan: Plan, kernels: str) -> Variant:
    """Return the variant of the plan itself, on a card with these kernels (`Device.kernels`)."""
    values = plan.values
    attention = values.get("model.attention_memory")
    return Variant(
        precision=values.get_as(str, "training.precision"),
        kernels=kernels,
        activation_checkpointing=which(values["training.activation_checkpointing"].value),
        image_size=tuple(values["data.image_size"].value),
        engine="deepspeed" if values["engine.deepspeed"].value else "torch",
        attention_memory=attention.value if attention else "full",
    )


def which(checkpointed: Any) -> bool | tuple[str, ...]:
    """Return the blocks to recompute, from a plan or a file: all, none, or some names."""
    return tuple(map(str, checkpointed)) if isinstance(checkpointed, (list, tuple)) else bool(checkpointed)


def _plain(checkpointed: bool | tuple[str, ...]) -> bool | list[str]:
    return checkpointed if isinstance(checkpointed, bool) else list(checkpointed)


def request(plan: Plan, wanted: Variant, accumulation: int, one_sample: bool = False) -> dict[str, Any]:
    """Return the request for a variant of the plan's step. ``accumulation`` is 1 or, for any larger number, 2
    micro-batches in a step. With ``one_sample`` the trace is valid only for a micro-batch of 1.
    """
    values = plan.values
    model = {"name": values["model.name"].value, "multi_scale": values["model.multi_scale"].value}
    if "model.output" in values:
        model["output"] = values["model.output"].value
    training: dict[str, Any] = {key: values[f"training.{key}"].value for key in _TRAINING}
    training |= {
        "precision": wanted.precision,
        **({"momentum": values["training.momentum"].value} if "training.momentum" in values else {}),
        **({"frozen": values["training.frozen"].value} if "training.frozen" in values else {}),
        **(
            {"parameter_groups": values["training.parameter_groups"].value}
            if "training.parameter_groups" in values
            else {}
        ),
        **({"optimizer_args": _under(plan, "training.optimizer_args")} if _is_own(plan) else {}),
        "tf32": values["training.tf32"].value,
        "activation_checkpointing": _plain(wanted.activation_checkpointing),
        "loss": {"name": values["training.loss.name"].value, "args": _under(plan, "training.loss.args")},
    }
    task = values["task_type"].value
    kinds = {
        path.split(".")[1]: value.value
        for path, value in values.items()
        if path.startswith("tasks.") and path.endswith(".task_type")
    }
    several = {name: _part(plan, f"tasks.{name}", kind) for name, kind in kinds.items()}
    head: dict[str, Any] = {"tasks": several} if several else {}
    head |= {"detection": _under(plan, "detection")} if task == "detection" else {}
    workspace = cublas.workspace_bytes(plan.variables)
    return {
        "task_type": task,
        **head,
        "model": {**model, "args": _under(plan, "model.args"), "attention_memory": wanted.attention_memory},
        "training": training,
        "data": {
            "image_size": list(wanted.image_size),
            "channels": values["data.channels"].value,
            "scales": values["data.scales"].value,
            "num_classes": values["data.num_classes"].value,
            "ignore_index": values["data.ignore_index"].value,
            **_example(plan),
        },
        "engine": wanted.engine,
        "accumulation": accumulation,
        "compute_capability": wanted.kernels,
        **({"cublas_workspace": workspace} if workspace is not None else {}),
        **({"batch_sizes": [1]} if one_sample else {}),
    }


def _part(plan: Plan, at: str, kind: str) -> dict[str, Any]:
    """Return the values of one of several tasks that affect the memory of a step."""
    values = plan.values
    return {
        "task_type": kind,
        "weight": values[f"{at}.weight"].value,
        "loss": {"name": values[f"{at}.loss.name"].value, "args": _under(plan, f"{at}.loss.args")},
        "data": {key: values[f"{at}.data.{key}"].value for key in ("num_classes", "ignore_index")},
        **({"detection": _under(plan, f"{at}.detection")} if kind == "detection" else {}),
    }


def _example(plan: Plan) -> dict[str, Any]:
    """Return the data set of a custom task, whose `example` has the form of its inputs and targets."""
    if plan.values["task_type"].value != "custom":
        return {}
    return {"dataset": plan.values["data.dataset"].value, "args": _under(plan, "data.args")}


def _is_own(plan: Plan) -> bool:
    return ":" in plan.values.get_as(str, "training.optimizer")


def _under(plan: Plan, path: str) -> dict[str, Any]:
    """Return the mapping that the plan holds as single entries below a path."""
    prefix = f"{path}."
    return {name[len(prefix) :]: value.value for name, value in plan.values.items() if name.startswith(prefix)}
