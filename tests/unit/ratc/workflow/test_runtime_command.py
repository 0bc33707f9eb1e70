"""`ratc predict` and `ratc evaluate` pass their arguments to the commands of the runtime."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ratc.cli import main

PYTHON = """\
#!{python}
import json, os, sys
json.dump(sys.argv[1:], open(os.environ["SAID"], "w"))
if "--signal" in sys.argv: os.kill(os.getpid(), 9)
sys.exit(3 if "--fail" in sys.argv else 0)
"""


@pytest.fixture
def arguments_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a Python of the user's writes the words that it is called with."""
    interpreter = tmp_path / "my python"
    interpreter.write_text(PYTHON.format(python=sys.executable))
    interpreter.chmod(0o755)
    monkeypatch.setenv("RATC_PYTHON", str(interpreter))
    monkeypatch.setenv("SAID", str(tmp_path / "said.json"))
    return tmp_path / "said.json"


@pytest.mark.parametrize("name", ["predict", "evaluate"])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["outputs/a b", "images", "-o", "masks", "--threshold", "0.3"],) * 2,
        (["out", "--trust", "--device=cpu"],) * 2,
        (["--", "--help"], ["--help"]),
        (["--", "-odd", "--dry-run"], ["-odd", "--dry-run"]),
        (["out", "$(touch ran)", ""],) * 2,
    ],
)
def test_all_arguments_are_passed_to_the_runtime(
    arguments_file: Path, name: str, given: list[str], words: list[str]
) -> None:
    assert main([name, *given]) == 0
    assert json.loads(arguments_file.read_text()) == ["-m", "ratc_runtime", name, *words]


@pytest.mark.parametrize(("option", "status"), [("--fail", 3), ("--signal", 137)])
def test_exit_status_is_that_of_the_runtime(arguments_file: Path, option: str, status: int) -> None:
    assert main(["predict", "out", option]) == status


def test_dry_run_starts_no_process(arguments_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "out", "--split", "val", "--dry-run"]) == 0
    assert "ratc_runtime evaluate out --split val" in capsys.readouterr().err
    assert not arguments_file.exists()


def test_missing_python_is_reported(
    arguments_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATC_PYTHON", "/nowhere/python")
    assert main(["predict", "out"]) == 2
    assert "cannot start `/nowhere/python`: No such file or directory" in capsys.readouterr().err


def test_real_runtime_reports_its_finding(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RATC_PYTHON", raising=False)
    assert main(["predict", "nowhere", "images", "-o", "masks"]) == 1
    assert "error[R508]" in capfd.readouterr().err
