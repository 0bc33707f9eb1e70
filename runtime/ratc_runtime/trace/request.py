"""The request for a trace (docs/reference/trace.md), read from JSON, and the lock that the runtime's own code takes."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from ratc_runtime.config import lock as locks
from ratc_runtime.tasks import METRICS, PARTS

PRECISIONS = ("fp32", "fp16", "bf16")
ENGINES = ("torch", "deepspeed")
ATTENTIONS = ("full", "fused", "chunked")


class BadRequest(ValueError):
    """The request is not one of docs/reference/trace.md; the message says where."""


@dataclass(frozen=True)
class Request:
    """What is to be traced. `capability` is None for the CPU's semantics (tests), else major and minor.

    `batch_sizes` are two micro-batches, the smaller first, or one: the trace then holds for no other.
    """

    lock: locks.Lock
    engine: str
    accumulation: int
    capability: tuple[int, int] | None
    batch_sizes: tuple[int, ...]
    content: dict[str, Any]


def _get(content: Any, path: str, kind: Any, default: Any = ...) -> Any:
    value = content
    for key in path.split("."):
        if not isinstance(value, dict) or (key not in value and default is ...):
            raise BadRequest(f"the request has no {path}")
        value = value.get(key, default)
        if value is default:
            return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadRequest(f"the request's {path} is {value!r:.60}")
    return value


def _one_of(value: Any, choices: tuple[Any, ...], path: str) -> Any:
    if value not in choices:
        raise BadRequest(f"the request's {path} is {value!r:.60}, expected one of {', '.join(map(str, choices))}")
    return value


def _capability(content: dict[str, Any]) -> tuple[int, int] | None:
    if _one_of(content.get("semantics", "cuda"), ("cuda", "cpu"), "semantics") == "cpu":
        return None
    text = _get(content, "compute_capability", str)
    major, dot, minor = text.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise BadRequest(f"the request's compute_capability is {text!r:.20}, expected a form like 8.0")
    return int(major), int(minor)


def _positive(values: Any, count: int | None, path: str) -> list[int]:
    right = isinstance(values, list) and values and (count is None or len(values) == count)
    if not right or not all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in values):
        raise BadRequest(f"the request's {path} is {values!r:.60}")
    return values  # type: ignore[no-any-return]


def read(content: Any) -> Request:
    """Return the request in a JSON object; raise BadRequest if it is none."""
    training = {
        "learning_rate": _get(content, "training.learning_rate", float, 1e-4),
        "optimizer": _get(content, "training.optimizer", str),
        "weight_decay": _get(content, "training.weight_decay", float, 0.01),
        "betas": _positive(_get(content, "training.betas", list, [0.9, 0.999]), 2, "training.betas"),
        "gradient_clipping": _get(content, "training.gradient_clipping", (float, int, type(None)), None),
        "precision": _one_of(_get(content, "training.precision", str), PRECISIONS, "training.precision"),
        "tf32": _get(content, "training.tf32", bool, True),
        "activation_checkpointing": _get(content, "training.activation_checkpointing", bool, False),
    }
    sizes = _positive(_get(content, "batch_sizes", list, [2, 4]), None, "batch_sizes")
    if not all(isinstance(size, int) for size in sizes) or len(sizes) > 2 or sizes != sorted(set(sizes)):
        raise BadRequest(f"the request's batch_sizes are {sizes}, expected one or two whole numbers, the smaller first")
    accumulation = _one_of(_get(content, "accumulation", int, 1), (1, 2), "accumulation")
    data = {
        "image_size": _positive(_get(content, "data.image_size", list), None, "data.image_size"),
        "channels": _get(content, "data.channels", int),
        "scales": _positive(_get(content, "data.scales", list, [1.0]), None, "data.scales"),
        "num_classes": _get(content, "data.num_classes", int, 1),
        "ignore_index": _get(content, "data.ignore_index", (int, type(None)), None),
    }
    if len(data["image_size"]) not in (2, 3):
        raise BadRequest(f"the request's data.image_size is {data['image_size']}")
    for key in ("channels", "num_classes"):
        if data[key] <= 0:
            raise BadRequest(f"the request's data.{key} is {data[key]}")
    model = locks.Model(
        _get(content, "model.name", str),
        _get(content, "model.multi_scale", bool, False),
        _get(content, "model.args", dict, {}),
        _one_of(_get(content, "model.attention_memory", str, "full"), ATTENTIONS, "model.attention_memory"),
        _get(content, "model.output", (str, type(None)), None),
    )
    loss = locks.Loss(_get(content, "training.loss.name", str), _get(content, "training.loss.args", dict, {}))
    lock = _lock(_task(content), _detection(content), model, loss, training, data, accumulation, sizes[0])
    return Request(
        lock=dataclasses.replace(lock, tasks=_parts(content)),
        engine=_one_of(_get(content, "engine", str, "torch"), ENGINES, "engine"),
        accumulation=accumulation,
        capability=_capability(content),
        batch_sizes=tuple(sizes),
        content=content,
    )


def _filled(kind: type[Any], **known: Any) -> Any:
    """Make a part of a lock; a field that nobody names is None, or a part filled in the same way."""
    for name, hint in typing.get_type_hints(kind).items():
        if name not in known:
            known[name] = _filled(hint) if dataclasses.is_dataclass(hint) else None
    return kind(**known)


def _task(content: Any) -> str:
    return str(_one_of(_get(content, "task_type", str, "segmentation"), tuple(METRICS), "task_type"))


def _detection(content: Any) -> locks.Detection | None:
    if _task(content) != "detection":
        return None
    queries, layers = (_get(content, f"detection.{key}", int) for key in ("queries", "decoder_layers"))
    if min(queries, layers) <= 0:
        raise BadRequest(f"the request's detection has {queries} queries and {layers} layers")
    return locks.Detection(queries, layers)


def _parts(content: Any) -> dict[str, locks.Part] | None:
    """Return the tasks of `task_type: multi`."""
    if _task(content) != "multi":
        return None
    parts = {}
    for name in _get(content, "tasks", dict):
        where = f"tasks.{name}"
        one = _get(content, where, dict)
        parts[name] = locks.Part(
            task_type=_one_of(_get(one, "task_type", str), PARTS, f"{where}.task_type"),
            weight=_get(one, "weight", float),
            loss=locks.Loss(_get(one, "loss.name", str), _get(one, "loss.args", dict, {})),
            data=_filled(
                locks.PartData,
                num_classes=_get(one, "data.num_classes", int),
                ignore_index=_get(one, "data.ignore_index", (int, type(None)), None),
            ),
            detection=_detection(one),
        )
    return parts


def _lock(
    task_type: str,
    detection: locks.Detection | None,
    model: locks.Model,
    loss: locks.Loss,
    training: dict[str, Any],
    data: dict[str, Any],
    accumulation: int,
    batch: int,
) -> locks.Lock:
    """Fill what model, loss, engine and step read of a lock: one process, on the CPU.

    The rest is None: it has no part in the memory of a step, and what comes to read it fails in the tests.
    """
    lock: locks.Lock = _filled(
        locks.Lock,
        task_type=task_type,
        detection=detection,
        model=model,
        training=_filled(
            locks.Training,
            loss=loss,
            global_batch_size=batch * accumulation,
            micro_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            compile=False,  # traced as it runs uncompiled; what a compiler saves is not known here
            **training,
        ),
        engine=_filled(locks.Engine, use_accelerate=False, deepspeed=False, zero_stage=0, offload_optimizer=False),
        data=_filled(locks.Data, **data),
        parallel=_filled(locks.Parallel, world_size=1, nodes=1, processes_per_node=1, backend="gloo"),
        hardware=_filled(locks.Hardware, device="cpu"),
    )
    return lock
