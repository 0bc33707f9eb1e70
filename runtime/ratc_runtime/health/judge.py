"""Finds the bad nodes from the reports of all nodes: a pure function.

A node is bad if a device of it is broken, or much slower than the same test on the other nodes. It is never bad because
of the card's data sheet alone: if all are slow, changing nodes would not help, and that is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_high

from ratc_runtime.config.sections import Health
from ratc_runtime.health.report import Device, NetworkReport, NodeReport

#: A device is bad below this share of the median: cards of one kind differ by a few per cent, a sick one by much more.
#: Processors are shared with other jobs, and get more patience. Chosen, not measured.
SLOW = {"cuda": 0.75, "cpu": 0.3}
#: Below this share of the data sheet's rate the median is worth a warning: products reach 0.7 to 0.8 of it
#: (`ratc/timing/roofline.py`), copies 0.9.
EXPECTED = 0.5
#: Name of each test, its field of `Device`, that of `Health`, and its unit.
TESTS = (
    ("matrix product", "matrix_tflops", "matrix_tflops", "TFLOPS"),
    ("memory", "memory_gb_s", "memory_gb_s", "GB/s"),
)


@dataclass
class Verdict:
    """Reasons by the rank of each bad node; nodes that did not answer; warnings; a fault that no node can be blamed
    for. The last is a failure of the check: training would meet the same fault.
    """

    bad: dict[int, list[str]] = field(default_factory=dict)
    silent: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    nobody: str | None = None

    @property
    def excluded(self) -> list[int]:
        """Return the ranks of all nodes to leave out, in order."""
        return sorted({*self.bad, *self.silent})

    @property
    def passed(self) -> bool:
        """Return whether training may start."""
        return not self.excluded and self.nobody is None


def judge(
    reports: Mapping[int, NodeReport], nodes: int, expected: Health, device: str, names: Sequence[str]
) -> Verdict:
    """Return the verdict on the tests that each node makes alone. `names` are the nodes' names by rank."""
    verdict = Verdict(silent=[rank for rank in range(nodes) if rank not in reports])
    for rank, report in sorted(reports.items()):
        found = [*report.problems, *_broken(report.devices, device)]
        if found:
            verdict.bad[rank] = found
        verdict.warnings += [
            f"{names[rank]}{_which(one, device)}: {doubt}" for one in report.devices for doubt in one.doubts
        ]
    for test, attribute, key, unit in TESTS:
        rates = [
            (rank, one, rate)
            for rank, report in sorted(reports.items())
            for one in report.devices
            if (rate := getattr(one, attribute)) is not None
        ]
        if not rates:
            continue
        usual = median_high(rate for *_, rate in rates)
        for rank, one, rate in rates:
            if rate < usual * SLOW[device]:
                reason = f"{_which(one, device)} {test}: {rate:.3g} {unit}, the median of all is {usual:.3g}"
                verdict.bad.setdefault(rank, []).append(reason.strip())
        sheet = getattr(expected, key)
        if sheet is not None and usual < sheet * EXPECTED:
            verdict.warnings.append(
                f"{test}: the median of {len(rates)} is {usual:.3g} {unit}, {usual / sheet:.0%} of the {sheet:.3g} of"
                " the card's data sheet; no node is left out for that"
            )
    return verdict


def judge_links(reports: Mapping[int, NetworkReport]) -> dict[int, list[str]]:
    """Return reasons by rank: the cards of the node are much slower among themselves than those of the others."""
    rates = {rank: one.link_gb_s for rank, one in reports.items() if one.link_gb_s is not None and not one.problem}
    if not rates:
        return {}
    usual = median_high(rates.values())
    return {
        rank: [f"an all-reduce among its cards: {rate:.3g} GB/s, the median of the nodes is {usual:.3g}"]
        for rank, rate in sorted(rates.items())
        if rate < usual * SLOW["cuda"]
    }


def _broken(devices: Sequence[Device], kind: str) -> Iterator[str]:
    for one in devices:
        for problem in one.problems:
            yield f"{_which(one, kind)} {problem}".strip()


def _which(one: Device, kind: str) -> str:
    """Return the words for a device of a node; a node without cards is its only device."""
    return f" {one.name}" if kind == "cuda" else ""


def pairs(nodes: Sequence[int]) -> list[tuple[int, int]]:
    """Return disjoint pairs of node numbers; of an odd number of nodes the last one is left out."""
    return list(zip(nodes[::2], nodes[1::2], strict=False))


def against_good(suspects: Sequence[int], good: Sequence[int]) -> list[tuple[int, int]]:
    """Return pairs of a suspect and a good node, each node in one pair at most; the longer list is cut."""
    return list(zip(suspects, good, strict=False))
