"""The rows of elastic plans as a table: for each number of nodes the split of the batch and its memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ratc.plan import Value
from ratc.units import size_text

#: The columns: the last part of a row's paths, and the words for people.
COLUMNS = {
    "world_size": "processes",
    "micro_batch_size": "micro-batch",
    "gradient_accumulation_steps": "accumulation",
    "peak_reserved_bytes": "PyTorch's peak",
}
_ROW = "elastic."


@dataclass(frozen=True, slots=True)
class Row:
    """A number of nodes, with its values in the order of `COLUMNS`; ``old`` or ``new`` is None on a side without it."""

    nodes: int
    old: tuple[str, ...] | None
    new: tuple[str, ...] | None


def of_a_row(path: str) -> bool:
    """Whether a path is one of a row, which the table shows."""
    return path.startswith(_ROW)


def columns(old: Mapping[str, Value], new: Mapping[str, Value]) -> tuple[str, ...]:
    """Return the words of the columns that a side has values for."""
    return tuple(COLUMNS[name] for name in _known(old, new))


def rows(old: Mapping[str, Value], new: Mapping[str, Value]) -> tuple[Row, ...]:
    """Return the rows of both sides by their number of nodes; none if no side is elastic."""
    names, before, after = _known(old, new), _counts(old), _counts(new)
    return tuple(
        Row(
            nodes,
            _cells(old, nodes, names) if nodes in before else None,
            _cells(new, nodes, names) if nodes in after else None,
        )
        for nodes in sorted(before | after)
    )


def _known(old: Mapping[str, Value], new: Mapping[str, Value]) -> list[str]:
    both = (item for side in (old, new) for item in side.items())
    there = {path.rpartition(".")[2] for path, value in both if of_a_row(path) and value.value is not None}
    return [name for name in COLUMNS if name in there]


def _counts(values: Mapping[str, Value]) -> set[int]:
    return {int(path.split(".")[1]) for path in values if of_a_row(path)}


def _cells(values: Mapping[str, Value], nodes: int, names: list[str]) -> tuple[str, ...]:
    return tuple(_told(name, values.get(f"{_ROW}{nodes}.{name}")) for name in names)


def _told(name: str, value: Value | None) -> str:
    if value is None or value.value is None:
        return "not known"
    return size_text(int(value.value)) if name.endswith("_bytes") else str(value.value)


def lines(found: tuple[Row, ...]) -> Iterator[tuple[str, ...]]:
    """Yield each row as cells, of which the first is its number of nodes: equal values once, others with an arrow."""
    for row in found:
        before, after = row.old or row.new or (), row.new or row.old or ()
        state = " (added)" if row.old is None else " (removed)" if row.new is None else ""
        yield (f"{row.nodes}{state}", *(a if a == b else f"{a} → {b}" for a, b in zip(before, after, strict=True)))
