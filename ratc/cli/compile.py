"""Work out how to train what a spec describes, and write it down: lock.yaml, the launcher's files, the job script.

They go into compiled/<experiment_name>/<target>/ beside the spec; -o puts them elsewhere.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from ratc import emit
from ratc.cli import inputs
from ratc.cli.inputs import Loaded
from ratc.compiler import File
from ratc.consumers import reread
from ratc.diagnostics import Diagnostic, has_errors
from ratc.document import MAX_BYTES, parse
from ratc.plan import Plan
from ratc.shell import quote
from ratc.targets import TARGETS, accelerate, deepspeed, local, lock
from ratc.targets.artifact import Place, digest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc compile``."""
    inputs.add_spec_arguments(parser)
    parser.add_argument("-o", "--output", metavar="DIR", help="folder of the artifacts")
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit status 1 if the files there are not what the spec gives",
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 1 on errors, and on differences with ``--check``."""
    status, folder = compile_spec(args, args.target, args.output, args.check)
    if status == 0 and not args.check:
        print(os.path.relpath(folder))
    return status


def compile_spec(args: argparse.Namespace, target: str, output: str | None, check: bool) -> tuple[int, str]:
    """Compile and write (or compare); returns the exit status and the folder of the artifacts."""
    refused = inputs.known_target(target)
    if refused:
        inputs.show(refused, "ratc compile")
        return 1, ""
    loaded = inputs.load(args, target)
    found = list(loaded.diagnostics)
    if loaded.settings is None:
        inputs.show(found, "ratc compile")
        return 1, ""
    plan, diagnostics, facts_file = inputs.resolve(args, loaded.settings, target)
    found += diagnostics
    if plan is None:
        inputs.show(found, "ratc compile")
        return 1, ""
    folder = output or os.path.join(loaded.folder, "compiled", plan.values.get_as(str, "experiment_name"), target)
    found += _emit(args, loaded, plan, facts_file, target, folder, check)
    return (1 if inputs.show(found, "ratc compile") else 0), folder


def _emit(
    args: argparse.Namespace,
    loaded: Loaded,
    plan: Plan,
    facts_file: File | None,
    target: str,
    folder: str,
    check: bool,
) -> tuple[Diagnostic, ...]:
    place = _place(loaded, facts_file, target, folder, args.output is not None if hasattr(args, "output") else False)
    artifacts, found = TARGETS[target](plan, place)
    if artifacts is None:
        return found
    if check:
        remove = emit.stale(folder, artifacts, _former(folder))
        again = shlex.join(["ratc", "compile", args.spec, "--target", target])
        return (*found, *emit.differences(folder, artifacts, remove, again))
    # What lies there unchanged was read by its consumer when it was written.
    refused = reread(emit.changed(folder, artifacts), plan.values.get_as(int, "parallel.world_size"))
    if has_errors(refused):
        return (*found, *refused)
    written, problems = emit.write(folder, artifacts, lambda: _former(folder))
    if not problems:
        print(f"written: {', '.join(written) or 'nothing: all is as it was'}", file=sys.stderr)
    return (*found, *problems)


def _place(loaded: Loaded, facts_file: File | None, target: str, folder: str, elsewhere: bool) -> Place:
    up, down = os.path.relpath(loaded.folder, folder), os.path.relpath(folder, loaded.folder)
    spec = loaded.inputs.spec
    command = ["ratc", "compile", f"{up}/{os.path.basename(spec.name)}", "--target", target]
    if facts_file:
        command += ["--facts", os.path.relpath(facts_file.name, folder)]
    for override in loaded.inputs.overrides:
        assert loaded.settings is not None
        value = loaded.settings[override.path].value if override.path in loaded.settings else override.text
        command += ["--set", f"{override.path}={_as_yaml(value)}"]
    if elsewhere:
        command += ["-o", "."]
    files = [spec, *loaded.inputs.overlays, *([facts_file] if facts_file else [])]
    digests = {os.path.relpath(file.name, loaded.folder): digest(file.data) for file in files}
    return Place(up, down, os.path.basename(spec.name), " ".join(map(quote, command)), digests)


def _as_yaml(value: object) -> str:
    from ratc.yaml_text import scalar

    return value if isinstance(value, str) else scalar(value)


def _former(folder: str) -> list[str]:
    """The artifacts that the lock lying in the folder vouches for."""
    try:
        with open(os.path.join(folder, lock.NAME), "rb") as file:
            document, _ = parse(lock.NAME, file.read(MAX_BYTES + 1))
    except OSError:
        return []
    artifacts = document.root.find(("artifacts",)) if document else None
    named = artifacts.value if artifacts and isinstance(artifacts.value, dict) else {}
    return [name for name in (deepspeed.NAME, accelerate.NAME, local.NAME) if name in named]
