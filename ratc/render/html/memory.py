"""The memory of a step on its card, as a bar to scale with its breakdown; its phases; and the table of other cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ratc.render.timeline import GROUPS, Drawing, phase_spans, size_label

#: Width of the bar in units of its own.
WIDTH = 1000
_OUTSIDE, _RESERVED = "#6b7280", "#a8b0ba"
_COLOURS = {kind: colour for _, colour, kinds in GROUPS for kind in kinds} | {
    "allocated": GROUPS[5][1],
    "reserved": _RESERVED,
    "outside": _OUTSIDE,
}


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of one kind: a kind of the trace, ``allocated``, ``reserved``, ``outside``, ``margin`` or ``unused``."""

    kind: str
    bytes_: int
    name: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CardMemory:
    """Memory in use at the peak of a step, and the rest of the card. ``how`` is predicted, or names the measurement.
    ``time`` is a sentence about the time of the step.
    """

    card: str
    card_bytes: int
    used_bytes: int
    micro_batch: int
    how: str
    parts: Sequence[Part]
    left: Sequence[Part]
    fits: bool = True
    sentences: Sequence[str] = ()
    host_bytes: int = 0
    time: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the bar; ``colour`` is empty if nothing is in use."""

    kind: str
    colour: str
    x: str
    width: str
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table of memory."""

    kind: str
    colour: str
    size: str
    share: str
    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Bar:
    """The breakdown for the page. ``limit`` is the x of the end of the card's memory, empty if the bar ends there."""

    title: str
    segments: tuple[Segment, ...]
    limit: str
    lines: tuple[Line, ...]
    total: str
    card: str


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """One phase of the step and its most bytes in use."""

    name: str
    peak: str
    is_highest: bool


@dataclass(frozen=True, slots=True)
class CardRow:
    """A row of the table of cards, as text. ``used`` and ``total`` are bytes for the little bar; ``is_plan`` marks the
    plan's own row.
    """

    card: str
    memory: str
    precision: str
    stage: str
    micro_batch: str
    accumulation: str
    on_card: str
    remarks: str
    used: int
    total: int
    fits: bool
    is_plan: bool = False

    @property
    def width(self) -> int:
        """The width of the little bar, in percent."""
        return min(100, round(100 * self.used / self.total)) if self.total else 0


def bar(card_memory: CardMemory) -> Bar:
    """Return the bar and its table, to the scale of the card, or of the memory needed if that is more."""
    scale = max(card_memory.card_bytes, card_memory.used_bytes)
    segments, at = [], 0
    for part in (*card_memory.parts, *card_memory.left):
        if part.bytes_ <= 0:
            continue
        x, end = at * WIDTH / scale, (at + part.bytes_) * WIDTH / scale
        label = f"{part.name}: {size_label(part.bytes_)}"
        segments.append(Segment(part.kind, _COLOURS.get(part.kind, ""), f"{x:.2f}", f"{end - x:.2f}", label))
        at += part.bytes_
    over = card_memory.used_bytes > card_memory.card_bytes
    limit = f"{card_memory.card_bytes * WIDTH / scale:.2f}" if over else ""
    lines = tuple(_line(part, card_memory.card_bytes) for part in (*card_memory.parts, *card_memory.left))
    card = size_label(card_memory.card_bytes)
    title = f"At the peak of a step {size_label(card_memory.used_bytes)} of the {card} of {card_memory.card} are in use"
    return Bar(title, tuple(segments), limit, lines, size_label(card_memory.used_bytes), card)


def by_card(rows: Sequence[CardRow]) -> list[tuple[CardRow, ...]]:
    """The rows of each card together, the cards in the order in which they come."""
    found: dict[str, list[CardRow]] = {}
    for row in rows:
        found.setdefault(row.card, []).append(row)
    return [tuple(group) for group in found.values()]


def phases(drawing: Drawing) -> list[PhasePeak]:
    """Forward, backward and update of each micro-batch drawn, with the most that is alive in each."""
    totals = [sum(point) for point in drawing.points]
    found: list[tuple[str, int]] = []
    for start, end, name in phase_spans(drawing):
        first = min(int(start * len(totals)), len(totals) - 1)
        found.append((name, max(totals[first : max(first + 1, int(end * len(totals)))])))
    most = max((size for _, size in found), default=0)
    return [PhasePeak(name, size_label(size), size == most) for name, size in found]


def _line(part: Part, whole: int) -> Line:
    share = 100 * part.bytes_ / whole if whole else 0
    text = "under 0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"
    return Line(part.kind, _COLOURS.get(part.kind, ""), size_label(part.bytes_), text, part.name, part.detail)
