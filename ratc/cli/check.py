"""Say which compiled folders of a tree are not what their inputs give. Nothing is written.

Each folder's files are made again by the command in the head of its lock.yaml, in memory, and held against those there.
A spec that was never compiled is no finding. RAT_* variables are left out: a lock's command names all that lay over it.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ratc import consumers, emit, facts, targets
from ratc.compiled import drift, find
from ratc.console import say
from ratc.diagnostics import Diagnostic, Severity, Source, Span, has_errors
from ratc.sweep import once
from ratc.targets.artifact import Artifact
from ratc.workflow import compile as compiling
from ratc.workflow import findings, inputs, options, recorded
from ratc.workflow.inputs import Known
from ratc.workflow.request import CompileRequest
from ratc.yaml.parse import Document


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc check``."""
    parser.add_argument(
        "paths", nargs="*", default=["."], metavar="PATH", help="folders to look in (default: this one)"
    )
    options.add_format_argument(parser)
    options.add_trust_argument(parser)
    options.add_verify_argument(parser)
    parser.add_argument("--strict", action="store_true", help="warnings are errors, too")
    parser.add_argument(
        "--this-machine", action="store_true", help="where a spec leaves hardware open, take that of this machine"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 1 where a folder differs, 2 where a path is not there."""
    missing = [path for path in args.paths if not os.path.exists(path)]
    if missing:
        say(f"ratc check: there is no `{missing[0]}`")
        return 2
    found: list[Diagnostic] = []
    folders = differ = 0
    known: Known = {}
    made: list[tuple[str, Artifact, int]] = []
    for folder in find.compiled(args.paths):
        said = _checked(folder, args.this_machine, known, made)
        if args.strict:
            said = [replace(item, severity=Severity.ERROR) for item in said]
        found += said
        folders, differ = folders + 1, differ + has_errors(said)
    if args.verify:
        found += consumers.verify(made)
    failed = findings.show(once(found), "ratc check", args.format)
    many = f"{folders} compiled spec{'' if folders == 1 else 's'} checked"
    say(f"{many}: {differ or 'none'} differ{'s' if differ < 2 else ''}")
    return 1 if failed else 0


def _checked(
    folder: str, this_machine: bool, known: Known, all_made: list[tuple[str, Artifact, int]]
) -> list[Diagnostic]:
    """All that is to be said about one folder, while nobody compiles into it; adds the files made again."""
    with emit.steady(folder):
        document, found = drift.read(folder)
        if has_errors(found):
            return list(found)
        words, name = find.head(folder)
        command = f"cd {shlex.quote(folder)} && {words}"
        try:
            request = recorded.request(words, folder)
        except recorded.Refused as error:
            text = (emit.on_disk(folder, name) or b"").decode("utf-8", errors="replace")
            span = Span(Source(os.path.join(folder, name), text), 1, 1, 2, 1)
            message = f"the head of `{os.path.join(folder, name)}` does not say how to make it again"
            return [Diagnostic("R427", message, span, (str(error),), ("compile its spec again",))]
        if not os.path.exists(request.spec):
            return [*drift.untouched(folder, document, (f"run `{command}`",)), _gone(folder, name, request.spec)]
        loaded = inputs.load(request)
        if loaded.settings is None:
            return [*_by_digest(folder, document, request.spec, command), *_errors(loaded.diagnostics)]
        reached = compiling.reached(loaded)
        if not (this_machine or request.facts) and request.target == "local" and facts.needs_machine(loaded.settings):
            return [*_by_digest(folder, document, request.spec, command, reached), _machine(folder)]
        elsewhere = _elsewhere(folder, loaded, request)
        if elsewhere:
            return [elsewhere]
        made, said = compiling.make(request, loaded, folder, known)
        if made is None or compiling.is_untrusted(said):
            told = [item for item in said if item.severity is Severity.ERROR or item.code == "R446"]
            return [*_by_digest(folder, document, request.spec, command, reached), *told]
        all_made += [(os.path.join(folder, one.path), one, made.world_size) for one in made.artifacts]
        left = {*emit.stale(folder, made.artifacts, compiling.former(folder)), *_mixed(folder, made.artifacts)}
        return list(drift.compare(folder, made.artifacts, sorted(left), command))


def _errors(found: tuple[Diagnostic, ...]) -> list[Diagnostic]:
    return [item for item in found if item.severity is Severity.ERROR]


def _gone(folder: str, name: str, spec: str) -> Diagnostic:
    text = (emit.on_disk(folder, name) or b"").decode("utf-8", errors="replace")
    path = os.path.join(folder, name)
    span = Span(Source(path, text), 1, 1, 1, max(2, len(text.split("\n", 1)[0]) + 1))
    message = f"`{path}` was compiled from `{spec}`, which is gone"
    return Diagnostic("R427", message, span, helps=("delete the folder, or bring the spec back",))


def _elsewhere(folder: str, loaded: inputs.Loaded, request: CompileRequest) -> Diagnostic | None:
    """That the spec is of another experiment now, whose files lie elsewhere. Code: R427."""
    assert loaded.settings is not None
    node = loaded.settings["experiment_name"]
    now = os.path.join(loaded.folder, "compiled", str(node.value), request.target)
    if request.output or os.path.realpath(now) == os.path.realpath(folder):
        return None
    message = f"`{folder}` is left over: `{request.spec}` compiles into `{os.path.normpath(now)}` now"
    return Diagnostic("R427", message, node.span, helps=("delete the folder, or move it there and compile again",))


def _by_digest(
    folder: str, document: Document | None, spec: str, command: str, reached: Mapping[str, Any] | None = None
) -> Iterator[Diagnostic]:
    """What can be told without making the files again; of own code only if the spec says what it reaches."""
    base, now = os.path.dirname(spec), drift.records(document) if reached is None else reached
    return drift.by_digest(folder, document, base, (f"run `{command}`",), now)


def _machine(folder: str) -> Diagnostic:
    message = f"`{folder}` depends on the machine that it was compiled on: only its digests were checked"
    note = "the spec leaves hardware open, and no facts file is recorded"
    helps = ("name `resources.cpus` and the card in the spec, or compile with `--facts`, or use `--this-machine`",)
    return Diagnostic("R429", message, None, (note,), helps, Severity.WARNING)


def _mixed(folder: str, made: Sequence[Artifact]) -> list[str]:
    """Files with ratc's head that no plan of this folder has: those of another target."""
    names = {artifact.path for artifact in made}
    return [name for name in targets.NAMES if name not in names and find.marked(folder, name)]
