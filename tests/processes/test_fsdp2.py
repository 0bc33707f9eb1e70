"""FSDP2 on the CPU: killed under `accelerate launch`, and continued on as many processes, or by torch on others."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.lockfile import BASE, results, write_lock
from tests.places import CASES
from tests.processes.test_distributed import (
    ACCELERATE,
    NO_DROPOUT,
    TORCHRUN,
    accelerate_command,
    run,
    score_of_exported,
    two_processes,
)
from tests.processes.test_resume import slow_project, stop_midway

pytestmark = pytest.mark.slow


def write_sharded(project: Path, name: str, world: int, shards: int, accelerate: bool = True, **changes: Any) -> Path:
    """Write a lock for so many processes in groups of `shards`, beside the accelerate.yaml of a golden case."""
    golden = "fsdp2" if world == shards else "hsdp-two-nodes"
    launcher = yaml.safe_load((CASES / golden / "expected" / "accelerate.yaml").read_text())
    launcher |= {"num_processes": world, "num_machines": 1, "main_process_port": 0, "mixed_precision": "no"}
    launcher["fsdp_config"] |= {"fsdp_offload_params": False}
    if "parallelism_config" in launcher:
        launcher["parallelism_config"] = {
            "parallelism_config_dp_replicate_size": world // shards,
            "parallelism_config_dp_shard_size": shards,
        }
    return write_lock(
        project / name,
        {"accelerate.yaml": yaml.safe_dump(launcher)},
        engine={**BASE["engine"], "use_accelerate": accelerate},
        fsdp2={
            "shard": "full" if world == shards else "hybrid",
            "shard_size": shards,
            "wrap": None,
            "offload": False,
            "weights": "fp32",
        },
        parallel={**BASE["parallel"], "world_size": world, "processes_per_node": world},
        training__micro_batch_size=1,
        training__gradient_accumulation_steps=4 // world,
        checkpoint__every_steps=2,
        model__args=NO_DROPOUT,
        data__dataset="mine:open_slow",
        output_dir=f"out-{name}",
        **changes,
    )


def test_a_killed_fsdp2_run_continues_on_as_many_or_other_process_counts(tmp_path: Path) -> None:
    """Continued by as many processes, losses are the same to the last bit; by others within the order of sums."""
    slow_project(tmp_path)

    def kill(_: subprocess.Popen[str]) -> None:
        """Kill the launcher and its processes, which have groups of their own."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cwd").resolve() == tmp_path:
                    os.kill(int(process.name), signal.SIGKILL)

    lock = write_sharded(tmp_path, "two", 2, 2)
    killed = stop_midway(accelerate_command(lock), tmp_path, kill, "epoch 1/2  step 3/6")
    assert killed.returncode != 0
    (tmp_path / "slow").unlink()
    saved = tmp_path / "out-two/checkpoints"
    assert (saved / "epoch-0000-step-000002").is_dir()
    shutil.copytree(tmp_path / "out-two", tmp_path / "out-four", symlinks=True)
    whole = run(accelerate_command(write_sharded(tmp_path, "whole", 2, 2)), tmp_path)
    assert whole.returncode == 0, whole.stderr
    continued = run(accelerate_command(lock), tmp_path)
    assert continued.returncode == 0, continued.stderr
    assert "continuing after epoch 0, step 2" in continued.stdout
    expected = results(tmp_path / "out-whole")
    found = results(tmp_path / "out-two")
    assert found["test"] == expected["test"]
    for one, other in zip(found["epochs"], expected["epochs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    four = write_sharded(tmp_path, "four", 4, 2, accelerate=False)
    moved = run([*TORCHRUN[:-1], "4", "-m", "ratc_runtime.train", "--lock", str(four)], tmp_path)
    assert moved.returncode == 0, moved.stderr
    assert "continuing after epoch 0, step 2" in moved.stdout
    there = results(tmp_path / "out-four")
    for key in ("train_loss", "val_loss"):
        losses = [epoch[key] for epoch in expected["epochs"]]
        assert [epoch[key] for epoch in there["epochs"]] == pytest.approx(losses, rel=2e-5)
    score = score_of_exported(tmp_path / "out-four/checkpoints/best", tmp_path)
    assert score == pytest.approx(there["test"]["loss"], rel=1e-4)


def test_lion_updates_shards_as_it_updates_the_whole_tensor(tmp_path: Path) -> None:
    slow_project(tmp_path)
    (tmp_path / "slow").unlink()
    lion = {"training__optimizer": "lion", "training__betas": [0.9, 0.99], "training__learning_rate": 1e-4}
    whole = two_processes(
        tmp_path,
        "whole",
        {"use_accelerate": True},
        {"accelerate.yaml": ACCELERATE},
        training__gradient_accumulation_steps=2,
        data__dataset="mine:open_slow",
        **lion,
    )
    losses = []
    for name, lock in (("whole", whole), ("shards", write_sharded(tmp_path, "shards", 2, 2, **lion))):
        done = run(accelerate_command(lock), tmp_path)
        assert done.returncode == 0, done.stderr
        losses.append([epoch["train_loss"] for epoch in results(tmp_path / f"out-{name}")["epochs"]])
    # Signs of sums that are almost zero may differ.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] != losses[0][1]
