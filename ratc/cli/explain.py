"""Say what a code means, or where a value comes from.

`ratc explain R304` explains a code, `ratc explain spec.yaml training.batch_size` one value, down to the lines of spec
and facts that it was made from; `ratc explain compiled/x/slurm PATH` the same of what was compiled. A PATH may be a
section, or the last part of a path.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING

from ratc import compiler, resources
from ratc.cli import compiled, inputs
from ratc.cli.compiled import Compiled
from ratc.cli.inputs import Loaded
from ratc.diagnostics import Diagnostic, Severity, did_you_mean, has_errors
from ratc.plan import Plan, Value, Values

if TYPE_CHECKING:
    from ratc.memory.decision import Decision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc explain``."""
    inputs.add_spec_arguments(parser)
    parser.add_argument("path", nargs="?", metavar="PATH", help="a value's path, its last part, or a section")
    parser.add_argument("--all", action="store_true", help="the whole plan as a table")
    parser.add_argument("--point", metavar="NAME", help="of this point of a sweep, instead of the first")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text (default) or json")
    parser._positionals._actions[1].metavar = "CODE|SPEC|FOLDER"


def run(args: argparse.Namespace) -> int:
    """Exit status 1 when the code or the path is not known, or the spec does not compile."""
    if re.fullmatch(r"[Rr][0-9]{3}", args.spec) and not os.path.exists(args.spec):
        return _code(args.spec.upper())
    read: Compiled | None = None
    asked, alone = args, False
    if os.path.isdir(args.spec) or compiled.is_compiled(args.spec):
        read, found = compiled.read(args.spec)
        if read is None:
            return _refused(found)
        try:
            asked, alone = read.arguments(), True
        except compiled.Refused as reason:
            return _by_lock(args, read, str(reason))
        if not os.path.exists(asked.spec):
            return _by_lock(args, read, f"its spec `{asked.spec}` is gone")
    refused = inputs.known_target(asked.target)
    if refused:
        return _refused(refused)
    return _explained(args, asked, inputs.load(asked, asked.target, alone), read)


def _explained(args: argparse.Namespace, asked: argparse.Namespace, loaded: Loaded, read: Compiled | None) -> int:
    from ratc import explain

    remarks: list[str] = []
    settings, found = _settings(args, loaded, read, remarks)
    if settings is None:
        return _refused((*loaded.diagnostics, *found))
    # Only what memory decides, or the whole plan, is worth a prediction.
    predict = args.path is None or args.all or explain.RENAMED.get(args.path, args.path) in explain.DECIDED_BY_MEMORY
    plan, said, _, decision = inputs.decided(asked, settings, asked.target, predict)
    if plan is None:
        return _refused(tuple(item for item in said if item.severity is Severity.ERROR))
    paths = list(plan.values) if args.path is None else explain.find(plan, args.path)
    if not paths:
        return _unknown(args.path, explain.known_paths(plan))
    if read is not None and (predict or not inputs.is_open(plan)):
        remarks += _moved(plan, read, paths)
    _tell(args, plan, paths, remarks)
    if paths == ["training.micro_batch_size"] and args.format == "text":
        print("\n" + "\n".join(_account(plan, decision)))
    return 0


def _settings(
    args: argparse.Namespace, loaded: Loaded, read: Compiled | None, remarks: list[str]
) -> tuple[Values | None, tuple[Diagnostic, ...]]:
    """The spec's settings; of a sweep those of the point asked for, which is the first where none is."""
    if loaded.settings is None or loaded.document is None:
        return None, ()
    points, found = compiler.points(loaded.document)
    if has_errors(found) or not points:
        return (None if has_errors(found) else loaded.settings), found
    name = args.point or (read.point if read else "") or points[0].name
    point = next((point for point in points if point.name == name), None)
    if point is None:
        print(f"ratc explain: the sweep has no point `{name}`", file=sys.stderr)
        for text in did_you_mean(name, [point.name for point in points]):
            print(f"help: {text}", file=sys.stderr)
        return None, ()
    remarks.append(f"of the sweep's {len(points)} points this is {point.name}: {point.text}")
    return compiler.check_point(loaded.document, point)


def _moved(plan: Plan, read: Compiled, paths: list[str]) -> list[str]:
    """Where the lock says something else than its inputs give now."""
    from ratc.diff.compare import flat, same
    from ratc.render.plan import shown

    now = flat({path: plan.values[path] for path in paths if path in plan.values})
    told = []
    for path, value in now.items():
        then = read.values.get(path)
        if then is not None and not same(then.value, value.value):
            words = f"the lock says {shown(path, then)}, and its inputs give {shown(path, value)} now"
            told.append(f"{path}: {words}; `ratc check` says why")
    return told


def _tell(args: argparse.Namespace, plan: Plan, paths: list[str], remarks: list[str]) -> None:
    from ratc import explain
    from ratc.render import plan as render

    if args.format == "json":
        links = [link for path in paths if (link := explain.tree(plan, path))]
        sys.stdout.write(render.document(links, remarks))
        return
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    if args.all or (args.path is not None and len(paths) > 1):
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        sys.stdout.write(render.table(plan, [path for path in paths if path in plan.values], width))
        return
    for path in paths:
        link = explain.tree(plan, path)
        assert link is not None
        sys.stdout.write(render.chain(link))


def _by_lock(args: argparse.Namespace, read: Compiled, why: str) -> int:
    """What the lock alone can say."""
    from ratc import explain

    plan = Plan(Values({path: _kept(value) for path, value in read.values.items()}), Values({}))
    paths = list(plan.values) if args.path is None else explain.find(plan, args.path)
    if not paths:
        return _unknown(args.path, list(plan.values))
    _tell(args, plan, paths, [f"only `{read.path}` itself can be told of: {why}"])
    return 0


def _kept(value: Value) -> Value:
    return Value(value.value, "derived" if value.reason else "spec", value.reason, span=value.span)


def _refused(found: tuple[Diagnostic, ...]) -> int:
    inputs.show(found, "ratc explain")
    return 1


def _unknown(path: str, known: list[str]) -> int:
    print(f"ratc explain: there is no value `{path}`", file=sys.stderr)
    for text in did_you_mean(path, known):
        print(f"help: {text}", file=sys.stderr)
    return 1


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
