"""The declarations of the spec's keys for the rest of ratc: made once, on a pydantic field, and queried here.

A field of a spec's model carries a :class:`Key` in its `Annotated`; a section carries one for all its keys;
`ratc/spec/derived.py` has those of the plan's values that no key gives. `python -m ratc.spec.generate` writes all of
them to ``ratc/spec/keys.json``, which the queries below read: the compiler never imports pydantic.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from enum import Enum
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal, TypeAlias

from ratc import resources


class Effect(Enum):
    """The effect of a change, the most serious first."""

    TRAINING = "training"
    RESUME = "resume"
    MEMORY = "memory"
    COST = "cost"
    PLACEMENT = "placement"
    COSMETIC = "cosmetic"


#: The effects of a value that determines the weights.
LEARNT = (Effect.TRAINING, Effect.RESUME)

#: A prediction of memory *decides* the value, or *depends* on it; nothing that is predicted and no engine's file has to
#: do with one that is *apart*; of "" nothing is said.
Memory: TypeAlias = Literal["decides", "depends", "apart", ""]


@dataclass(frozen=True, slots=True)
class Key:
    """One key, or all keys of a section. A field that is None is as in the section.

    ``effects`` and ``meaning`` are the words of `ratc diff` for a change; ``script`` says that the value goes into the
    script and into no value of the plan. ``plan`` is the plan's path if that is not the spec's. ``rate`` says that a
    measured learning rate holds only for the same value. ``job`` says that a study's job has a value of its own beside
    those of its trials. ``option`` is the short option (`--batch-size`, and with it `RAT_BATCH_SIZE`), ``order`` its
    place among the others. ``path`` says that the text names a folder, or something else that may be a path.
    """

    effects: tuple[Effect, ...] = ()
    meaning: str = ""
    script: bool = False
    plan: str | None = None
    memory: Memory | None = None
    rate: bool | None = None
    job: bool | None = None
    option: str | None = None
    order: int = 1000
    path: Literal["folder", "name"] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A declaration with the patterns of its paths in a spec and in a plan; None if it has none there."""

    spec: str | None
    plan: str | None
    key: Key


def text(rows: list[Row]) -> str:
    """Return the content of ``ratc/spec/keys.json``, the narrowest pattern first; a wider one fills gaps of a row.

    Raises ValueError if the effects of a pattern are declared twice.
    """
    ordered = sorted(rows, key=_width)
    told = [_filled(row, ordered[place + 1 :]) for place, row in enumerate(ordered)]
    for kind in ("spec", "plan"):
        patterns = [getattr(row, kind) for row in told if getattr(row, kind) is not None and row.key.effects]
        if twice := {pattern for pattern in patterns if patterns.count(pattern) > 1}:
            raise ValueError(f"declared twice: {', '.join(sorted(twice))}")
    return "[\n" + ",\n".join(json.dumps(_plain(row), ensure_ascii=False) for row in told) + "\n]\n"


def _width(row: Row) -> tuple[bool, int]:
    pattern = row.plan or row.spec or ""
    return "*" in pattern, -len(pattern.replace("*", "")) if "*" in pattern else 0


def _filled(row: Row, wider: list[Row]) -> Row:
    """Return the row with its gaps filled from the narrowest of the wider patterns."""
    if row.key.plan is not None and not row.key.effects:
        return row  # the same value as another row's, under another name in the spec
    of_plan = [one.key for one in wider if row.plan and one.plan and fnmatchcase(row.plan, one.plan)]
    of_spec = [one.key for one in wider if row.spec and one.spec and fnmatchcase(row.spec, one.spec)]
    key = row.key
    for above in of_plan:
        if not key.effects:
            key = replace(key, effects=above.effects, meaning=above.meaning)
        key = replace(
            key,
            memory=above.memory if key.memory is None else key.memory,
            job=above.job if key.job is None else key.job,
        )
    for above in of_spec:
        key = replace(key, rate=above.rate if key.rate is None else key.rate)
    return replace(row, key=key)


def _plain(row: Row) -> dict[str, Any]:
    """Return the row as JSON, without default values."""
    told: dict[str, Any] = {"spec": row.spec, "plan": row.plan}
    for field in fields(Key):
        value = getattr(row.key, field.name)
        if field.name != "plan" and value not in (field.default, None, ""):
            told[field.name] = [effect.value for effect in value] if field.name == "effects" else value
    return {name: value for name, value in told.items() if value is not None}


@cache
def rows() -> tuple[Row, ...]:
    """Every declaration, the narrowest pattern first."""
    read = json.loads(resources.read("spec", "keys.json"))
    return tuple(_row(entry) for entry in read)


def _row(entry: dict[str, Any]) -> Row:
    spec, plan = entry.pop("spec", None), entry.pop("plan", None)
    given = {Effect(name) for name in entry.pop("effects", ())}
    effects = tuple(effect for effect in Effect if effect in given)
    return Row(spec, plan, Key(effects=effects, plan=plan if plan != spec else None, **entry))


@cache
def of_plan(path: str) -> Key | None:
    """Return the declaration of a plan's path; None if no plan has such a path."""
    told = (row for row in rows() if row.plan is not None and row.key.effects and not row.key.script)
    return next((row.key for row in told if fnmatchcase(path, row.plan or "")), None)


@cache
def of_script(path: str) -> Key | None:
    """Return the declaration of a spec's path if its value is in the script and not in the plan; else None."""
    told = (row for row in rows() if row.key.script)
    return next((row.key for row in told if fnmatchcase(path, row.spec or "")), None)


@cache
def memory_of(path: str) -> Memory:
    """Return the relation of a plan's path to a prediction of memory; "" if none is declared."""
    key = of_plan(path)
    return (key.memory if key else None) or ""


@cache
def memory_of_setting(path: str) -> Memory:
    """Return the relation of a spec's path to a prediction of memory; "" if none is declared."""
    told = (row.key.memory for row in rows() if row.spec is not None and fnmatchcase(path, row.spec))
    return next(told, None) or ""


def is_the_jobs(path: str) -> bool:
    """Whether the job of a study has a value of its own at a plan's path, beside those of its trials."""
    key = of_plan(path)
    return bool(key and key.job)


@cache
def decides_rate(path: str) -> bool:
    """Whether a measured learning rate holds only for the same value at a spec's path."""
    told = (row.key.rate for row in rows() if row.spec and fnmatchcase(path, row.spec))
    return bool(next(told, False))


@cache
def decided_by_memory() -> frozenset[str]:
    """Return the plan's paths that a prediction of memory may decide, beside the prediction itself."""
    return frozenset(row.plan for row in rows() if row.key.memory == "decides" and row.plan is not None)


@cache
def short_names() -> dict[str, str]:
    """The spec's paths by their short options, in the order of `--help`."""
    told = sorted((row for row in rows() if row.key.option), key=lambda row: row.key.order)
    return {row.key.option: row.spec for row in told if row.key.option and row.spec}


@cache
def renamed() -> dict[str, str]:
    """The plan's paths by those of the spec, if the two differ."""
    return {
        row.spec: row.plan for row in rows() if row.spec and row.plan and row.spec != row.plan and "*" not in row.spec
    }


@cache
def paths(kind: str | None = None) -> tuple[str, ...]:
    """Return the spec's paths with text that names a folder, or that may be a path; both kinds without ``kind``."""
    return tuple(row.spec for row in rows() if row.spec and row.key.path and kind in (None, row.key.path))
