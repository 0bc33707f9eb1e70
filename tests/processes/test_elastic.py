"""An elastic lock on several process counts: killed on one and continued on others, with the same losses."""

from __future__ import annotations

import contextlib
import json
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
from tests.processes.backends import GROUPS
from tests.processes.test_distributed import NO_DROPOUT, accelerate_command, run
from tests.processes.test_resume import slow_project, stop_midway

pytestmark = pytest.mark.slow

#: Global batch 4 on so many "nodes" of a process each.
ROWS = {"1": (2, 2), "2": (1, 2), "4": (1, 1)}


#: The backends: their ZeRO stage, if it is DeepSpeed's, whether Accelerate starts them, and the process counts of the
#: starts. The last one finishes.
BACKENDS: dict[str, tuple[int | None, bool, tuple[int, ...]]] = {
    "ddp": (None, False, (4, 2, 1)),
    "fsdp2": (None, True, (4, 2, 4)),
    "zero2": (2, True, (4, 2)),
    "zero3": (3, False, (2, 4)),
}


def write_elastic(project: Path, name: str, backend: str) -> Path:
    """Write an elastic lock for 1, 2 or 4 processes, with the files of a golden case; its own values are those of 4."""
    stage, accelerate, starts = BACKENDS[backend]
    golden = CASES / ("fsdp2" if stage is None else "elastic-slurm-zero") / "expected"
    artifacts = {}
    if stage is not None:
        content = json.loads((golden / "deepspeed.json").read_text())
        content |= {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": False}}
        content["zero_optimization"] |= {"stage": stage, "overlap_comm": False, "reduce_bucket_size": 50_000}
        artifacts["deepspeed.json"] = json.dumps(content)
    if accelerate:
        launcher = yaml.safe_load((golden / "accelerate.yaml").read_text())
        launcher |= {"num_processes": 4, "num_machines": 1, "main_process_port": 0, "use_cpu": stage is not None}
        launcher |= {"mixed_precision": "no"} if stage is None else {}
        if "fsdp_config" in launcher:
            launcher["fsdp_config"] |= {"fsdp_offload_params": False}
        else:
            launcher["deepspeed_config"]["deepspeed_config_file"] = str(project / name / "deepspeed.json")
        artifacts["accelerate.yaml"] = yaml.safe_dump(launcher)
    shards: dict[str, Any] = {"shard": "full", "shard_size": 4, "wrap": None, "offload": False, "weights": "fp32"}
    none = {"prefetch_factor": None, "peak_allocated_bytes": None, "peak_reserved_bytes": None}
    rows = {
        nodes: {"world_size": int(nodes), "micro_batch_size": micro, "gradient_accumulation_steps": steps, **none}
        for nodes, (micro, steps) in ROWS.items()
        if int(nodes) in starts or nodes == "4"
    }
    return write_lock(
        project / name,
        artifacts,
        engine={
            **BASE["engine"],
            "use_accelerate": accelerate,
            "deepspeed": stage is not None,
            "zero_stage": stage or 0,
        },
        parallel={**BASE["parallel"], "world_size": 4, "nodes": 4},
        elastic=rows,
        training__micro_batch_size=1,
        training__gradient_accumulation_steps=1,
        # Converted shards must keep the groups apart.
        training__parameter_groups=GROUPS,
        checkpoint__every_steps=2,
        model__args=NO_DROPOUT,
        data__dataset="mine:open_slow",
        output_dir=f"out-{name}",
        **({"fsdp2": shards} if backend == "fsdp2" else {}),
    )


def command(lock: Path, processes: int, backend: str = "ddp") -> list[str]:
    """What node.sh starts on so many processes."""
    if BACKENDS[backend][1]:
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
@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_of_an_elastic_run_do_not_depend_on_its_process_counts(backend: str, tmp_path: Path) -> None:
    slow_project(tmp_path)

    def kill(_: subprocess.Popen[str]) -> None:
        kill_all_in(tmp_path)

    lock, (*starts, last) = write_elastic(tmp_path, "moved", backend), BACKENDS[backend][2]
    for number, world in enumerate(starts):
        until = "epoch 1/2  step 3/6" if number == 0 else "epoch 2/2  step "
        killed = stop_midway(command(lock, world, backend), tmp_path, kill, until)
        assert killed.returncode != 0
        assert f"global batch 4 = {' x '.join(map(str, (*ROWS[str(world)], world)))}" in killed.stdout
        assert number == 0 or "continuing after epoch 0, step 2" in killed.stdout, killed.stderr
    (tmp_path / "slow").unlink()
    done = run(command(lock, last, backend), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch " in done.stdout
    found = results(tmp_path / "out-moved")
    assert [start["world_size"] for start in found["starts"]["last"]] == [*starts, last]
    assert not list((tmp_path / "out-moved/checkpoints").glob(".*universal*"))
    whole = run(command(write_elastic(tmp_path, "whole", "ddp"), 1), tmp_path)
    assert whole.returncode == 0, whole.stderr
    expected = results(tmp_path / "out-whole")
    for key in ("train_loss", "val_loss"):
        losses = [epoch[key] for epoch in expected["epochs"]]
        assert [epoch[key] for epoch in found["epochs"]] == pytest.approx(losses, rel=2e-5)
    assert found["test"]["loss"] == pytest.approx(expected["test"]["loss"], rel=2e-5)


def test_r613_for_a_number_of_processes_without_a_row(tmp_path: Path) -> None:
    slow_project(tmp_path)
    lock = write_elastic(tmp_path, "three", "ddp")
    refused = run(command(lock, 3), tmp_path)
    assert refused.returncode != 0
    assert "error[R613]: the lock has no split of the batch for 3 processes" in refused.stderr
