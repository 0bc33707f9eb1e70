"""The measurements of a node, as pydantic models: they come from other machines, so nothing about them is assumed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ratc_runtime.config.sections import Section

#: Most cards of a node, and most characters of a name or a problem, that a report may have.
MOST_CARDS, LONGEST = 64, 300

Rate = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
#: One line: a report cannot write lines of its own into a log.
Words = Annotated[str, Field(max_length=LONGEST, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Device(Section):
    """One card, or the processors of a node without cards."""

    index: Annotated[int, Field(ge=0, lt=MOST_CARDS)]
    #: 10^12 operations a second of a matrix product, and 10^9 bytes a second that a copy moves; None: not measured.
    matrix_tflops: Rate | None = None
    memory_gb_s: Rate | None = None
    #: Reasons for which the device is broken, whatever the other devices do; and doubts, which are only shown.
    problems: Annotated[list[Words], Field(max_length=20, default_factory=list)]
    doubts: Annotated[list[Words], Field(max_length=20, default_factory=list)]

    @property
    def name(self) -> str:
        """Return the device's name within its node."""
        return f"card {self.index}"


class NodeReport(Section):
    """The tests that a node makes alone. `problems` are those of no single device, such as a test that hangs."""

    host: Words
    devices: Annotated[list[Device], Field(max_length=MOST_CARDS, default_factory=list)]
    problems: Annotated[list[Words], Field(max_length=20, default_factory=list)]


class NetworkReport(Section):
    """An all-reduce, as one node saw it: 10^9 bytes a second among its own cards, and among the nodes (None: not
    measured); or why it failed.
    """

    link_gb_s: Rate | None = None
    network_gb_s: Rate | None = None
    problem: Words | None = None


def clipped(text: object) -> str:
    """Return text of one line that fits a report."""
    line = " ".join(str(text).split())[:LONGEST]
    return "".join(char if char.isprintable() else "?" for char in line)
