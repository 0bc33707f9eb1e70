"""What the tests of real jobs share: a small project whose steps can be slowed down, and what a run leaves behind."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.effort import HANGS_S
from tests.helpers.lockfile import write_data
from tests.helpers.waiting import wait_until
from tests.places import ROOT

#: Artifacts by target and spec, in a file's bytes each. They hold no path of their folder, so a copy is as good.
_COMPILED: dict[tuple[str, str], dict[str, bytes]] = {}

SLOW = """\
import os, time
from ratc_runtime.data.isic import IsicSegmentation

class Slow(IsicSegmentation):
    "Takes as many seconds a sample as the file `slow` in the output folder says, until the run has stopped once."
    def __getitem__(self, index):
        out = os.environ["RAT_OUTPUT_DIR"]
        if os.path.exists(f"{out}/slow") and not os.path.exists(f"{out}/results.json"):
            time.sleep(float(open(f"{out}/slow").read()))
        return super().__getitem__(index)

def open_slow(data_dir, split):
    return Slow(data_dir, split, (32, 32), 1)
"""
SPEC = {
    "experiment_name": "demo",
    "model": {
        "feature_dims": 16,
        "num_blocks": 1,
        "num_heads": 2,
        "iters": 1,
        "sga_kernel_size": 5,
        "stride": 4,
        "multi_scale": False,
    },
    "training": {"epochs": 3, "target_batch_size": 8, "learning_rate": 3e-3, "deepspeed": False},
    "data": {"dataset": "mine:open_slow", "data_dir": "data", "image_size": 32, "channels": 1},
    "logging": {"backend": "none", "use_mlflow": False},
    "resources": {"num_gpus": 0, "cpus": 1, "walltime": "00:10", "memory": "2GB"},
    "checkpoint": {"stop_before_seconds": 60},
}


def spec(**changes: Any) -> dict[str, Any]:
    """The small spec with changes: `resources__nodes=2` sets `resources.nodes`."""
    content: dict[str, Any] = json.loads(json.dumps(SPEC))
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        target = content
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return content


def write_project(folder: Path, content: Mapping[str, Any], slow: float | None = None, point: str = "") -> Path:
    """A spec's folder with data and its own data set; `slow` is what a sample takes in seconds, in a point if named."""
    folder.mkdir(parents=True)
    write_data(folder / "data", train=24)
    (folder / "mine.py").write_text(SLOW)
    (folder / "spec.yaml").write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True))
    if slow is not None:
        (folder / "outputs/demo" / point).mkdir(parents=True)
        (folder / "outputs/demo" / point / "slow").write_text(str(slow))
    return folder


def ratc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ratc in a folder, as a user would there."""
    command = [sys.executable, "-m", "ratc", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGS_S)


def compiled(folder: Path, target: str) -> Path:
    """Compile a folder's spec and return the folder of the artifacts; the same spec is compiled once in a session."""
    job, known = folder / "job", (target, (folder / "spec.yaml").read_text())
    if known not in _COMPILED:
        done = ratc(folder, "compile", "spec.yaml", "--target", target, "-o", "job")
        assert done.returncode == 0, done.stderr
        files = [path for path in job.rglob("*") if path.is_file()]
        _COMPILED[known] = {str(path.relative_to(job)): path.read_bytes() for path in files}
    for name, content in _COMPILED[known].items():
        (job / name).parent.mkdir(parents=True, exist_ok=True)
        (job / name).write_bytes(content)
    return job


def needs(package: str) -> None:
    """Skip the test unless a package is installed. It is not imported: here it might find no torchvision."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def for_jobs() -> dict[str, str]:
    """The variables that make a job use this Python and this runtime."""
    return {"RATC_PYTHON": sys.executable, "PYTHONPATH": str(ROOT / "runtime")}


def results(folder: Path, point: str = "") -> dict[str, Any]:
    """results.json of the run in a project's folder, or of a point of its sweep."""
    content: dict[str, Any] = json.loads((folder / "outputs/demo" / point / "results.json").read_text())
    return content


def losses(folder: Path) -> list[float]:
    """Training and validation loss of every epoch, in order."""
    return [epoch[key] for epoch in results(folder)["epochs"] for key in ("train_loss", "val_loss")]


def assert_whole(checkpoint: Path, epochs: int) -> None:
    """Assert that a checkpoint can be read, and is of a run that had done so many epochs."""
    import torch

    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    assert content["progress"]["epoch"] >= epochs


def rank_processes(**variables: str) -> dict[int, int]:
    """The process numbers of a job's ranks, which are on this machine, by rank; found by their environment."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"ratc_runtime.train" not in (path / "cmdline").read_bytes():
                continue
            pairs = (path / "environ").read_text(errors="replace").split("\0")
        except OSError:
            continue  # it has ended
        environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if "RANK" in environment and variables.items() <= environment.items():
            found[int(environment["RANK"])] = int(path.name)
    return found


def as_soon_as(true: Callable[[Path], object], actions: Mapping[Path, Callable[[], object]]) -> None:
    """Do for every folder what is to be done once something is true of it, in the order in which that happens."""
    waiting = dict(actions)

    def none_waits() -> bool:
        for folder in [folder for folder in waiting if true(folder)]:
            waiting.pop(folder)()
        return not waiting

    wait_until(none_waits, f"{true.__name__} for {', '.join(folder.name for folder in actions)}")
