"""What fits on which card, as text, Markdown or JSON, and one step's memory over time as a drawing (SVG, alone or in
HTML).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape

GIB = 1 << 30
#: Colours of the kinds, from the bottom of the stack up: one family for what stays, one for what comes and goes.
_COLOURS = {
    "parameter": "#1b4965",
    "buffer": "#62808f",
    "optimizer": "#3d7ea6",
    "bucket": "#7fb5d5",
    "workspace": "#b9d6e8",
    "input": "#8a8d3f",
    "gradient": "#d9a441",
    "activation": "#c8553d",
    "temporary": "#e8a598",
}
_LEFT, _TOP, _WIDTH, _HEIGHT = 62, 58, 820, 330


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Sizes are bytes; ``micro_batch`` is None where nothing fits, and ``need_bytes`` says what
    would.

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


@dataclass(frozen=True, slots=True)
class Drawing:
    """One optimizer step: for each point of it the bytes of every kind in ``kinds``; the lines are in bytes too."""

    title: str
    kinds: Sequence[str]
    points: Sequence[Sequence[int]]
    cap_bytes: int
    reserved_bytes: int
    note: str = ""


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
    )


_HEAD = ("card", "GiB", "precision", "ZeRO", "micro-batch", "accumulation", "allocated", "reserved", "on the card")


def gib(size: int | None) -> str:
    """Bytes as GiB for people, or a dash."""
    return "-" if size is None else f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.1f}"


def text(rows: Sequence[Row], note: str = "") -> str:
    """An aligned table; sizes in GiB."""
    table = [_HEAD, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(_HEAD))]
    lines = []
    for line in table:
        cells = [
            cell.ljust(width) if column in (0, 2) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n" + (f"\n{note}\n" if note else "")


def markdown(rows: Sequence[Row], note: str = "") -> str:
    """A Markdown table; sizes in GiB."""
    lines = [f"| {' | '.join(_HEAD)} |", f"|{' --- |' * len(_HEAD)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n" + (f"\n{note}\n" if note else "")


def as_json(rows: Sequence[Row], note: str = "") -> str:
    """The rows as they are, in bytes."""
    return json.dumps({"rows": [asdict(row) for row in rows], "note": note}, indent=2) + "\n"


def svg(drawing: Drawing) -> str:
    """The step as a stacked area, the cap and the reserved peak as lines. Self-contained."""
    order = [kind for kind in _COLOURS if kind in drawing.kinds]
    columns = [drawing.kinds.index(kind) for kind in order]
    highest = max([sum(point) for point in drawing.points] or [1])
    top = max(highest, drawing.reserved_bytes)
    # A cap far above everything would flatten the picture: then it is only told.
    shown = drawing.cap_bytes <= 3 * top
    unit = _unit(max(top, drawing.cap_bytes if shown else 0))
    scale = -(-max(top, drawing.cap_bytes if shown else 0) // unit) * unit
    count = max(2, len(drawing.points))

    def x(position: int) -> float:
        return _LEFT + _WIDTH * position / (count - 1)

    def y(size: float) -> float:
        return _TOP + _HEIGHT * (1 - size / scale)

    parts = [_text(_LEFT, 24, drawing.title, size=16, weight="600"), _text(_LEFT, 43, drawing.note, fill="#555")]
    for step in range(scale // unit + 1):
        height = y(step * unit)
        parts.append(f'<path d="M{_LEFT} {height:.1f}h{_WIDTH}" stroke="#e3e3e3"/>')
        parts.append(_text(_LEFT - 8, height + 4, f"{step * unit / GIB:g}", anchor="end", fill="#555"))
    parts.append(_text(_LEFT - 8, _TOP - 12, "GiB", anchor="end", fill="#555"))
    lower = [0] * len(drawing.points)
    for kind, column in zip(order, columns, strict=True):
        upper = [low + point[column] for low, point in zip(lower, drawing.points, strict=True)]
        if upper != lower:
            forward = [f"{x(n):.1f},{y(size):.1f}" for n, size in enumerate(upper)]
            back = [f"{x(n):.1f},{y(size):.1f}" for n, size in reversed(list(enumerate(lower)))]
            parts.append(f'<polygon points="{" ".join(forward + back)}" fill="{_COLOURS[kind]}"/>')
        lower = upper
    lines = [("reserved by the allocator", drawing.reserved_bytes, "#333", "2 3")]
    if shown:
        lines.append(("cap, margin taken off", drawing.cap_bytes, "#b00020", "7 4"))
    for label, size, colour, dashes in lines:
        height = y(size)
        line = f'<path d="M{_LEFT} {height:.1f}h{_WIDTH}" stroke="{colour}" stroke-dasharray="{dashes}"'
        parts.append(f'{line} stroke-width="1.5"/>')
        label = f"{label}: {gib(size)} GiB"
        parts.append(_text(_LEFT + _WIDTH - 4, height - 5, label, anchor="end", fill=colour, halo=True))
    used = [kind for kind, column in zip(order, columns, strict=True) if any(point[column] for point in drawing.points)]
    place = float(_LEFT)
    base = _TOP + _HEIGHT
    parts.append(_text(_LEFT, base + 18, "one optimizer step, allocation by allocation →", fill="#555"))
    for kind in used:
        parts.append(f'<rect x="{place:.0f}" y="{base + 32}" width="12" height="12" fill="{_COLOURS[kind]}"/>')
        parts.append(_text(place + 17, base + 42, kind))
        place += 30 + 7.2 * len(kind)
    width, height_all = _LEFT + _WIDTH + 20, base + 58
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height_all}" width="{width}" '
        f'height="{height_all}" font-family="system-ui, sans-serif" font-size="12">\n'
        f"<title>{escape(drawing.title)}</title>\n"
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def html(drawing: Drawing) -> str:
    """A page that holds the drawing."""
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(drawing.title)}</title>\n'
    return f"{head}<body>\n{svg(drawing)}</body>\n</html>\n"


def _unit(top: int) -> int:
    """The distance of the grid lines, a round number of MiB or GiB, so that there are at most eight."""
    step = 1 << 20
    for step in (size << shift for shift in (20, 30) for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)):
        if top <= 8 * step:
            break
    return step


def _text(
    x: float,
    y: float,
    words: str,
    size: int = 12,
    fill: str = "#222",
    anchor: str = "start",
    weight: str = "400",
    halo: bool = False,
) -> str:
    around = ' stroke="#fff" stroke-width="3" paint-order="stroke"' if halo else ""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="{anchor}"{around}>{escape(words)}</text>'
    )
