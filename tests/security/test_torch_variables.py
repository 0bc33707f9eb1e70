"""TORCH_LOGS: commands that only inspect ignore it; training refuses names that torch does not know."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ratc.cli import main
from tests.effort import HANGS_S

ROOT = Path(__file__).parents[2]


def test_data_check_ignores_an_invalid_torch_logs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_LOGS", "bad")
    (tmp_path / "config.yaml").write_text("experiment_name: demo\ndata: {data_dir: data}\nresources: {num_gpus: 0}\n")
    given: list[dict[str, str]] = []

    def run(command: Any, env: dict[str, str], **_: Any) -> Any:
        given.append(env)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("ratc.workflow.check_data.subprocess.run", run)
    assert main(["data", "check", "config.yaml"]) == 0
    assert [name for env in given for name in env if name == "TORCH_LOGS"] == []
    assert given


def test_tracing_ignores_an_invalid_torch_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    from ratc.tracing import child_process

    monkeypatch.setenv("TORCH_LOGS", "bad")
    work = type("Work", (), {"variables": {}, "gpu": False})()
    assert "TORCH_LOGS" not in child_process._environment(work, "runtime")


#: They are started like `train`; each takes two imports of torch.
LIKE_TRAIN = [pytest.param(name, marks=pytest.mark.slow(every=True)) for name in ("data.check", "extras.range_test")]


@pytest.mark.parametrize("name", ["train", "preflight", "commands.predict", *LIKE_TRAIN])
def test_a_runtime_module_refuses_an_invalid_torch_logs(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"ratc_runtime.{name}", "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime"), "TORCH_LOGS": "bad"},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error[R587]"), done.stderr
    assert "Traceback" not in done.stderr
