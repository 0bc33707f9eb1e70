"""The first task of docs/develop/three-tasks.md: a key is added to a copy of the sources with the page's two edits."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT

PAGE = ROOT / "docs" / "develop" / "three-tasks.md"
SPEC = 'experiment_name: demo\ndata: {data_dir: data}\nenvironment: {umask: "%s"}\n'


def run(copy: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (copy, copy / "runtime")))
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


def edits() -> str:
    [written] = re.findall(r"^```diff\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    return written


def test_the_two_edits_of_the_page_apply_to_the_sources():
    command = ["git", "apply", "--check", "--verbose", "-"]
    checked = subprocess.run(command, input=edits(), cwd=ROOT, capture_output=True, text=True)
    # git moves a hunk whose line number is old, and says so.
    assert (checked.returncode, "offset" in checked.stderr) == (0, False), f"write {PAGE.name} again: {checked.stderr}"


@pytest.mark.slow
def test_adding_a_key_of_the_script_needs_two_edits(tmp_path):
    copy, work = tmp_path / "copy", tmp_path / "work"
    for name in ("ratc", "runtime", "schemas", "templates", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (work / "data").mkdir(parents=True)
    for name, mask in (("old", "0022"), ("new", "0027")):
        (work / f"{name}.yaml").write_text(SPEC % mask)
    assert "R101" in run(copy, work, "-m", "ratc", "validate", "new.yaml").stderr

    assert re.findall(r"^\+\+\+ b/(.*)$", edits(), re.M) == ["ratc/spec/job.py", "templates/_environment.sh.j2"]
    subprocess.run(["git", "apply", "-"], input=edits(), cwd=copy, text=True, check=True)
    for arguments in (("-m", "ratc.spec.generate"), ("docs/generate.py",)):
        made = run(copy, copy, *arguments)
        assert made.returncode == 0, made.stderr

    compiled = run(copy, work, "-m", "ratc", "compile", "new.yaml", "--target", "local", "--no-predict", "-o", "out")
    assert compiled.returncode == 0, compiled.stderr
    assert "umask 0027" in (work / "out" / "run.sh").read_text().splitlines()
    told = run(copy, work, "-m", "ratc", "diff", "old.yaml", "new.yaml").stdout
    assert 'environment.umask: "0022" → "0027"  [placement]' in told
    assert "others may read more or less of what the run writes" in told
    assert "| `umask` |" in (copy / "docs" / "reference" / "spec.md").read_text()
    assert '"umask"' in run(copy, work, "-m", "ratc", "schema").stdout
