"""Two sides -> a :class:`~ratc.comparison.model.Comparison`. A pure function with laws, which tests hold: a side
against itself gives nothing; the other way round everything is mirrored; the listed sources, applied to the old spec,
give the new plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ratc.comparison import effects, sizes
from ratc.comparison.model import Amount, Change, Comparison, Side
from ratc.own_code import callables
from ratc.plan import Value, Values
from ratc.program import has_step, is_of_step
from ratc.spec import keys
from ratc.spec.keys import Effect
from ratc.units import size_text

#: Your own code sees the difference between an argument that is absent and one that is null or empty. To leave out a
#: key of ratc's says the same as null.
_IN_ARGUMENTS = re.compile(r"(?:^|[._])args\.")


def compare(old: Side, new: Side) -> Comparison:
    """Return the differences between two sides."""
    before, after = flat(old.values), flat(new.values)
    if old.unpredicted or new.unpredicted:
        before, after = _without_memory(before), _without_memory(after)
    changes = _renamed(_differing(before, after, ""))
    sources: list[Change] = []
    if not (old.is_lock or new.is_lock):
        sources += _renamed(_differing(flat(old.settings), flat(new.settings), "spec:"))
        facts = _differing(flat(old.facts), flat(new.facts), "facts:")
        used = {path for value in (*before.values(), *after.values()) for path in value.inputs}
        sources += (change for change in facts if change.path in used)
    outside = tuple(_outside_plan(old, new))
    changed = {change.path for change in (*sources, *changes)}
    predicted = any(_value(values, "memory.peak_reserved_bytes") is not None for values in (before, after))
    decisive = [path for path in sorted(changed) if keys.memory_of(path) == "depends"] if predicted else []
    if predicted and any(isinstance(side.settings, Values) and has_step(side.settings) for side in (old, new)):
        decisive += [path for path in sorted(changed) if path.startswith("spec:") and is_of_step(path[5:])]
    plan = [_with_causes(change, before, after, changed, decisive) for change in changes]
    return Comparison(
        old,
        new,
        tuple(_judged(sources, plan)),
        tuple(plan),
        outside,
        tuple(_amounts(old, new, before, after)),
        tuple(_remarks(old, new)),
        sizes.rows(before, after) if any(sizes.of_a_row(change.path) for change in changes) else (),
        sizes.columns(before, after),
    )


def _without_memory(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values without those that a prediction decides, for a comparison in which a side lacks it."""
    return {path: value for path, value in values.items() if not _is_decided(path)}


def _is_decided(path: str) -> bool:
    """Whether a value is a prediction of memory, or one that it decides."""
    of_size = path.startswith("elastic.") and not path.endswith(".world_size")
    return path in keys.decided_by_memory() or path.startswith("memory.") or of_size


def without(comparison: Comparison, ignored: Iterable[Effect]) -> Comparison:
    """Return the comparison without changes that have only ignored effects."""
    drop = frozenset(ignored)

    def kept(changes: tuple[Change, ...]) -> tuple[Change, ...]:
        return tuple(change for change in changes if not drop or not drop.issuperset(change.effects))

    plan, sources = kept(comparison.changes), kept(comparison.sources)
    left = {change.path for change in (*plan, *sources)}
    plan = tuple(replace(change, causes=tuple(path for path in change.causes if path in left)) for change in plan)
    return replace(comparison, changes=plan, sources=sources, outside_plan=kept(comparison.outside_plan))


def flat(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return the values with each entry of a mapping under its own path.

    An empty mapping has no entry. One among the arguments of your own code is kept: your code gets it.
    """
    told: dict[str, Value] = {}
    for path, value in values.items():
        if isinstance(value.value, Mapping) and (value.value or not _IN_ARGUMENTS.search(path)):
            told |= flat({f"{path}.{key}": _entry(value, str(key), item) for key, item in value.value.items()})
        else:
            told[path] = value
    return told


def _entry(value: Value, key: str, item: Any) -> Value:
    """Return one entry of a mapping. If the mapping is a setting kept as it is, its entry is the input of this one."""
    kept = value.origin != "derived" and len(value.inputs) == 1
    return replace(value, value=item, inputs=(f"{value.inputs[0]}.{key}",) if kept else value.inputs)


def same(one: Any, other: Any, typed: bool = False) -> bool:
    """Whether two values are equal: `true` is not 1, and lists and mappings are compared entry by entry.

    If ``typed``, 1 is not 1.0 either: code of one's own gets the one or the other.
    """
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(*items, typed) for items in zip(one, other, strict=True))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key], typed) for key in one)
    of_a_kind = isinstance(one, float) == isinstance(other, float) or not typed
    return of_a_kind and isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _differing(old: Mapping[str, Value], new: Mapping[str, Value], kind: str) -> list[Change]:
    found = []
    # Sorted, so that both directions list the same paths in the same order.
    order = {path: (place, path) for place, path in enumerate(old)}
    order |= {path: (min(place, order[path][0]) if path in order else place, path) for place, path in enumerate(new)}
    for path in sorted(order, key=lambda path: order[path]):
        before, after, own = old.get(path), new.get(path), _IN_ARGUMENTS.search(path)
        typed = bool(own) or path.endswith("args")
        if (before.value if before else None) is None and (after.value if after else None) is None and not own:
            continue  # a section without values, and one that has some: these are changes of their own
        if any(side and side.value == {} for side in (before, after)) and (_above(path, old) or _above(path, new)):
            continue  # the entries of the other side are listed
        if before is None or after is None or not same(before.value, after.value, typed):
            means = effects.of_plan(path, old, new) if not kind else ((), "")
            found.append(Change(kind + path, before, after, *means))
    return found


def _above(path: str, values: Mapping[str, Value]) -> bool:
    return any(other.startswith(f"{path}.") for other in values)


def _renamed(changes: list[Change]) -> list[Change]:
    """Join a removed and an added value to one renaming, if they are equal and the only such pair of their section.

    The arguments of another model are not joined: they are unrelated to the former model's.
    """
    apart = ("model.args.", "spec:model.args.") if any(_is_model(change) for change in changes) else ()
    single = [change for change in changes if not change.path.startswith(apart)]
    gone = [change for change in single if change.new is None]
    come = [change for change in single if change.old is None]
    formerly: dict[str, Change] = {}
    for change in come:
        like = [other for other in gone if _alike(other.old, change.new) and _section(other) == _section(change)]
        back = [other for other in come if _alike(other.new, change.new) and _section(other) == _section(change)]
        if len(like) == len(back) == 1:
            formerly[change.path] = like[0]
    names = {change.path for change in formerly.values()}
    return [
        replace(change, old=formerly[change.path].old, formerly=formerly[change.path].path)
        if change.path in formerly
        else change
        for change in changes
        if change.path not in names
    ]


def _is_model(change: Change) -> bool:
    return change.path.removeprefix("spec:") == "model.name"


def _alike(one: Value | None, other: Value | None) -> bool:
    return one is not None and other is not None and one.value is not None and same(one.value, other.value)


def _section(change: Change) -> str:
    return change.path.rpartition(".")[0]


def _with_causes(
    change: Change, before: Mapping[str, Value], after: Mapping[str, Value], changed: set[str], decisive: list[str]
) -> Change:
    """Return the change with its direct causes among the other changes; ``decisive`` are those of a prediction."""
    paths = (change.path, change.formerly or change.path)
    own = [path for values in (after, before) for name in paths if name in values for path in values[name].inputs]
    if _is_decided(change.path):
        own += decisive
    if change.path.startswith("memory."):
        own += sorted(keys.decided_by_memory())
    if change.path.startswith("model.args.") and (change.old is None or change.new is None):
        own.append("model.name")  # another model has other arguments
    own = [path for given in own for path in _changed_inputs(given, change.path, changed)]
    plan = {path for path in own if path != change.path and path not in _follows(change.path)}
    order = [path for path in (*after, *before) if path in plan]
    # Paths of a spec or of facts first, then the plan's own in their order.
    inputs = sorted(path for path in plan if ":" in path)
    return replace(change, causes=tuple(dict.fromkeys((*inputs, *order))))


def _changed_inputs(given: str, path: str, changed: set[str]) -> list[str]:
    """Return the changed paths of an input: itself, or of a mapping the entry of the same key, or else all entries."""
    if given in changed:
        return [given]
    entries = sorted(name for name in changed if name.startswith(f"{given}."))
    return [name for name in entries if name.rpartition(".")[2] == path.rpartition(".")[2]] or entries


def _follows(path: str) -> frozenset[str]:
    """Return the paths that cannot be causes of a path: values that memory decides are decided together."""
    decided = keys.decided_by_memory()
    return decided - {"training.micro_batch_size", "engine.zero_stage"} if path in decided else frozenset()


def _judged(sources: list[Change], plan: list[Change]) -> list[Change]:
    """Return the sources with the effects of all their consequences, or their own if they have none."""
    direct: dict[str, list[Change]] = {}
    for change in plan:
        for cause in change.causes:
            direct.setdefault(cause, []).append(change)

    def following(path: str, seen: set[str]) -> set[str]:
        for change in direct.get(path, ()):
            if change.path not in seen:
                seen.add(change.path)
                following(change.path, seen)
        return seen

    by_path = {change.path: change for change in plan}
    judged = []
    for source in sources:
        reached = following(source.path, set())
        if reached:
            all_effects = {effect for path in reached for effect in by_path[path].effects}
            judged.append(replace(source, effects=tuple(effect for effect in Effect if effect in all_effects)))
        elif source.path.startswith("spec:"):
            found, meaning = effects.of_spec(source.name)
            judged.append(replace(source, effects=found, meaning=meaning))
    return judged


def _outside_plan(old: Side, new: Side) -> list[Change]:
    """Return possible causes outside the plan's values: the target, ratc's version, points, own code, inputs."""

    def pair(path: str, before: Any, after: Any, found: tuple[Effect, ...], meaning: str) -> Change:
        return Change(
            path,
            None if before is None else Value(before, "derived"),
            None if after is None else Value(after, "derived"),
            found,
            meaning,
        )

    told: list[Change] = []
    if old.target != new.target:
        told.append(pair("target", old.target, new.target, (Effect.PLACEMENT,), "another kind of script"))
    if old.ratc_version != new.ratc_version:
        meaning = "another version of ratc may compute other values from the same spec"
        told.append(pair("ratc_version", old.ratc_version, new.ratc_version, (Effect.COSMETIC,), meaning))
    if old.points or new.points:
        names = [name for name in (*old.points, *new.points) if old.points.get(name) != new.points.get(name)]
        for name in dict.fromkeys(names):
            both = (Effect.TRAINING, Effect.COST)
            told.append(pair(f"point {name}", old.points.get(name), new.points.get(name), both, "another point"))
    for path in sorted({*old.own_code, *new.own_code}):
        words = callables.moved(old.own_code.get(path), new.own_code.get(path))
        if words:
            records = (side.own_code.get(path) for side in (old, new))
            was, now = (record and str(record["digest"])[:19] for record in records)
            follows = (Effect.TRAINING, Effect.RESUME, Effect.MEMORY)
            told.append(pair(f"own code {path}", was, now, follows, words))
    if old.is_lock and new.is_lock:
        for path in sorted({*old.inputs, *new.inputs}):
            if old.inputs.get(path) != new.inputs.get(path):
                before, after = old.inputs.get(path), new.inputs.get(path)
                meaning = "a file from which it was compiled differs"
                told.append(pair(f"input {path}", before, after, (Effect.COSMETIC,), meaning))
    return told


def _remarks(old: Side, new: Side) -> list[str]:
    names = [side.values["experiment_name"].value for side in (old, new) if "experiment_name" in side.values]
    two = len(names) == 2 and names[0] != names[1]
    told = [f"these are two experiments: `{names[0]}` and `{names[1]}`"] if two else []
    told += [
        f"`{side.name}`: {next(text for text in side.findings if text.startswith('R446'))[6:]}; values that the "
        f"prediction of memory decides are not compared"
        for side in (old, new)
        if side.unpredicted
    ]
    if old.is_lock or new.is_lock:
        return told  # a lock keeps no warnings
    was, now = ([text for text in side.findings if not text.startswith("R446")] for side in (old, new))
    told += [f"new warning {text}" for text in now if text not in was]
    return told + [f"warning no longer given: {text}" for text in was if text not in now]


def _amounts(old: Side, new: Side, before: Mapping[str, Value], after: Mapping[str, Value]) -> list[Amount]:
    """Return the sums that differ: predicted memory, time of a step, GPU-hours, and points of the array."""
    rows = (
        ("predicted peak of PyTorch's memory, of the card", _memory(before), _memory(after)),
        ("time of an optimizer step", old.step or None, new.step or None),
        ("GPU-hours at most", _gpu_hours(before, old), _gpu_hours(after, new)),
        ("points of the array", _count(old.points), _count(new.points)),
    )
    return [Amount(*row) for row in rows if row[1] != row[2]]


def _count(points: Mapping[str, str]) -> str | None:
    return str(len(points)) if points else None


def _memory(values: Mapping[str, Value]) -> str | None:
    peak = _value(values, "memory.peak_reserved_bytes")
    card = _value(values, "hardware.memory_bytes")
    return f"{size_text(peak)} of {size_text(card)}" if peak and card else None


def _gpu_hours(values: Mapping[str, Value], side: Side) -> str | None:
    seconds, device = _value(values, "job.walltime_seconds"), _value(values, "hardware.device")
    world = _value(values, "parallel.world_size")
    if not (seconds and world and device == "cuda"):
        return None
    hours = world * seconds / 3600 * (len(side.points) or 1)
    return f"{hours:,.1f}".removesuffix(".0")


def _value(values: Mapping[str, Value], path: str) -> Any:
    return values[path].value if path in values else None
