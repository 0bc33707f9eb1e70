"""Say what a code means, or where a value comes from.

`ratc explain R304` explains a code, `ratc explain spec.yaml training.batch_size` one value, down to its sources.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING

from ratc import resources
from ratc.cli import inputs
from ratc.diagnostics import Severity, did_you_mean
from ratc.plan import Plan

if TYPE_CHECKING:
    from ratc.memory.decision import Decision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc explain``."""
    inputs.add_spec_arguments(parser)
    parser.add_argument("path", nargs="?", metavar="PATH", help="a value's path; all values where absent")
    parser._positionals._actions[1].metavar = "CODE|SPEC"


def run(args: argparse.Namespace) -> int:
    """Exit status 1 when the code or the path is not known, or the spec does not compile."""
    if re.fullmatch(r"[Rr][0-9]{3}", args.spec) and not os.path.exists(args.spec):
        return _code(args.spec.upper())
    refused = inputs.known_target(args.target)
    if refused:
        inputs.show(refused, "ratc explain")
        return 1
    from ratc import explain

    loaded = inputs.load(args, args.target)
    if loaded.settings is None:
        inputs.show(loaded.diagnostics, "ratc explain")
        return 1
    # Only what memory decides, or the whole plan, is worth a prediction.
    predict = args.path is None or explain.RENAMED.get(args.path, args.path) in explain.DECIDED_BY_MEMORY
    plan, found, _, decision = inputs.decided(args, loaded.settings, args.target, predict)
    errors = [item for item in found if item.severity is Severity.ERROR]
    if plan is None:
        inputs.show(errors, "ratc explain")
        return 1
    if args.path is None:
        print("\n".join(explain.text(plan, path).rstrip("\n") for path in plan.values))
        return 0
    path = explain.find(plan, args.path)
    if path is None:
        print(f"ratc explain: there is no value `{args.path}`", file=sys.stderr)
        for text in did_you_mean(args.path, explain.known_paths(plan)):
            print(f"help: {text}", file=sys.stderr)
        return 1
    print(explain.text(plan, path), end="")
    if path == "training.micro_batch_size":
        print("\n" + "\n".join(_account(plan, decision)))
    return 0


def _account(plan: Plan, decision: Decision | None) -> list[str]:
    """What the micro-batch takes, part by part; or in one line why that is not known."""
    if decision is not None:
        from ratc.cli import account

        return account.lines(decision.choice, decision.measured)
    if plan.values["hardware.device"].value != "cuda":
        return ["No memory is predicted: it trains on the CPU."]
    if not inputs.is_open(plan):
        known = plan.values["hardware.compute_capability"].value
        why = "the spec gives the micro-batch" if known else "it is not known which NVIDIA card it will run on"
        return [f"No memory is predicted: {why}. `ratc fit SPEC --card CARD` predicts for a card."]
    return ["No memory is predicted: the model's step could not be traced here (see the warning)."]


def _code(code: str) -> int:
    known = sorted(name.removesuffix(".md") for name in os.listdir(resources.folder("codes")) if name.endswith(".md"))
    if code not in known:
        print(f"ratc explain: there is no code {code}\nhelp: the codes are {', '.join(known)}", file=sys.stderr)
        return 1
    print(resources.read("codes", f"{code}.md").decode(), end="")
    return 0
