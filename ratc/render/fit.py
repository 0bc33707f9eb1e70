"""Renders the table of micro-batches that fit on each card, as text, Markdown or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ratc import markup
from ratc.units import counted, size_text

EXPANDABLE = "expandable_segments"
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Sizes are bytes. If nothing fits, ``micro_batch`` is None and ``need_bytes`` is the memory
    for a micro-batch of 1.

    ``zero_stage`` is None without DeepSpeed.
    """

    card: str
    memory_bytes: int
    precision: str
    zero_stage: int | None
    micro_batch: int | None
    accumulation: int | None
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    device_bytes: int | None
    need_bytes: int | None
    host_bytes: int = 0
    attention_memory: str = "full"
    activation_checkpointing: bool | tuple[str, ...] = False
    allocator: str = "native"


def _cells(row: Row) -> tuple[str, ...]:
    fits = row.micro_batch is not None
    return (
        row.card,
        f"{row.memory_bytes / GIB:.1f}",
        row.precision,
        "-" if row.zero_stage is None else str(row.zero_stage),
        str(row.micro_batch) if fits else "none",
        str(row.accumulation) if fits else "-",
        gib(row.peak_allocated_bytes),
        gib(row.peak_reserved_bytes),
        gib(row.device_bytes) if fits else f"needs {gib(row.need_bytes)}",
        _with(row),
    )


def _with(row: Row) -> str:
    """Return the options of the row beyond the defaults: attention, allocator and checkpointing."""
    parts = [f"{row.attention_memory} attention"] if row.attention_memory != "full" else []
    parts += ["expandable segments"] if row.allocator == EXPANDABLE else []
    recomputed = row.activation_checkpointing
    if isinstance(recomputed, tuple):
        parts.append(f"checkpointing of {counted(len(recomputed), 'block')}")
    elif recomputed:
        parts.append("checkpointing")
    return ", ".join(parts)


_HEAD = ("card", "GiB", "precision", "ZeRO", "micro-batch", "accumulation", "allocated", "reserved", "on the card")
_WITH = "with"


def _table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the head and the cells; without the last column if it is empty in all rows."""
    table = [(*_HEAD, _WITH), *map(_cells, rows)]
    return table if any(line[-1] for line in table[1:]) else [line[:-1] for line in table]


def gib(size: int | None) -> str:
    """Bytes as GiB for people, with their unit if that is smaller, or a dash."""
    return "-" if size is None else size_text(size, fine=True).removesuffix(" GiB")


def text(rows: Sequence[Row], note: str = "") -> str:
    """An aligned table; sizes in GiB."""
    table = _table(rows)
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = []
    for line in table:
        cells = [
            cell.ljust(width) if column in (0, 2, len(_HEAD)) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append(markup.visible("  ".join(cells).rstrip()))
    return "\n".join(lines) + "\n" + (f"\n{markup.lines(note)}\n" if note else "")


def markdown(rows: Sequence[Row], note: str = "") -> str:
    """A Markdown table; sizes in GiB."""
    head, *cells = _table(rows)
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(map(markup.escape, line))} |" for line in cells]
    return "\n".join(lines) + "\n" + (f"\n{markup.escape(note)}\n" if note else "")


def as_json(rows: Sequence[Row], note: str = "") -> str:
    """The rows as they are, in bytes."""
    return markup.json({"rows": [asdict(row) for row in rows], "note": note})
