"""The consequences for a reviewer of a changed value, as the keys declare them (`ratc/spec/keys.py`).

``RESUME`` are the values in the runtime's checkpoint fingerprint (`ratc_runtime.config.lock.Lock.fingerprint`); a test
compares the two for every path of a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ratc.plan import Value
from ratc.spec import keys
from ratc.spec.keys import Effect


def _sharded(values: Mapping[str, Value]) -> bool:
    stage = values.get("engine.zero_stage")
    return stage is not None and bool(stage.value)


#: Paths with more effects if both plans are of a kind; these take precedence over the declarations.
_WHERE: dict[str, tuple[Callable[[Mapping[str, Value]], bool], tuple[Effect, ...], str]] = {
    # DeepSpeed refuses another number of processes when it loads ZeRO's optimizer states.
    "parallel.world_size": (
        _sharded,
        (Effect.RESUME, Effect.COST),
        "ZeRO's shards are read by as many processes as wrote them",
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
        if holds(old or {}) and holds(new or {}):
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
    return (key.effects, key.meaning) if key else ((Effect.COSMETIC,), "nothing that runs follows from it here")
