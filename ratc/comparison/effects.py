"""The consequences for a reviewer of a changed value, as the keys declare them (`ratc/spec/keys.py`).

``RESUME`` are the values in the runtime's checkpoint fingerprint (`ratc_runtime.config.lock.Lock.fingerprint`); a test
compares the two for every path of a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ratc.plan import Value
from ratc.spec import keys
from ratc.spec.keys import Effect

_Plan: TypeAlias = Mapping[str, Value]


def _of(values: _Plan, path: str, absent: Any = None) -> Any:
    return values[path].value if path in values else absent


def _sharded(old: _Plan, new: _Plan) -> bool:
    """Whether both plans shard by ZeRO, and one of them is not elastic: those of elastic ones are converted."""
    both = _of(old, "engine.zero_stage") and _of(new, "engine.zero_stage")
    return bool(both and not all(any(path.startswith("elastic.") for path in plan) for plan in (old, new)))


def _extends(old: _Plan, new: _Plan) -> bool:
    """Whether the new plan adds epochs to the old one, and leaves the schedule of those before as it is. The runtime
    continues such a run (`Lock.continues`).
    """
    epochs, parts = "training.epochs", "training.extensions"
    if not (_of(old, epochs) and _of(new, epochs)) or any(path.startswith("compression.") for path in new):
        return False
    before, after = _of(old, parts, []), _of(new, parts, [])
    added = after[len(before) :]
    if not added:
        same = before == after and _of(new, "training.scheduler") != "cosine"
        return bool(same and _of(old, epochs) < _of(new, epochs))
    return bool(after[: len(before)] == before and added[0]["after"] == _of(old, epochs))


#: Paths with other effects if both plans are of a kind; these take precedence over the declarations.
_WHERE: dict[str, tuple[Callable[[_Plan, _Plan], bool], tuple[Effect, ...], str]] = {
    # DeepSpeed refuses another number of processes when it loads ZeRO's optimizer states.
    "parallel.world_size": (
        _sharded,
        (Effect.RESUME, Effect.COST),
        "ZeRO's shards can only be read by as many processes as wrote them",
    ),
    "training.epochs": (
        _extends,
        (Effect.TRAINING, Effect.COST),
        "a finished run is continued: its epochs stay as they are",
    ),
    "training.extensions": (
        _extends,
        (Effect.TRAINING, Effect.COST),
        "the added epochs have their own learning-rate schedule",
    ),
}


def of_plan(
    path: str, old: Mapping[str, Value] | None = None, new: Mapping[str, Value] | None = None
) -> tuple[tuple[Effect, ...], str]:
    """Return the effects and the meaning of a change at a plan's path, in view of both plans.

    Raises KeyError if no plan has the path.
    """
    if path in _WHERE:
        holds, effects, meaning = _WHERE[path]
        if holds(old or {}, new or {}):
            return effects, meaning
    key = keys.of_plan(path)
    if key is None:
        raise KeyError(f"no key declares what {path} affects")
    return key.effects, key.meaning


def is_known(path: str) -> bool:
    """Whether a lock can hold a value at a path."""
    return keys.of_plan(path) is not None


def of_spec(path: str) -> tuple[tuple[Effect, ...], str]:
    """Return the effects and the meaning of a change at a spec's path without a value in the plan."""
    key = keys.of_script(path)
    return (key.effects, key.meaning) if key else ((Effect.COSMETIC,), "it has no effect on the runs here")
