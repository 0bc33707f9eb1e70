"""A spec in a file, and ratc called on it in this process or in one of its own."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import yaml

from tests.effort import HANGS_S
from tests.places import ROOT

SPEC = """\
experiment_name: demo
training: {batch_size: 2}
data: {data_dir: data}
resources: {num_gpus: 0, cpus: 4}
"""
IS_ROOT = os.geteuid() == 0


def write(name: str, data: str | bytes) -> str:
    Path(name).write_bytes(data.encode() if isinstance(data, str) else data)
    return name


def shell(*arguments: str, **options) -> subprocess.CompletedProcess:
    """Runs ratc as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-m", "ratc", *arguments]
    return subprocess.run(command, env=environment, timeout=HANGS_S, check=False, **options)


def digests(folder: str = "out") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


def assert_consistent(folder: str = "out") -> None:
    """The lock names exactly what lies beside it, by its digests."""
    found = digests(folder)
    lock = yaml.safe_load(Path(folder, "lock.yaml").read_text())
    assert lock["artifacts"] == {name: f"sha256:{value}" for name, value in found.items() if name != "lock.yaml"}
