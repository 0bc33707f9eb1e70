"""A study's trials as parallel coordinates, in SVG: an axis per key and one for the metric, a line per trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ratc.tuning.outcome import Trial, best, ranked
from ratc.tuning.points import Study
from ratc.tuning.space import Choices, Range, inline

_GAP, _TOP, _HEIGHT, _SIDE, _FOOT = 150, 70, 300, 90, 40
#: Colours that differ in lightness too, from the worst to the best trial; the best is drawn on top, thicker.
_STYLE = """\
text { font: 12px sans-serif; fill: #222; paint-order: stroke; stroke: #fff; stroke-width: 4px; }
.axis { stroke: #888; } .name { font-weight: bold; }
.trial { fill: none; stroke-width: 1.5; opacity: .75; } .best { stroke: #d1495b; stroke-width: 3.5; opacity: 1; }
.q0 { stroke: #c9d6df; } .q1 { stroke: #8fb3cc; } .q2 { stroke: #4d89b3; } .q3 { stroke: #1b5e8f; }
.ground { fill: #fff; }
@media (prefers-color-scheme: dark) {
text { fill: #ddd; stroke: #181a1b; } .ground { fill: #181a1b; } .best { stroke: #ff7b8a; }
.q0 { stroke: #33424d; } .q1 { stroke: #3f6480; } .q2 { stroke: #5b9bc7; } .q3 { stroke: #a5d3f2; } }"""


def svg(study: Study, trials: Sequence[Trial]) -> str:
    """Draw the trials that have a metric; each line has a tooltip with its trial's values."""
    shown = [trial for trial in ranked(trials, study.larger_is_better) if trial.metric is not None]
    axes = len(study.space) + 1
    width, height = 2 * _SIDE + (axes - 1) * _GAP, _TOP + _HEIGHT + _FOOT
    metrics = [trial.metric for trial in shown if trial.metric is not None]
    low, high = (min(metrics), max(metrics)) if metrics else (0.0, 1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="{escape(_caption(study, shown))}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" width="{width}" height="{height}"/>',
    ]
    axes_drawn: list[str] = []
    for number, entry in enumerate(study.space):
        axes_drawn += _axis(number, entry.path.rpartition(".")[2], _ticks(entry))
    axes_drawn += _axis(
        axes - 1, study.metric, [(0.0, f"{low:.4g}"), (1.0, f"{high:.4g}")] if high > low else [(0.5, f"{low:.4g}")]
    )
    chosen = best(trials, study.larger_is_better)
    for rank in range(len(shown) - 1, -1, -1):
        trial = shown[rank]
        assert trial.metric is not None
        shares = [_share(entry, trial) for entry in study.space]
        shares.append((trial.metric - low) / (high - low) if high > low else 0.5)
        points = " ".join(f"{_x(number)},{_y(share):.1f}" for number, share in enumerate(shares))
        kind = "best" if trial is chosen else f"q{3 - min(3, 4 * rank // len(shown))}"
        told = " ".join(f"{path}={inline(value)}" for path, value in trial.values.items())
        title = escape(f"{trial.name}: {study.metric} {trial.metric:.4f}; {told}")
        parts.append(f'<polyline class="trial {kind}" points="{points}"><title>{title}</title></polyline>')
    # Last, so that no line crosses a word.
    parts += [*axes_drawn, "</svg>\n"]
    return "\n".join(parts)


def _caption(study: Study, shown: Sequence[Trial]) -> str:
    if not shown:
        return "No trial has a metric yet."
    first = shown[0]
    return f"{len(shown)} trials; best {first.name}, {study.metric} {first.metric:.4f}"


def _x(number: int) -> int:
    return _SIDE + number * _GAP


def _y(share: float) -> float:
    return _TOP + _HEIGHT * (1 - share)


def _axis(number: int, name: str, ticks: Sequence[tuple[float, str]]) -> list[str]:
    x = _x(number)
    parts = [
        f'<text class="name" x="{x}" y="{_TOP - 30}" text-anchor="middle">{escape(name)}</text>',
        f'<line class="axis" x1="{x}" y1="{_TOP}" x2="{x}" y2="{_TOP + _HEIGHT}"/>',
    ]
    for share, text in ticks:
        y = _y(share)
        parts.append(f'<line class="axis" x1="{x - 4}" y1="{y:.1f}" x2="{x + 4}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    return parts


def _ticks(entry: Choices | Range) -> list[tuple[float, str]]:
    if isinstance(entry, Choices):
        return [(_of(number, len(entry.nodes)), inline(node.data())[:14]) for number, node in enumerate(entry.nodes)]
    return [(0.0, f"{entry.low:g}"), (1.0, f"{entry.high:g}")]


def _of(number: int, count: int) -> float:
    return 0.5 if count == 1 else number / (count - 1)


def _share(entry: Choices | Range, trial: Trial) -> float:
    """Return the position of a trial's value on its axis, from 0 to 1."""
    value = trial.values[entry.path]
    if isinstance(entry, Choices):
        known = [repr(node.data()) for node in entry.nodes]
        return _of(known.index(repr(value)), len(known))
    if entry.log:
        return math.log(float(value) / entry.low) / math.log(entry.high / entry.low)
    return (float(value) - entry.low) / (entry.high - entry.low)
