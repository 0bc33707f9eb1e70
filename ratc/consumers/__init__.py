"""Lets the consumers of artifacts read them.

`reread` runs in every compilation, and starts no process: two YAML readers must agree. `read_shell` has bash read the
lines of shell that a spec has, if any, without running them; that the scripts around them are right is for the tests.
`verify` has Accelerate and DeepSpeed read their files, in a process of each: their import takes seconds, and the
compiler imports neither. Their parsers are necessary and not enough (both let some mistakes pass), so ratc emits known
keys only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import yaml

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Value
from ratc.targets.artifact import Artifact
from ratc.yaml.parse import parse

#: The packages that read artifacts, each in a process of its own.
PACKAGES = ("accelerate", "deepspeed")
#: Seconds for a process, more only if it hangs: on a busy machine or a network file system an import takes minutes.
LIMIT_S = 900
#: A line that switches bash's patterns `!(a|b)` on or off, outside of a comment.
_EXTGLOB = re.compile(r"^[^#]*\bshopt\s+(?:-\w+\s+)*-\w*(?P<state>[su])\w*\s[^#;&|]*\bextglob\b")
#: Lines before the first one that bash cannot read, at which the text is cut.
_CUTS = 20
_FOLDER = os.path.dirname(os.path.abspath(__file__))


def reread(artifacts: Sequence[Artifact]) -> tuple[Diagnostic, ...]:
    """Return the problems that are found without importing a package. Code: R402."""
    return tuple(_refused(artifact, artifact.path, said) for artifact in artifacts if (said := _problem(artifact)))


def read_shell(lines: Value) -> tuple[Diagnostic, ...]:
    """Return what keeps the lines of `environment.setup` from being whole commands: a quote, a block or a here-document
    that is left open would swallow lines of the script behind them. Code: R407, a warning if there is no bash to ask.
    """
    text = "".join(f"{line}\n" for line in lines.value or ())
    if not text.strip():
        return ()
    if shutil.which("bash") is None:
        message = "the lines of `environment.setup` are not checked: this machine has no bash"
        return (Diagnostic("R407", message, lines.span, severity=Severity.WARNING),)
    problem = _problem_of_shell(text)
    if not problem or _is_read_with_patterns(text.splitlines(keepends=True), problem):
        return ()
    message = "the lines of `environment.setup` are not whole commands: bash cannot read them by themselves"
    helps = ("close what they open: quotes, brackets, blocks and here-documents may go over several lines of the list",)
    return (Diagnostic("R407", message, lines.span, (problem,), helps),)


def _is_read_with_patterns(lines: Sequence[str], problem: str) -> bool:
    """Whether bash reads the lines if those of them that switch its patterns on have run.

    It runs none of them here. In the script it runs each command before it reads the next one. So the first line that
    it cannot read has to come after whole commands, of which the last such line switches the patterns on.
    """
    refused = re.search(r"line (\d+):", problem)
    end = min(int(refused[1]), len(lines)) if refused else 0
    states = [
        (number, match["state"]) for number, line in enumerate(lines[: end - 1], 1) if (match := _EXTGLOB.search(line))
    ]
    if not states or states[-1][1] == "u":
        return False
    # The line may be inside a block that began before it.
    return any(
        not _problem_of_shell("".join(lines[:cut])) and not _problem_of_shell("".join(lines[cut:]), patterns=True)
        for cut in range(end - 1, max(states[-1][0], end - _CUTS) - 1, -1)
    )


def _problem_of_shell(text: str, patterns: bool = False) -> str:
    """Return bash's first complaint about a text; of an open here-document it only warns."""
    # No variable of the user's may add words of its own.
    plain = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    options = ["-O", "extglob"] if patterns else []
    try:
        done = subprocess.run(
            ["bash", *options, "-n"],
            input=text.encode("utf-8", "surrogateescape"),
            capture_output=True,
            env=plain,
            timeout=LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bash: {error}"
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return said[0] if said else "" if done.returncode == 0 else "it gave no reason"


def verify(artifacts: Sequence[tuple[str, Artifact, int]]) -> tuple[Diagnostic, ...]:
    """Return the artifacts that Accelerate or DeepSpeed refuse. Each comes as (path for people, artifact, processes).

    Codes: R402, which is a fault of ratc or of a version that it does not know; R441 if a package is not installed.
    """
    of = {name: [one for one in artifacts if one[1].consumer == name] for name in PACKAGES}
    missing = [name for name in PACKAGES if of[name] and find_spec(name) is None]
    asked = [name for name in PACKAGES if of[name] and name not in missing]
    from concurrent.futures import ThreadPoolExecutor  # takes longer to import than `reread` to run

    with ThreadPoolExecutor() as both:
        pairs = {name: list(dict.fromkeys((artifact.text, world) for _, artifact, world in of[name])) for name in asked}
        answers = [both.submit(ask, name, pairs[name]) for name in asked]
        said = {(name, *pair): words for name, answer in zip(asked, answers, strict=True)
                for pair, words in answer.result().items()}  # fmt: skip
    found = [
        _refused(artifact, path, words)
        for name in asked
        for path, artifact, world in of[name]
        if (words := said[(name, artifact.text, world)])
    ]
    return (*found, *(_not_asked(name, of[name][0][0]) for name in missing))


def _refused(artifact: Artifact, path: str, said: str) -> Diagnostic:
    message = f"{artifact.consumer} cannot read the `{path}` that ratc made for it"
    helps = ("nothing was written; the cause is a bug of ratc, or a version of that package that ratc does not know",)
    return Diagnostic("R402", message, notes=(said,), helps=helps)


def _not_asked(package: str, path: str) -> Diagnostic:
    message = f"`{path}` is not verified: {package} is not installed here"
    helps = ("install the runtime to verify it: `pip install 'ratc[runtime]'`",)
    return Diagnostic("R441", message, helps=helps, severity=Severity.WARNING)


def _problem(artifact: Artifact) -> str:
    """Return the problem that is found without importing a package; empty if there is none."""
    if artifact.consumer in ("yaml", "accelerate"):
        return _yaml_problem(artifact)
    if artifact.consumer == "deepspeed":
        json.loads(artifact.text)
    elif artifact.consumer not in ("bash", "text"):
        raise ValueError(f"no consumer is called {artifact.consumer}")
    return ""


def _yaml_problem(artifact: Artifact) -> str:
    """Readers of YAML 1.1 and 1.2 must agree on every value."""
    try:
        old = yaml.load(artifact.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        return " ".join(str(error).split())
    new, found = parse(artifact.path, artifact.text.encode())
    if new is None:
        return found[0].message
    return "" if new.root.data() == old else "YAML 1.1 and 1.2 readers disagree about a value"


def ask(package: str, given: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Return an installed package's complaint about each text at a world size, "" if it has none, from one process."""
    reader = os.path.join(_FOLDER, f"read_{package}.py")
    output, problem = _run([sys.executable, reader], json.dumps(list(given)))
    if problem:
        return dict.fromkeys(given, problem)
    # Output of a package's import precedes the answer.
    return dict(zip(given, json.loads(output.splitlines()[-1]), strict=True))


def _run(command: list[str], text: str) -> tuple[str, str]:
    """Return the standard output of a process, and its complaint on the input; empty if it accepts it."""
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONUTF8": "1"},
            timeout=LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{command[0]}: {error}"
    said = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
    return done.stdout, "" if done.returncode == 0 else said
