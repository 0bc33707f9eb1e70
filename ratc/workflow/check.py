"""Checks a compiled folder against its inputs: compiles them again in memory and compares the files."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ratc import emit, facts, targets
from ratc.compiled import drift, find
from ratc.diagnostics import Diagnostic, Severity, Source, Span, has_errors
from ratc.targets.artifact import Artifact
from ratc.workflow import compile as compiling
from ratc.workflow import inputs, recorded
from ratc.workflow.inputs import Known
from ratc.workflow.request import CompileRequest
from ratc.yaml.parse import Document


def checked(
    folder: str, this_machine: bool, known: Known, all_made: list[tuple[str, Artifact, int]]
) -> list[Diagnostic]:
    """Return the differences of one folder, read under its lock. Codes: R425 to R429, and those of a spec.

    ``this_machine`` takes this machine's hardware if a spec leaves it open; ``known`` keeps predictions for later
    folders; the files that were made again are added to ``all_made``, with their number of processes.
    """
    folder = recorded.folder_of(find.head(folder)[0], folder)
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
            message = f"the head of `{os.path.join(folder, name)}` does not hold the command that compiles it again"
            return [Diagnostic("R427", message, span, (str(error),), ("compile the spec again",))]
        if not os.path.exists(request.spec):
            return [
                *drift.untouched(folder, document, (f"run `{command}`",)),
                _missing_spec(folder, name, request.spec),
            ]
        loaded = inputs.load(request)
        if loaded.settings is None:
            return [*_by_digest(folder, document, request.spec, command), *_errors(loaded.diagnostics)]
        reached = compiling.reached(loaded)
        if not (this_machine or request.facts) and request.target == "local" and facts.needs_machine(loaded.settings):
            return [*_by_digest(folder, document, request.spec, command, reached), _machine(folder)]
        elsewhere = _other_folder(folder, loaded, request)
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


def _missing_spec(folder: str, name: str, spec: str) -> Diagnostic:
    text = (emit.on_disk(folder, name) or b"").decode("utf-8", errors="replace")
    path = os.path.join(folder, name)
    span = Span(Source(path, text), 1, 1, 1, max(2, len(text.split("\n", 1)[0]) + 1))
    message = f"`{path}` was compiled from `{spec}`, which does not exist any more"
    return Diagnostic("R427", message, span, helps=("delete the folder, or restore the spec",))


def _other_folder(folder: str, loaded: inputs.Loaded, request: CompileRequest) -> Diagnostic | None:
    """Return a finding if the spec compiles into another folder now. Code: R427."""
    assert loaded.settings is not None
    node = loaded.settings["experiment_name"]
    now = os.path.join(loaded.folder, "compiled", str(node.value), request.target)
    if request.output or os.path.realpath(now) == os.path.realpath(folder):
        return None
    message = f"`{folder}` is left over: `{request.spec}` compiles into `{os.path.normpath(now)}` now"
    return Diagnostic("R427", message, node.span, helps=("delete the old folder, or move it there and compile again",))


def _by_digest(
    folder: str, document: Document | None, spec: str, command: str, reached: Mapping[str, Any] | None = None
) -> Iterator[Diagnostic]:
    """Compare the recorded digests, if the files cannot be compiled again; own code only if ``reached`` is given."""
    base, now = os.path.dirname(spec), drift.records(document) if reached is None else reached
    return drift.by_digest(folder, document, base, (f"run `{command}`",), now)


def _machine(folder: str) -> Diagnostic:
    message = f"`{folder}` depends on the machine of its compilation: only its digests were checked"
    note = "the spec leaves hardware open, and no facts file is recorded"
    helps = ("name `resources.cpus` and the card in the spec, or compile with `--facts`, or use `--this-machine`",)
    return Diagnostic("R429", message, None, (note,), helps, Severity.WARNING)


def _mixed(folder: str, made: Sequence[Artifact]) -> list[str]:
    """Return files with ratc's head that belong to another target than this folder's."""
    names = {artifact.path for artifact in made}
    return [name for name in targets.NAMES if name not in names and find.marked(folder, name)]
