"""The code of a run: commit and state of the spec's git repository, and of those of own modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ratc_runtime.config.lock import Lock

#: Time limit of git in seconds. On a slow file system the state is then unknown.
PATIENCE = 5.0


def _git(folder: Path, *arguments: str) -> str | None:
    # Variables of a hook or a worktree command would have git look elsewhere.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command,
            env={**environment, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def of_folder(folder: Path, file: Path | None = None) -> dict[str, Any] | None:
    """Return commit, branch and whether tracked files differ from the commit; None outside of a repository.

    A `file` that git does not track makes it dirty too, because no commit holds it. `dirty` is None if git fails.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    dirty = None if changed is None else bool(changed)
    if file is not None and _git(folder, "ls-files", "--error-unmatch", "--", str(file)) is None:
        dirty = True
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    return {"commit": commit, "branch": branch if branch != "HEAD" else None, "dirty": dirty}


def of_run(lock: Lock, spec_folder: Path) -> dict[str, dict[str, Any]]:
    """Return the state of the spec's folder as `spec`, and of each imported own module by its name."""
    found = {"spec": of_folder(spec_folder)}
    parts = [part for task in (lock.tasks or {}).values() for part in (task.data.dataset, task.loss.name)]
    for name in (lock.model.name, lock.data.dataset, lock.training.loss.name, *parts):
        module = sys.modules.get(name.partition(":")[0]) if ":" in name else None
        file = getattr(module, "__file__", None)
        # An installed module has a version, not a commit.
        if module is not None and file and "site-packages" not in file:
            path = Path(file).resolve()
            found[module.__name__] = of_folder(path.parent, path)
    return {name: state for name, state in found.items() if state is not None}


def tags(sources: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the states as tags: `git.commit` for the spec, `git.<module>.commit` for modules."""
    named: dict[str, str] = {}
    for name, state in sources.items():
        prefix = "git." if name == "spec" else f"git.{name}."
        named |= {
            prefix + key: str(value).lower() if key == "dirty" else value
            for key, value in state.items()
            if value is not None
        }
    if "spec" in sources:
        named["mlflow.source.git.commit"] = sources["spec"]["commit"]
    return named
