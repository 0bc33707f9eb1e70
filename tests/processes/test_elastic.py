"""An elastic lock on several process counts: killed on one and continued on others, with the same losses."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.lockfile import BASE, results, write_lock
from tests.places import CASES
from tests.processes.test_distributed import NO_DROPOUT, accelerate_command, run
from tests.processes.test_resume import slow_project, stop_midway

pytestmark = pytest.mark.slow

#: Global batch 4 on so many "nodes" of a process each.
ROWS = {"1": (2, 2), "2": (1, 2), "4": (1, 1)}


def write_elastic(project: Path, name: str, sharded: bool) -> Path:
    """Write an elastic lock for 1, 2 or 4 processes, DDP or FSDP2; its own values are those of 4."""
    launcher = yaml.safe_load((CASES / "fsdp2" / "expected" / "accelerate.yaml").read_text())
    launcher |= {"num_processes": 4, "num_machines": 1, "main_process_port": 0, "mixed_precision": "no"}
    launcher["fsdp_config"] |= {"fsdp_offload_params": False}
    shards: dict[str, Any] = {"shard": "full", "shard_size": 4, "wrap": None, "offload": False, "weights": "fp32"}
    none = {"prefetch_factor": None, "peak_allocated_bytes": None, "peak_reserved_bytes": None}
    rows = {
        nodes: {"world_size": int(nodes), "micro_batch_size": micro, "gradient_accumulation_steps": steps, **none}
        for nodes, (micro, steps) in ROWS.items()
        if not sharded or nodes != "1"
    }
    return write_lock(
        project / name,
        {"accelerate.yaml": yaml.safe_dump(launcher)} if sharded else {},
        engine={**BASE["engine"], "use_accelerate": sharded},
        parallel={**BASE["parallel"], "world_size": 4, "nodes": 4},
        elastic=rows,
        training__micro_batch_size=1,
        training__gradient_accumulation_steps=1,
        checkpoint__every_steps=2,
        model__args=NO_DROPOUT,
        data__dataset="mine:open_slow",
        output_dir=f"out-{name}",
        **({"fsdp2": shards} if sharded else {}),
    )


def command(lock: Path, processes: int, sharded: bool) -> list[str]:
    """What node.sh starts on so many processes."""
    if sharded:
        words = accelerate_command(lock)
        at = words.index("-m", 2)
        return [*words[:at], "--num_processes", str(processes), *words[at:]]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*torchrun, "-m", "ratc_runtime.train", "--lock", str(lock)]


def kill_all_in(folder: Path) -> None:
    """Kill the launcher and its processes, which have groups of their own."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").resolve() == folder:
                os.kill(int(process.name), signal.SIGKILL)


@pytest.mark.slow(every=True)
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_losses_of_an_elastic_run_do_not_depend_on_its_process_counts(sharded: bool, tmp_path: Path) -> None:
    slow_project(tmp_path)

    def kill(_: subprocess.Popen[str]) -> None:
        kill_all_in(tmp_path)

    lock = write_elastic(tmp_path, "moved", sharded)
    killed = stop_midway(command(lock, 4, sharded), tmp_path, kill, "epoch 1/2  step 3/6")
    assert killed.returncode != 0
    assert "global batch 4 = 1 x 1 x 4" in killed.stdout
    again = stop_midway(command(lock, 2, sharded), tmp_path, kill, "epoch 2/2  step ")
    assert "continuing after epoch 0, step 2" in again.stdout, again.stderr
    assert "global batch 4 = 1 x 2 x 2" in again.stdout
    (tmp_path / "slow").unlink()
    last = 4 if sharded else 1
    done = run(command(lock, last, sharded), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 1, step " in done.stdout
    found = results(tmp_path / "out-moved")
    assert [start["world_size"] for start in found["starts"]["last"]] == [4, 2, last]
    whole = run(command(write_elastic(tmp_path, "whole", sharded), 2, sharded), tmp_path)
    assert whole.returncode == 0, whole.stderr
    expected = results(tmp_path / "out-whole")
    for key in ("train_loss", "val_loss"):
        losses = [epoch[key] for epoch in expected["epochs"]]
        assert [epoch[key] for epoch in found["epochs"]] == pytest.approx(losses, rel=2e-5)
    assert found["test"]["loss"] == pytest.approx(expected["test"]["loss"], rel=2e-5)


def test_r613_for_a_number_of_processes_without_a_row(tmp_path: Path) -> None:
    slow_project(tmp_path)
    lock = write_elastic(tmp_path, "three", sharded=False)
    refused = run(command(lock, 3, sharded=False), tmp_path)
    assert refused.returncode != 0
    assert "error[R613]: the lock has no split of the batch for 3 processes" in refused.stderr
