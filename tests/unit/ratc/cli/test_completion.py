"""The completion scripts of `ratc completion`, run in a real bash."""

import os
import subprocess
import sys

import pytest

from ratc.cli import COMMANDS, main
from ratc.workflow import codes
from tests.effort import HANGS_S
from tests.places import ROOT

#: Runs the function that the script registers, as bash does at a tab, and prints what it would offer.
ASK = """
eval "$(ratc completion bash)"
function=$(complete -p ratc); function=${function##*-F }; function=${function% ratc}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
compopt() { echo "files"; }
"$function" ratc
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def completions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bin")
    (folder / "ratc").write_text(f'#!/bin/sh\nexec {sys.executable} -m ratc "$@"\n')
    (folder / "ratc").chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}

    def run(*words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", ASK, "bash", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANGS_S,
            check=True,
        )
        assert done.stderr == ""
        return done.stdout.split()

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ratc", ""), list(COMMANDS)),
        (("ratc", "va"), ["validate"]),
        (("ratc", "data", ""), ["check"]),
        (("ratc", "validate", "spec.yaml", "--fi"), ["--fix"]),
        (("ratc", "tune", "l"), ["lr"]),
        (("ratc", "tune", "lr", "spec.yaml", "--lo"), ["--low"]),
        (("ratc", "compile", "--target", "s"), ["slurm"]),
        (("ratc", "compile", "--format", "ma"), ["markdown"]),
        (("ratc", "validate", ""), ["files"]),
        (("ratc", "compile", "spec.yaml", "--facts", "fac"), ["files"]),
        (("ratc", "explain", "R30"), [code for code in codes.names() if code.startswith("R30")]),
        (("ratc", "explain", "conf"), ["files"]),
    ],
)
def test_bash_completion_offers_commands_options_and_values(completions, words, expected):
    assert completions(*words) == expected


@pytest.mark.parametrize(("shell", "registers"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete ")])
def test_completion_script_of_each_shell_calls_ratc(capsys, shell, registers):
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert f"_RATC_COMPLETE={shell}_complete" in said
    assert registers in said


def test_completion_for_an_unknown_shell_exits_with_2(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "`tcsh` is not one of" in capsys.readouterr().err
