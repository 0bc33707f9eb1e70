"""Predictions held against measurements of a GPU: the limits, and what breaks them. Pure, so that tests can feed it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """``median`` and ``worst`` are of the predicted peak reserved memory against the measured one, ``chosen`` of the
    chosen micro-batch against the largest that ran; ``beyond`` under-estimates may exceed the stated margin.
    """

    median: float
    worst: float
    chosen: float
    beyond: int


#: What the tests hold predictions to.
GOALS = Limits(median=0.005, worst=0.05, chosen=0.97, beyond=0)


@dataclass(frozen=True)
class Pair:
    """One case: peaks of reserved memory in bytes, and the predicted margin (0.05 for 5 %).

    ``outside`` is what was taken beside the allocator, and ``outside_bound`` what was allowed for it; None where other
    processes shared the card.
    """

    name: str
    predicted: int
    measured: int
    margin: float
    outside: int | None = None
    outside_bound: int | None = None

    @property
    def error(self) -> float:
        """Relative error of the prediction; negative where it was too low."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Search:
    """One bisection: the micro-batch that would be chosen at its cap, the largest that ran and the smallest that did
    not.
    """

    name: str
    chosen: int
    largest: int
    failed: int


def judge(pairs: Sequence[Pair], searches: Sequence[Search], limits: Limits = GOALS) -> list[str]:
    """Return what breaks the limits, one line each; nothing where all hold. No pairs at all is a finding too."""
    if not pairs:
        return ["there is no measurement to judge by"]
    found = []
    middle = statistics.median(abs(pair.error) for pair in pairs)
    if middle > limits.median:
        found.append(f"the median error is {middle:.2%}, more than {limits.median:.1%}")
    for pair in pairs:
        if abs(pair.error) > limits.worst:
            found.append(f"{pair.name}: predicted {pair.error:+.1%} off, more than {limits.worst:.0%}")
        if pair.outside is not None and pair.outside_bound is not None and pair.outside > pair.outside_bound:
            found.append(f"{pair.name}: {pair.outside} bytes outside the allocator, {pair.outside_bound} allowed for")
    beyond = [pair for pair in pairs if pair.measured * (1 - pair.margin) > pair.predicted]
    if len(beyond) > limits.beyond:
        found += [f"{pair.name}: under-estimated by more than the margin of {pair.margin:.1%}" for pair in beyond]
    for search in searches:
        if search.chosen >= search.failed:
            found.append(f"{search.name}: chose micro-batch {search.chosen}, and {search.failed} ran out of memory")
        if search.chosen < limits.chosen * search.largest:
            found.append(
                f"{search.name}: chose micro-batch {search.chosen}, less than {limits.chosen:.0%} of {search.largest}"
            )
    return found


#: Bounds of the errors that are counted.
BINS = (0.001, 0.005, 0.01, 0.02, 0.05)


def overview(pairs: Sequence[Pair], searches: Sequence[Search]) -> str:
    """Return a Markdown table of the figures that matter, and one of how the errors are distributed."""
    errors = [pair.error for pair in pairs]
    under = [pair for pair in pairs if pair.error < 0]
    beyond = [pair for pair in pairs if pair.predicted < pair.measured * (1 - pair.margin)]
    worst = max(errors, key=abs, default=0.0)
    shares = [search.chosen / search.largest for search in searches]
    too_many = sum(search.chosen >= search.failed for search in searches)
    rows = [
        "| figure | value |",
        "| --- | --- |",
        f"| cases | {len(pairs)} |",
        f"| median error of peak reserved memory | {statistics.median(map(abs, errors)):.2%} |",
        f"| worst error | {worst:+.1%} |",
        f"| under-estimates | {len(under)} of {len(pairs)}, the largest {min(errors):+.1%} |",
        f"| under-estimates beyond the stated margin | {len(beyond)} of {len(pairs)} |",
    ]
    if shares:
        spread = f"{min(shares):.1%} to {max(shares):.1%}"
        rows.append(f"| chosen micro-batch over the largest that ran, {len(shares)} searches | {spread} |")
        rows.append(f"| choices that would have run out of memory | {too_many} of {len(shares)} |")
    rows += ["", "| error within | cases |", "| --- | --- |"]
    rows += [f"| {limit:.1%} | {sum(abs(error) <= limit for error in errors)} of {len(errors)} |" for limit in BINS]
    return "\n".join(rows)


def summary(pairs: Sequence[Pair], searches: Sequence[Search]) -> str:
    """Return a Markdown table of both."""
    rows = ["| case | predicted GiB | measured GiB | error | margin |", "| --- | --- | --- | --- | --- |"]
    gib = 1 << 30
    for p in pairs:
        predicted, measured = p.predicted / gib, p.measured / gib
        rows.append(f"| {p.name} | {predicted:.2f} | {measured:.2f} | {p.error:+.1%} | {p.margin:.1%} |")
    rows += ["", "| search | chosen | largest that ran | share |", "| --- | --- | --- | --- |"]
    rows += [f"| {s.name} | {s.chosen} | {s.largest} | {s.chosen / s.largest:.1%} |" for s in searches]
    return "\n".join(rows)
