"""Has every artifact read by who will read it, before it is written.

Accelerate and DeepSpeed are asked in a process of their own, and only where they are installed: the compiler imports
neither. Their parsers are necessary and not enough (both let some mistakes pass): what ratc emits keeps to known keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import yaml

from ratc import cache_folder
from ratc.diagnostics import Diagnostic
from ratc.targets.artifact import Artifact
from ratc.yaml.parse import parse

#: Who is asked, in a process of its own.
PACKAGES = ("accelerate", "deepspeed")
#: Accepted texts that are remembered; the oldest go first.
KEPT = 2000
#: Only what hangs takes longer: on a busy machine or a network file system an import alone takes minutes.
LIMIT_S = 900
_FOLDER = os.path.dirname(os.path.abspath(__file__))


def reread(artifacts: Sequence[Artifact], world_size: int) -> tuple[Diagnostic, ...]:
    """What the consumers refuse. Code: R402, which is a fault of ratc or of a version that it does not know."""
    with ThreadPoolExecutor() as both:
        answers = [
            both.submit(
                ask, package, [(artifact.text, world_size) for artifact in artifacts if artifact.consumer == package]
            )
            for package in PACKAGES
        ]
        asked = {text: problem for answer in answers for (text, _), problem in answer.result().items()}
    found = []
    for artifact in artifacts:
        problem = _problem(artifact) or asked.get(artifact.text, "")
        if problem:
            message = f"{artifact.consumer} refuses the `{artifact.path}` that was made for it"
            cause = "a fault of ratc, or a version of that package that it does not know"
            if artifact.consumer == "bash":
                cause = "a line of `environment.setup` that bash cannot read, or a fault of ratc"
            helps = (f"nothing was written; this is {cause}",)
            found.append(Diagnostic("R402", message, notes=(problem,), helps=helps))
    return tuple(found)


def _problem(artifact: Artifact) -> str:
    """What can be told without asking a package."""
    if artifact.consumer == "bash":
        return _run(["bash", "-n"], artifact.text)[1]
    if artifact.consumer in ("yaml", "accelerate"):
        return _yaml_problem(artifact)
    if artifact.consumer == "deepspeed":
        json.loads(artifact.text)
    elif artifact.consumer != "text":
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
    """Return a package's complaint about each text at a world size, "" if it has none. The result is empty if it is not
    installed.

    All are read in one process. What was accepted before, with the same versions of all packages, is not read again,
    because importing Accelerate takes seconds.
    """
    if not given or find_spec(package) is None:
        return {}
    reader = os.path.join(_FOLDER, f"read_{package}.py")
    # Each once: the points of an array often share theirs.
    accepted = {pair: os.path.join(cache_folder.folder("accepted"), _key(reader, *pair)) for pair in given}
    unknown = [pair for pair, path in accepted.items() if not os.path.exists(path)]
    if not unknown:
        return {}
    output, problem = _run([sys.executable, reader], json.dumps(unknown))
    if problem:
        return dict.fromkeys(unknown, problem)
    # What a package prints while it is imported stands before the answer.
    said = dict(zip(unknown, json.loads(output.splitlines()[-1]), strict=True))
    _keep([accepted[pair] for pair, problem in said.items() if not problem])
    return said


def _key(reader: str, text: str, world_size: int) -> str:
    """The digest of all that an answer depends on."""
    with open(reader, encoding="utf-8") as file:
        whole = [sys.version, cache_folder.packages(), file.read(), world_size, text]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _keep(paths: Sequence[str]) -> None:
    """Remember accepted texts, as empty files. If a file cannot be written, the text is read again next time."""
    for path in paths:
        cache_folder.keep(path, b"", KEPT)


def _run(command: list[str], text: str) -> tuple[str, str]:
    """What a process prints, and what it says against its input."""
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
