"""The hook for pre-commit: pre-commit itself installs ratc from a repository and runs it before a commit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.repositories import GIT, SPEC, commit_all, compile_spec, git
from tests.places import ROOT


def ratc_as_it_is(folder: Path) -> str:
    """A repository of the files that git knows in this checkout, as they are now; its commit."""
    for name in git(ROOT, "ls-files", "-z").split("\0"):
        if name and (ROOT / name).exists():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target, follow_symlinks=False)
    return commit_all(folder)


def config_of_the_guide(repository: Path, version: str) -> str:
    guide = (ROOT / "docs/guides/check.md").read_text()
    (block,) = re.findall(r"```yaml\n(repos:\n.*?)```", guide, re.DOTALL)
    return re.sub(r"https://\S+", repository.as_uri(), block).replace("VERSION", version)


@pytest.mark.slow
def test_the_hook_of_the_guide_finds_files_that_do_not_match(tmp_path: Path) -> None:
    ratc, mine = tmp_path / "ratc", tmp_path / "mine"
    mine.mkdir()
    (mine / ".pre-commit-config.yaml").write_text(config_of_the_guide(ratc, ratc_as_it_is(ratc)))
    (mine / "config.yaml").write_text(SPEC)
    compile_spec(mine)
    commit_all(mine)
    environment = {**os.environ, "PRE_COMMIT_HOME": str(tmp_path / "hooks")}
    subprocess.run([sys.executable, "-m", "pre_commit", "install"], cwd=mine, env=environment, check=True)

    def commit(what: str) -> tuple[int, str]:
        words = [*GIT, "commit", "-q", "-am", what]
        done = subprocess.run(words, cwd=mine, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    (mine / "config.yaml").write_text(SPEC.replace(" batch_size: 2", " batch_size: 4"))
    status, said = commit("drift")
    assert status == 1, said
    assert "R425" in said
    compile_spec(mine)
    status, said = commit("compiled again")
    assert status == 0, said
    (mine / "notes.txt").write_text("nothing of ratc's\n")
    git(mine, "add", "notes.txt")
    status, said = commit("another file")
    assert status == 0, said
    assert "Skipped" in said
