"""Entrypoint text in the scripts of every target: arguments, names and variables arrive, and none is run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratc.cli import main
from ratc.yaml.write import mapping
from tests.effort import examples
from tests.helpers import jobs
from tests.helpers.script_jobs import CLUSTERS, Job
from tests.places import ROOT
from tests.security.test_hostile_values import DASHES, PLAIN

#: Writes its arguments and its environment, whatever it is called.
NOTE = """\
#!{python}
import json, os, sys
with open(os.environ["NOTES"] + "/told", "w") as file:
    json.dump([sys.argv[1:], dict(os.environ)], file)
"""
#: In place of `python3`: this one, with the runtime.
PYTHON = '#!/bin/sh\nPYTHONPATH="{runtime}" exec "{python}" "$@"\n'
TARGETS = ["local", "slurm", "lsf"]
VALUES = [*PLAIN, *DASHES, "--", "-c", "{}", "", "$$", "${{", "\\\n"]


def run(folder: Path, target: str, entrypoint: dict[str, Any], variables: dict[str, str]) -> tuple[list[str], Any]:
    """Compile, and run the script with the program that notes; returns its arguments and its environment."""
    resources: dict[str, Any] = {"num_gpus": 0, "cpus": 1, "memory": "2GB", "walltime": "00:10"}
    if target == "local":
        resources = {"num_gpus": 0}
    else:
        resources["cluster"] = str(CLUSTERS[target])
    spec = {
        "experiment_name": "demo",
        "entrypoint": entrypoint,
        "training": {"batch_size": 2},
        "resources": resources,
        "environment": {"variables": variables},
    }
    (folder / "spec.yaml").write_text(mapping(spec))
    jobs.compiled(folder, target)
    job = Job(folder, target)
    job.stub("python3", PYTHON.format(runtime=ROOT / "runtime", python=sys.executable))
    done = job.run()
    assert done.returncode == 0, done.stderr + done.stdout
    assert not list(folder.rglob("pwned"))
    args, environment = json.loads((job.notes / "told").read_text())
    return args, environment


def escaped(values: list[str]) -> list[str]:
    return [value.replace("$", "$$") for value in values]


def program(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(NOTE.format(python=sys.executable))
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("target", TARGETS)
def test_arguments_and_variables_reach_the_program_unchanged(target: str, tmp_path: Path) -> None:
    program(tmp_path / "a", "note.py")
    program(tmp_path / "b", "note")
    variables = {f"VALUE_{number}": value for number, value in enumerate(VALUES)}
    script = {"script": "note.py", "args": escaped(VALUES)}
    words = [value for value in VALUES if value]
    command = {"command": ["./note", *escaped(words)], "args": ["x"]}
    for folder, entrypoint, wanted in (("a", script, VALUES), ("b", command, [*words, "x"])):
        args, environment = run(tmp_path / folder, target, entrypoint, variables)
        assert args == wanted
        assert {name: environment[name] for name in variables} == variables


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VALUES if name and "${" not in name and "/" not in name])
def test_a_script_of_any_name_runs(name: str, tmp_path: Path) -> None:
    """On every target the lock alone names it."""
    folder = tmp_path / "folder"
    program(folder, name)
    assert run(folder, "local", {"script": name, "args": ["a"]}, {})[0] == ["a"]


@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12), max_size=5)
)
@pytest.mark.parametrize("target", TARGETS)
def test_any_arguments_reach_the_program_unchanged(
    target: str, values: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    program(folder, "note.py")
    assert run(folder, target, {"script": "note.py", "args": escaped(values)}, {})[0] == values


@pytest.mark.parametrize("module", ["-c", "a b", "a;b", "$(touch pwned)", "..a", "a/b", "", "a\nb", "née", "a.py:main"])
def test_an_entrypoint_module_with_an_invalid_name_is_refused(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(mapping({"experiment_name": "demo", "entrypoint": {"module": module}}))
    assert main(["compile", "spec.yaml"]) == 1
    said = capsys.readouterr().err
    assert "spec.yaml:3:" in said
    assert "`entrypoint.module`" in said
