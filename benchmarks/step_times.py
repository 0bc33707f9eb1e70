"""Predicted step times held against measured ones: `python benchmarks/step_times.py` prints the table of
docs/develop/step-times.md, and `--write` puts it there.

Each case of `benchmarks/memory/data/*/step-times.json` is traced here, on the CPU. `--fit` fits the shares of
`ratc/timing/roofline.py` again, first to all cases and then to those of all other models for each model: the second are
the errors that a model which was not measured can expect.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "memory")]

import gpu  # noqa: E402
import replay  # noqa: E402

from ratc import facts  # noqa: E402
from ratc.memory.trace import Trace  # noqa: E402
from ratc.own_code import trust  # noqa: E402
from ratc.timing.roofline import FITTED, NAMES, Rates, Shares, spread, step_time  # noqa: E402

PAGE = gpu.ROOT / "docs" / "develop" / "step-times.md"
BEGIN, END = "<!-- benchmarks/step_times.py writes from here -->", "<!-- to here -->"
#: Bounds of the shares: none reaches its peak, and a launch takes a microsecond at least.
LOWEST, HIGHEST, LAUNCH = 0.05, 0.8, (1e-6, 1e-5)


@dataclass(frozen=True)
class Case:
    """A measured step: its trace, and milliseconds as the median and the least of ten steps."""

    name: str
    micro_batch: int
    trace: Trace
    measured_ms: float
    least_ms: float
    rates: Rates
    card: str

    @property
    def model(self) -> str:
        """The model without its precision and its variants."""
        return "vit-b" if self.name.startswith("vit-b") else self.name.split(",")[0]

    def predicted_ms(self, shares: Shares = FITTED) -> float:
        """Milliseconds by the roofline."""
        found = step_time(self.trace, self.micro_batch, 1, self.rates, shares)
        assert found is not None, f"{self.name}: no kernels in the trace"
        return 1000 * found.seconds


def rates_of(card: facts.Card) -> Rates:
    """Return the peaks of a card of the catalogue."""
    assert card.peaks is not None
    return Rates(dict(card.peaks.operations), card.peaks.bandwidth)


def files() -> list[Path]:
    """Return the files of measured step times, one a card and a day."""
    return sorted(gpu.DATA.glob("*/step-times.json"))


def rows_of(file: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the measured steps of a file, each with the request of its trace."""
    requests = {case["name"]: case["request"] for case in gpu.cases()}
    requests |= {row["name"]: row["request"] for row in replay.load(file.parent)["rows"]}
    return [(row, requests[row["name"]]) for row in json.loads(file.read_text())["rows"]]


def cases_of(file: Path, chosen: Callable[[str], bool] = lambda _: True) -> list[Case]:
    """Trace the cases of a file whose names are chosen."""
    data = json.loads(file.read_text())
    card = facts.find_card(data["card"]["name"])
    assert isinstance(card, facts.Card)
    found = []
    for row, request in rows_of(file):
        if not chosen(row["name"]):
            continue
        asked = {**request, "compute_capability": data["card"]["compute_capability"]}
        trace = replay.predictor({**row, "request": asked, "zero_stage": None}).trace
        times = row["step_ms_median"], row["step_ms_min"]
        found.append(Case(row["name"], row["micro_batch"], trace, *times, rates_of(card), card.id))
    return found


def loss(shares: Shares, cases: Sequence[Case]) -> float:
    """The mean of the absolute logarithms of predicted to measured, a little of their squares with it."""
    errors = [abs(math.log(case.predicted_ms(shares) / case.measured_ms)) for case in cases]
    return statistics.mean(errors) + 0.3 * statistics.mean(error * error for error in errors)


def fit(cases: Sequence[Case], start: Shares = FITTED) -> Shares:
    """Fit the shares by a search along each of them, with ever smaller steps. Shares that no case needs stay."""
    best, least = start, loss(start, cases)
    step = 1.4
    while step > 1.02:
        improved = False
        for name in NAMES:
            for factor in (step, 1 / step):
                low, high = LAUNCH if name == "launch_s" else (LOWEST, HIGHEST)
                value = min(high, max(low, getattr(best, name) * factor))
                trial = Shares(**{**asdict(best), name: value})
                found = loss(trial, cases)
                if found < least - 1e-6:
                    best, least, improved = trial, found, True
        step = step if improved else math.sqrt(step)
    return best


def left_out(cases: Sequence[Case]) -> dict[str, float]:
    """Milliseconds of each case by shares that were fitted to the other models' cases."""
    found = {}
    for model in sorted({case.model for case in cases}):
        shares = fit([case for case in cases if case.model != model])
        found |= {case.name: case.predicted_ms(shares) for case in cases if case.model == model}
    return found


def covering_factor(ratios: Sequence[float], share: float = 0.9) -> float:
    """The smallest factor with a share of the ratios of predicted to measured between 1 / factor and factor."""
    factors = sorted(max(ratio, 1 / ratio) for ratio in ratios)
    return factors[math.ceil(share * len(factors)) - 1]


def table(cases: Sequence[Case], others: dict[str, float]) -> str:
    """Markdown: each case, and what the errors come to."""
    lines = [
        "| case | micro-batch | measured, ms | least, ms | predicted, ms | error | error, model left out |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in cases:
        error = case.predicted_ms() / case.measured_ms - 1
        apart = others[case.name] / case.measured_ms - 1
        lines.append(
            f"| {case.name} | {case.micro_batch} | {case.measured_ms:.1f} | {case.least_ms:.1f} | "
            f"{case.predicted_ms():.1f} | {error:+.0%} | {apart:+.0%} |"
        )
    sums = []
    for name, times in (
        ("fitted to all", {case.name: case.predicted_ms() for case in cases}),
        ("model left out", others),
    ):
        ratios = [times[case.name] / case.measured_ms for case in cases]
        errors = [abs(ratio - 1) for ratio in ratios]
        factor = spread(cases[0].card)
        inside = sum(1 / factor <= ratio <= factor for ratio in ratios)
        sums.append(
            f"| {name} | {statistics.median(errors):.0%} | {max(errors):.0%} | {inside} of {len(cases)} | "
            f"{covering_factor(ratios):.2f} |"
        )
    head = [
        f"| shares | median error | worst | within a factor of {spread(cases[0].card)} | factor that holds 90 % |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    return "\n".join([*head, *sums, "", *lines])


def written(page: str, text: str) -> str:
    """Return a page with the table put in place. Raises ValueError if it has no place for it."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help="only cases whose name holds this")
    parser.add_argument("--fit", action="store_true", help="fit the shares to all cases, and print them")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(gpu.ROOT)}")
    args = parser.parse_args()
    trust.begin(True, False)  # the models are of this folder
    texts = []
    for file in files():
        cases = cases_of(file, lambda name: args.only in name)
        if args.fit:
            shares = fit(cases)
            print(f"{shares}\nloss {loss(shares, cases):.4f}, before {loss(FITTED, cases):.4f}")
            continue
        data = json.loads(file.read_text())
        head = f"### {data['card']['name']}, torch {data['versions']['torch']}, {file.parent.name[-10:]}"
        texts.append(f"{head}\n\n{table(cases, left_out(cases))}")
        print(texts[-1])
    if args.write and texts and not args.only:
        PAGE.write_text(written(PAGE.read_text(), "\n\n".join(texts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
