"""A range test of the learning rate, drawn in SVG: the loss over the rate, and the suggested rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _SIDE, _TOP, _FOOT = 640, 320, 70, 40, 60
_STYLE = """\
text { font: 12px sans-serif; fill: #222; } .axis { stroke: #888; } .ground { fill: #fff; }
.loss { fill: none; stroke: #8fb3cc; stroke-width: 1; } .mean { fill: none; stroke: #1b5e8f; stroke-width: 2.5; }
.chosen { stroke: #d1495b; stroke-width: 2; stroke-dasharray: 5 4; }
@media (prefers-color-scheme: dark) {
text { fill: #ddd; } .ground { fill: #181a1b; } .loss { stroke: #3f6480; } .mean { stroke: #a5d3f2; }
.chosen { stroke: #ff7b8a; } }"""


def svg(found: Mapping[str, Any]) -> str:
    """The picture of a range test: each step's loss, their running mean, and the suggestion."""
    points = found["points"]
    title = f"{found['experiment_name']}: loss over learning rate"
    width, height = _WIDTH + 2 * _SIDE, _HEIGHT + _TOP + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="{escape(title)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
        f'<text x="{_SIDE}" y="22" font-weight="bold">{escape(title)}</text>',
    ]
    if len(points) > 1:
        parts += _curve(found, points)
    parts.append("</svg>\n")
    return "\n".join(parts)


def _curve(found: Mapping[str, Any], points: list[Mapping[str, float]]) -> list[str]:
    left, right = (math.log10(points[index]["rate"]) for index in (0, -1))
    # Diverging values at the end must not flatten the rest.
    means = [point["mean"] for point in points]
    low = min(means)
    high = max(means[0], *(mean for mean in means if mean <= 2 * abs(means[0])), low + 1e-12)

    def x(rate: float) -> float:
        return _SIDE + _WIDTH * (math.log10(rate) - left) / (right - left)

    def y(loss: float) -> float:
        return _TOP + _HEIGHT * (1 - min(1.1, max(-0.1, (loss - low) / (high - low))))

    bottom = _TOP + _HEIGHT + 20
    parts = [f'<line class="axis" x1="{_SIDE}" y1="{bottom}" x2="{_SIDE + _WIDTH}" y2="{bottom}"/>']
    for power in range(math.ceil(left - 1e-9), math.floor(right + 1e-9) + 1):
        at = x(10.0**power)
        parts.append(f'<line class="axis" x1="{at:.1f}" y1="{bottom}" x2="{at:.1f}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">1e{power}</text>')
    middle = _SIDE + _WIDTH / 2
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 38}" text-anchor="middle">learning rate</text>')
    for value in (low, high):
        parts.append(f'<text x="{_SIDE - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for name in ("loss", "mean"):
        line = " ".join(f"{x(point['rate']):.1f},{y(point[name]):.1f}" for point in points)
        parts.append(f'<polyline class="{name}" points="{line}"/>')
    chosen = found["learning_rate"]
    if chosen is not None:
        at = x(chosen)
        parts.append(f'<line class="chosen" x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{_TOP - 4}" text-anchor="middle">{chosen:.1e}</text>')
    return parts
