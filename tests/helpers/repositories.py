"""Git repositories of somebody who keeps a spec with its compiled files."""

import subprocess
import sys
from pathlib import Path

SPEC = """\
experiment_name: demo
data: {data_dir: data}
training: {target_batch_size: 8, batch_size: 2}
resources: {num_gpus: 0, cpus: 2}
"""
#: What `git` is called with, so that it needs no settings of the user's.
GIT = ("git", "-c", "user.email=a@b", "-c", "user.name=a", "-c", "commit.gpgsign=false")


def git(folder: Path, *words: str) -> str:
    """What `git WORDS` prints in ``folder``."""
    return subprocess.run([*GIT, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def commit_all(folder: Path, message: str = "base") -> str:
    """Make a repository of the files in ``folder``; the hash of its first commit."""
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)
    return git(folder, "rev-parse", "HEAD").strip()


def compile_spec(folder: Path, name: str = "config.yaml") -> None:
    """Write the compiled files of the spec ``name`` in ``folder``."""
    command = [sys.executable, "-m", "ratc", "compile", name, "--target", "local", "--no-predict"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
