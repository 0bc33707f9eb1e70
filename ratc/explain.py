"""The provenance of a value: the chain from a value down to the lines it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ratc.plan import Plan, Value
from ratc.spec import keys


@dataclass(frozen=True, slots=True)
class Link:
    """A value with its inputs. ``is_above`` says that these stand above, under the same path, already."""

    path: str
    value: Value
    below: tuple[Link, ...] = ()
    is_above: bool = False


def find(plan: Plan, path: str) -> list[str]:
    """Return the plan's or input paths that a user's text means: one path; those of a section of the plan, or else of
    the spec; or those with this ending.
    """
    exact = _exact(plan, path)
    if exact is not None:
        return [exact]
    path = path.strip(".")
    section = [name for name in plan.values if name.startswith(f"{path}.")]
    section = section or [f"spec:{name}" for name in plan.settings if name.startswith(f"{path}.")]
    ending = (_exact(plan, name) for name in known_paths(plan) if name.endswith(f".{path}"))
    return section or list(dict.fromkeys(name for name in ending if name is not None))


def decided_by_memory(plan: Plan, paths: Iterable[str]) -> bool:
    """Whether a prediction of memory may change one of the values, or one that it was made from."""
    ahead, seen = list(paths), set[str]()
    while ahead:
        path = ahead.pop()
        value = plan.lookup(path)
        if value is None or path in seen:
            continue
        if path in keys.decided_by_memory() or path.startswith(("memory.", "elastic.")):
            return True
        seen.add(path)
        ahead += value.inputs
    return False


def _exact(plan: Plan, path: str) -> str | None:
    for candidate in (
        keys.renamed().get(path, path),
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


def tree(plan: Plan, path: str, seen: set[str] | None = None) -> Link | None:
    """Return the value and, below it, its inputs; None if there is no value. A setting that is kept as it is has no
    inputs.
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
    """Return the origin of a value, in words."""
    if value.origin == "derived":
        return "worked out"
    if value.origin == "default":
        return "default"
    if value.span is None:
        return value.reason or value.origin
    # An override's place already says which variable or option it was.
    return value.span.place if value.origin in ("spec", "layer") else f"{value.reason}, {value.span.place}"
