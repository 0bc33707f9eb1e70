"""The request for a trace (docs/reference/trace.md), read from JSON: keys of a lock, and options of the trace."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from types import GenericAlias
from typing import Any

from pydantic import ValidationError, create_model

from ratc_runtime.config import lock as locks
from ratc_runtime.config import sections
from ratc_runtime.config.refusal import not_plain, wrong_values

#: Micro-batches of a trace. Whether a compiler saves a value or computes it again depends on sizes: at 2 and 4 samples
#: a small model is another program.
SIZES, COMPILED_SIZES = (2, 4), (16, 32)
ENGINES = ("torch", "deepspeed")
#: Defaults for a lock's keys that are missing in a request.
_DEFAULTS: dict[str, Any] = {
    "task_type": "segmentation",
    "model": {"multi_scale": False, "args": {}, "attention_memory": "full"},
    "training": {
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "betas": [0.9, 0.999],
        "momentum": 0.9,
        "optimizer_args": {},
        "frozen": [],
        "parameter_groups": [],
        "tf32": True,
        "activation_checkpointing": False,
        "loss": {"args": {}},
    },
    "data": {"scales": [1.0], "num_classes": 1},
    "evaluation": {"scores": {}},
}
_NEEDED = {"model": ("name",), "training": ("optimizer", "precision"), "data": ("image_size", "channels")}
#: Keys of a request that are none of a lock; `micro_batch` is read by `commands.measure_step`.
_OWN = (
    "batch_sizes",
    "semantics",
    "engine",
    "accumulation",
    "compute_capability",
    "cublas_workspace",
    "micro_batch",
)


class BadRequest(ValueError):
    """The request is not one of docs/reference/trace.md. The message names the error."""


@dataclass(frozen=True)
class Request:
    """A request for a trace. `capability` is None for the CPU's semantics (tests), else major and minor.

    `batch_sizes` are two micro-batches, the smaller first, or one: the trace is then valid for it alone. `compiled`
    says whether the model is followed as `torch.compile` runs it; the lock's own `compile` is off. `cublas_workspace`
    is the size of a workspace in bytes if it is not torch's default.
    """

    lock: locks.Lock
    engine: str
    accumulation: int
    capability: tuple[int, int] | None
    batch_sizes: tuple[int, ...]
    content: dict[str, Any]
    compiled: bool = False
    cublas_workspace: int | None = None

    def uncompiled(self) -> Request:
        """Return the same request for the model as it runs uncompiled."""
        return replace(self, compiled=False, batch_sizes=tuple(self.content.get("batch_sizes", SIZES)))


def _open(section: Any, **types: Any) -> Any:
    """Return a section of the lock with optional keys, None by default; `types` replace those of some keys.

    Missing sections in it have the same form. Code that reads a value that no request has fails in tests.
    """
    fields: dict[str, Any] = {}
    for name, known in section.model_fields.items():
        kind, field = types.get(name, known.annotation), copy.copy(known)
        if isinstance(kind, type) and issubclass(kind, sections.Section) and kind is not sections.Loss:
            kind = kind if name in types else _open(kind)
            field.default_factory = kind
        else:
            field.default = None
        fields[name] = (kind, field)
    return create_model(section.__name__, __base__=section, **fields)


_LOCK = _open(
    locks.Lock, training=_open(sections.Training), tasks=GenericAlias(dict, (str, _open(sections.Part))) | None
)


def read(content: Any) -> Request:
    """Return the request in a JSON object. Raises BadRequest if it is invalid."""
    if not isinstance(content, dict):
        raise BadRequest(f"the request is {content!r:.60}, expected a mapping")
    asked = {key: value for key, value in content.items() if key not in _OWN}
    lock = _lock(asked)
    engine = _one_of(content, "engine", ENGINES, "torch")
    capability = _capability(content)
    # RAT breaks into graphs between which uncompiled code runs (`rat_patches.py`): below modes that is not followed.
    followed = engine == "torch" and capability is not None and lock.model.name != "rat"
    compiled = bool(lock.training.compile) and followed
    sizes = content.get("batch_sizes", list(COMPILED_SIZES if compiled else SIZES))
    if not _are_sizes(sizes):
        raise BadRequest(
            f"the request's batch_sizes are {sizes!r:.60}, expected one or two whole numbers, the smaller first"
        )
    accumulation = _one_of(content, "accumulation", (1, 2), 1)
    return Request(
        lock=lock.replace(
            training=lock.training.replace(
                global_batch_size=sizes[0] * accumulation,
                micro_batch_size=sizes[0],
                gradient_accumulation_steps=accumulation,
                compile=False,  # `compiled.py` compiles it another way
            ),
            # One process, on the CPU.
            engine=lock.engine.replace(use_accelerate=False, deepspeed=False, zero_stage=0, offload_optimizer=False),
            parallel=lock.parallel.replace(world_size=1, nodes=1, processes_per_node=1, backend="gloo"),
            hardware=lock.hardware.replace(device="cpu"),
        ),
        engine=engine,
        accumulation=accumulation,
        capability=capability,
        batch_sizes=tuple(sizes),
        content=content,
        compiled=compiled,
        cublas_workspace=_workspace(content),
    )


def _lock(asked: dict[str, Any]) -> locks.Lock:
    wrong = list(not_plain(asked))
    try:
        lock: locks.Lock = _LOCK.model_validate(_over(asked, _DEFAULTS))
    except ValidationError as error:
        wrong += wrong_values(error.errors(include_url=False))
    if wrong:
        said = [f"{one.at} {one.words}" + (f" ({one.note})" if one.note else "") for one in dict.fromkeys(wrong)]
        raise BadRequest(f"the request's {'; '.join(said)}")
    for section, keys in _NEEDED.items():
        for key in keys:
            if getattr(getattr(lock, section), key) is None:
                raise BadRequest(f"the request has no {section}.{key}")
    several = {f"tasks.{name}.": part for name, part in (lock.tasks or {}).items()}
    for at, part in several.items():
        for key in ("task_type", "weight", "loss"):
            if getattr(part, key) is None:
                raise BadRequest(f"the request has no {at}{key}")
        if part.data.num_classes is None:
            raise BadRequest(f"the request has no {at}data.num_classes")
    every: dict[str, locks.Lock | sections.Part] = {"": lock, **several}
    for at, one in every.items():
        if (one.task_type == "detection") != (one.detection is not None):
            raise BadRequest(f"the request's {at}detection goes with task_type detection, and only with it")
    if (lock.task_type == "multi") != bool(lock.tasks):
        raise BadRequest("the request's tasks go with task_type multi, and only with it")
    return lock


def _over(asked: Any, below: Any) -> Any:
    if not isinstance(asked, dict) or not isinstance(below, dict):
        return asked
    return {**below, **{key: _over(value, below.get(key)) for key, value in asked.items()}}


def _are_sizes(values: Any) -> bool:
    right = (
        isinstance(values, list) and len(values) in (1, 2) and all(type(size) is int and size > 0 for size in values)
    )
    return right and values == sorted(set(values))


def _one_of(content: dict[str, Any], key: str, choices: tuple[Any, ...], default: Any) -> Any:
    value = content.get(key, default)
    if value not in choices or isinstance(value, bool):
        expected = ", ".join(map(str, choices))
        raise BadRequest(f"the request's {key} is {value!r:.60}, expected one of {expected}")
    return value


def _workspace(content: dict[str, Any]) -> int | None:
    size = content.get("cublas_workspace")
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**60):
        return size
    raise BadRequest(f"the request's cublas_workspace is {size!r:.60}, expected bytes")


def _capability(content: dict[str, Any]) -> tuple[int, int] | None:
    if _one_of(content, "semantics", ("cuda", "cpu"), "cuda") == "cpu":
        return None
    text = content.get("compute_capability")
    major, dot, minor = text.partition(".") if isinstance(text, str) else ("", "", "")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise BadRequest(f"the request's compute_capability is {text!r:.20}, expected a form like 8.0")
    return int(major), int(minor)
