"""The drawing as PNG. The only part of the compiler that needs matplotlib, which the runtime extra brings."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ratc.render.timeline import GIB, X_LABEL, Y_LABEL, Drawing, grid, layers, phase_spans, size_label

_GREY = "#595959"
_HALO = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}


def png(drawing: Drawing) -> bytes:
    """The same stacked area as the SVG's, 1500 x 750 pixels."""
    step, top = grid(drawing)
    bands = layers(drawing)
    figure = Figure(figsize=(10, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    count = max(2, len(drawing.points))
    shares = [number / (count - 1) for number in range(len(drawing.points))]
    axes.stackplot(
        shares,
        [[size / GIB for size in band.sizes] for band in bands],
        labels=[f"{band.label}  {size_label(band.sizes[drawing.peak])}" for band in bands],
        colors=[band.colour for band in bands],
        linewidth=0,
    )
    for start, end, name in phase_spans(drawing):
        axes.axvline(start, color="#bdbdbd", linewidth=0.8, zorder=0)
        if end - start > 0.007 * len(name):
            axes.annotate(
                name, ((start + end) / 2, 1), (0, 3), xycoords=("data", "axes fraction"), color=_GREY, fontsize=8,
                textcoords="offset points", ha="center",
            )  # fmt: skip
    # On a side each, so that they cannot cover one another.
    left, right = (0.005, "left"), (0.995, "right")
    lines = [("reserved by the allocator", drawing.reserved_bytes, (0, (1, 2)), right)]
    if drawing.cap_shown:
        lines.append(("cap of the card, margin taken off", drawing.cap_bytes, (0, (6, 3)), left))
    else:
        words = f"↑ cap of the card, margin taken off: {size_label(drawing.cap_bytes)}, far above"
        axes.text(left[0], 0.995, words, transform=axes.transAxes, ha=left[1], va="top", fontsize=8, bbox=_HALO)
    for label, size, dashes, (x, side) in lines:
        axes.axhline(size / GIB, color="black", linewidth=1.2, linestyle=dashes)
        axes.annotate(
            f"{label}: {size_label(size)}", (x, size / GIB), (0, 3), xycoords=("axes fraction", "data"), ha=side,
            textcoords="offset points", fontsize=8, bbox=_HALO,
        )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, top / GIB)
    axes.set_yticks([number * step / GIB for number in range(top // step + 1)])
    axes.set_xticks([])
    axes.set_xlabel(X_LABEL, color=_GREY, fontsize=9)
    axes.set_ylabel(Y_LABEL, color=_GREY, fontsize=9)
    axes.tick_params(colors=_GREY, labelsize=8)
    axes.grid(axis="y", color="#e3e3e3", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(drawing.title, loc="left", fontsize=12, fontweight="bold", pad=34)
    axes.annotate(
        drawing.note, (0, 1), (0, 20), xycoords="axes fraction", textcoords="offset points", color=_GREY, fontsize=9
    )
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        labels[::-1],
        loc="outside right upper",
        title=f"at the peak, {size_label(drawing.peak_bytes)}:",
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        alignment="left",
    )
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
