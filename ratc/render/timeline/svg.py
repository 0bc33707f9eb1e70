"""The drawing as SVG, alone or in a page of HTML: self-contained, it loads nothing."""

from __future__ import annotations

from ratc import markup
from ratc.render.timeline import GIB, X_LABEL, Y_LABEL, Drawing, grid, layers, phase_spans, size_label

LEFT, TOP, WIDTH, HEIGHT = 72, 64, 700, 360
_LEGEND = LEFT + WIDTH + 24
_SIZE = (_LEGEND + 190, TOP + HEIGHT + 60)
_GREY, _DARK = "#595959", "#222222"


def svg(drawing: Drawing) -> str:
    """Draw a stacked area with the phases of the step above it, and the cap and the reserved memory as lines."""
    step, top = grid(drawing)
    count = max(2, len(drawing.points))

    def x(share: float) -> float:
        return LEFT + WIDTH * share

    def y(size: float) -> float:
        return TOP + HEIGHT * (1 - size / top)

    parts = [_text(LEFT, 22, drawing.title, size=16, weight="600"), _text(LEFT, 41, drawing.note, fill=_GREY)]
    for start, end, name in phase_spans(drawing):
        parts.append(f'<path d="M{x(start):.1f} {TOP}v{HEIGHT}" stroke="#bdbdbd"/>')
        if end - start > 0.007 * len(name):
            parts.append(_text(x((start + end) / 2), TOP - 6, name, fill=_GREY, anchor="middle"))
    for number in range(top // step + 1):
        height = y(number * step)
        parts.append(f'<path d="M{LEFT} {height:.1f}h{WIDTH}" stroke="#e3e3e3"/>')
        parts.append(_text(LEFT - 8, height + 4, f"{number * step / GIB:g}", anchor="end", fill=_GREY))
    lower = [0] * len(drawing.points)
    for layer in layers(drawing):
        upper = [low + size for low, size in zip(lower, layer.sizes, strict=True)]
        there = [f"{x(n / (count - 1)):.1f},{y(size):.1f}" for n, size in enumerate(upper)]
        back = [f"{x(n / (count - 1)):.1f},{y(size):.1f}" for n, size in reversed(list(enumerate(lower)))]
        words = f"{layer.label}: {size_label(max(layer.sizes))} at most"
        parts.append(
            f'<polygon points="{" ".join(there + back)}" fill="{layer.colour}">'
            f"<title>{markup.html(words)}</title></polygon>"
        )
        lower = upper
    parts += _lines(drawing, y)
    parts += _legend(drawing)
    parts.append(_text(LEFT + WIDTH / 2, TOP + HEIGHT + 22, X_LABEL, fill=_GREY, anchor="middle"))
    middle = TOP + HEIGHT / 2
    parts.append(
        f'<text x="20" y="{middle}" fill="{_GREY}" text-anchor="middle" transform="rotate(-90 20 {middle})">'
        f"{markup.html(Y_LABEL)}</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE[0]} {_SIZE[1]}" width="{_SIZE[0]}" '
        f'height="{_SIZE[1]}" font-family="system-ui, sans-serif" font-size="12" role="img">\n'
        f"<title>{markup.html(drawing.title)}</title>\n"
        f'<rect width="100%" height="100%" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def html(drawing: Drawing) -> str:
    """A page that holds the drawing."""
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{markup.html(drawing.title)}</title>\n'
    style = "<style>body { margin: 16px } svg { max-width: 100%; height: auto }</style>\n"
    return f"{head}{style}<body>\n{svg(drawing)}</body>\n</html>\n"


def _lines(drawing: Drawing, y: object) -> list[str]:
    assert callable(y)
    found = []
    # On a side each, so that they cannot cover one another.
    left, right = (LEFT + 4, "start"), (LEFT + WIDTH - 4, "end")
    wanted = [("reserved by the allocator", drawing.reserved_bytes, _DARK, "2 3", right)]
    if drawing.cap_shown:
        wanted.append(("cap of the card, margin taken off", drawing.cap_bytes, "#000000", "8 4", left))
    else:
        words = f"↑ cap of the card, margin taken off: {size_label(drawing.cap_bytes)}, far above"
        found.append(_text(left[0], TOP + 14, words, anchor=left[1], fill="#000000", halo=True))
    for label, size, colour, dashes, (x, anchor) in wanted:
        height = y(size)
        line = f'<path d="M{LEFT} {height:.1f}h{WIDTH}" stroke="{colour}" stroke-dasharray="{dashes}"'
        found.append(f'{line} stroke-width="1.5"/>')
        words = f"{label}: {size_label(size)}"
        found.append(_text(x, height - 5, words, anchor=anchor, fill=colour, halo=True))
    return found


def _legend(drawing: Drawing) -> list[str]:
    """Return the bands from the top down, as they are stacked, with the size of each at the peak."""
    found = [_text(_LEGEND, TOP + 10, f"at the peak, {size_label(drawing.peak_bytes)}:", weight="600")]
    for number, layer in enumerate(reversed(layers(drawing))):
        height = TOP + 26 + 22 * number
        found.append(f'<rect x="{_LEGEND}" y="{height}" width="13" height="13" fill="{layer.colour}"/>')
        found.append(_text(_LEGEND + 20, height + 11, layer.label))
        found.append(_text(_LEGEND + 182, height + 11, size_label(layer.sizes[drawing.peak]), anchor="end", fill=_GREY))
    return found


def _text(
    x: float,
    y: float,
    words: str,
    size: int = 12,
    fill: str = _DARK,
    anchor: str = "start",
    weight: str = "400",
    halo: bool = False,
) -> str:
    around = ' stroke="#fff" stroke-width="3" paint-order="stroke"' if halo else ""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" font-weight="{weight}" fill="{fill}" '
        f'text-anchor="{anchor}"{around}>{markup.html(words)}</text>'
    )
