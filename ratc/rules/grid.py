"""R209: RAT's blocks each shrink the grid of tokens; at a single one nothing is left to attend to.

The shrinking is that of a strided convolution with padding (kernel - 1) // 2 (`SpatialGroupingAttention`); a last grid
of one also fails in backward, as published.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ratc.diagnostics import Diagnostic
from ratc.memory.images import sides
from ratc.memory.rat import shrink
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that the last grid has at least two tokens, on every scale."""
    if settings["model.name"].value != "rat":
        return
    size = settings["data.image_size"]
    kernel, blocks = settings.get_as(int, "model.sga_kernel_size"), settings.get_as(int, "model.num_blocks")
    stride = settings.maybe(int, "model.stride") or max(1, kernel // 2)
    for scale in settings["data.scales"].value or [1.0]:
        grids = [[max(1, round(side * scale)) for side in sides(settings)]]
        while len(grids) <= min(blocks, 64) and prod(grids[-1]) > 1:
            grids.append([shrink(n, kernel, stride) for n in grids[-1]])
        if prod(grids[-1]) > 1:
            continue
        steps = " -> ".join("x".join(map(str, grid)) for grid in grids[:8])
        note = f"with kernel {kernel} and stride {stride} the grid goes {steps}"
        message = (
            f"{blocks} blocks shrink the image to nothing"
            if len(grids) <= blocks
            else "the last block shrinks the image to a point"
        )
        helps = ("use a larger `image_size`, a smaller `stride` or fewer blocks",)
        span = (
            settings["model.stride"].span
            or settings["model.num_blocks"].span
            or size.span
            or settings["data.scales"].span
        )
        yield Diagnostic("R209", message, span, (note,), helps)
        return
