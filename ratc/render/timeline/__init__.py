"""One step's memory over its allocations, stacked by kind: the data of a drawing, and names and colours of its parts.
`svg` and `png` draw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ratc.units import size_text

GIB = 1 << 30

#: From the bottom of the stack up, the permanent kinds first. Label, colour, kinds of the trace. The colours are those
#: of Okabe and Ito (Color Universal Design, jfly.uni-koeln.de/color), which differ with any colour vision, and the wine
#: of Paul Tol's muted scheme in place of their black, which is for lines.
GROUPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("parameters", "#0072b2", ("parameter", "buffer")),
    ("optimizer state", "#56b4e9", ("optimizer",)),
    ("gradients", "#e69f00", ("gradient",)),
    ("communication", "#f0e442", ("bucket",)),
    ("inputs", "#009e73", ("input",)),
    ("activations", "#d55e00", ("activation",)),
    ("temporaries", "#cc79a7", ("temporary",)),
    ("workspaces", "#882255", ("workspace",)),
)
#: Phases of the trace, as the stretches of a step that people speak of.
_STRETCHES = {
    "input": "forward",
    "forward": "forward",
    "loss": "forward",
    "backward": "backward",
    "clip": "update",
    "optimizer": "update",
    "zero_grad": "update",
}
X_LABEL = "one optimizer step: its allocations and frees in order (no time scale)"
Y_LABEL = "memory of tensors [GiB]"


@dataclass(frozen=True, slots=True)
class Drawing:
    """One optimizer step: for each point of it the bytes of every kind in ``kinds``; caps and peaks are in bytes too.

    ``marks`` are the phases of the step, each with its begin as a share of the step, 0 to 1.
    """

    title: str
    note: str
    kinds: Sequence[str]
    points: Sequence[Sequence[int]]
    marks: Sequence[tuple[float, str]]
    cap_bytes: int
    reserved_bytes: int

    @property
    def peak(self) -> int:
        """The index of the point with the most bytes in use."""
        totals = [sum(point) for point in self.points]
        return totals.index(max(totals))

    @property
    def peak_bytes(self) -> int:
        """The most bytes in use at once."""
        return max(sum(point) for point in self.points)

    @property
    def cap_shown(self) -> bool:
        """Whether the cap is drawn to scale. A cap far above everything would flatten the picture: it is text then."""
        return self.cap_bytes <= 4 * max(self.peak_bytes, self.reserved_bytes)


@dataclass(frozen=True, slots=True)
class Layer:
    """One band of the stack: its bytes at every point."""

    label: str
    colour: str
    sizes: tuple[int, ...]


def layers(drawing: Drawing) -> list[Layer]:
    """The bands that hold anything, from the bottom up."""
    found = []
    for label, colour, kinds in GROUPS:
        columns = [drawing.kinds.index(kind) for kind in kinds if kind in drawing.kinds]
        sizes = tuple(sum(point[column] for column in columns) for point in drawing.points)
        if any(sizes):
            found.append(Layer(label, colour, sizes))
    return found


def phase_spans(drawing: Drawing) -> list[tuple[float, float, str]]:
    """Return forward, backward and update of each micro-batch: begin and end as shares of the step, 0 to 1; name."""
    found: list[tuple[float, float, str]] = []
    for start, phase in drawing.marks:
        name = _STRETCHES.get(phase, phase)
        if not found or found[-1][2] != name:
            if found:
                found[-1] = (found[-1][0], start, found[-1][2])
            found.append((start, 1.0, name))
    return found


def grid(drawing: Drawing) -> tuple[int, int]:
    """Return the distance of the grid lines in bytes, round in MiB or GiB, with at most eight lines, and the top."""
    top = max(drawing.peak_bytes, drawing.reserved_bytes, drawing.cap_bytes if drawing.cap_shown else 0)
    top += top // 16  # room for the labels of lines
    step = 1 << 20
    for step in (size << shift for shift in (20, 30) for size in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)):
        if top <= 8 * step:
            break
    return step, top


def size_label(size: int) -> str:
    """Bytes for people."""
    return size_text(size, fine=True)
