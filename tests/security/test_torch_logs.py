"""Processes that ratc starts to look at something do not read what torch shall log."""

from typing import Any

import pytest

from ratc.cli import main


def test_data_check_does_not_read_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_tracing_does_not_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from ratc.tracing import child_process

    monkeypatch.setenv("TORCH_LOGS", "bad")
    work = type("Work", (), {"variables": {}, "gpu": False})()
    assert "TORCH_LOGS" not in child_process._environment(work, "runtime")
