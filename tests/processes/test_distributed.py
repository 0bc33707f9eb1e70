"""Several processes from their launchers stop and continue together. Their losses: test_backends.py."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.checkpoint import Checkpoints, lock_of, read
from ratc_runtime.checkpoint.weights import load_weights
from ratc_runtime.commands.export import export
from ratc_runtime.config.lock import Lock
from ratc_runtime.data.loading import evaluation_loader
from ratc_runtime.data.sources import open_split
from ratc_runtime.engine import make_engine
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.build import build_model
from ratc_runtime.tasks import make_task
from ratc_runtime.training.evaluation import evaluate

from tests.effort import HANGS_S
from tests.helpers.lockfile import BASE, environment, results, write_data, write_lock
from tests.processes.test_resume import slow_project, stop_midway

pytestmark = pytest.mark.slow

NO_DROPOUT = {**BASE["model"]["args"], "mlp_dropout": 0.0}
TWO = {**BASE["parallel"], "world_size": 2, "processes_per_node": 2}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
main_process_port: 0
mixed_precision: 'no'
num_machines: 1
num_processes: 2
use_cpu: true
"""


def deepspeed_artifacts(folder: Path, stage: int, precision: str) -> dict[str, str]:
    config = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "zero_optimization": {
            "stage": stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_scatter": True,
            "reduce_bucket_size": 500_000,
            "allgather_bucket_size": 500_000,
        },
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": False},
        "steps_per_print": 1_000_000,
    }
    launcher = f"""\
compute_environment: LOCAL_MACHINE
deepspeed_config:
  deepspeed_config_file: {folder / "deepspeed.json"}
  deepspeed_multinode_launcher: standard
  zero3_init_flag: false
distributed_type: DEEPSPEED
main_process_port: 0
num_machines: 1
num_processes: 2
use_cpu: false
"""
    return {"deepspeed.json": json.dumps(config), "accelerate.yaml": launcher}


def two_processes(project: Path, name: str, engine: dict[str, Any], artifacts: dict[str, str], **changes: Any) -> Path:
    return write_lock(
        project / name,
        artifacts,
        engine={**BASE["engine"], **engine},
        parallel=TWO,
        training__micro_batch_size=1,
        model__args=NO_DROPOUT,
        output_dir=f"out-{name}",
        **changes,
    )


def accelerate_command(lock: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(lock.parent / "accelerate.yaml"),
        "-m",
        "ratc_runtime.train",
        "--lock",
        str(lock),
    ]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=HANGS_S)


def alone(header: dict[str, Any], folder: Path) -> tuple[Lock, Any]:
    """The lock of a checkpoint with one process of plain torch instead of shards, and its engine."""
    lock = lock_of(header)
    lock = lock.replace(
        engine=lock.engine.replace(use_accelerate=False, deepspeed=False, zero_stage=0),
        fsdp2=None,
        parallel=lock.parallel.replace(world_size=1, processes_per_node=1),
    )
    return lock, make_engine(lock, build_model(lock), folder)


def score_of_exported(checkpoint: Path, project: Path) -> float:
    """The test loss of a model that is built and filled from a checkpoint's folder alone, in one process."""
    output = checkpoint.with_name("exported.safetensors")
    export(checkpoint, output, force=True)
    lock, engine = alone(read(checkpoint), project)
    weights = load_weights(output)
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {torch.float32}
    engine.module.load_state_dict(weights)
    output.unlink()
    task = make_task(lock)
    # Of the same files: a module of a test's own is not to be imported here.
    dataset = open_split(lock.replace(data=lock.data.replace(dataset="isic")), project / "data", "test")
    loader = evaluation_loader(dataset, lock, 0, task.collate)
    return evaluate(engine, loader, task.loss(), task).loss


NORMED = """
import json, torch
from torch import nn
from ratc_runtime.callbacks import Callback

class Looks(Callback):
    "Predicts after a step, on the main process alone, and writes whether the next step trains in training mode."
    def step(self, run, loss):
        if run.world.main:
            with open("modes.txt", "a") as file:
                file.write(f"{run.engine.module.training} ")
            run.engine.predict(torch.zeros(1, 1, 32, 32))

def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=0.5), nn.ReLU(), nn.Conv2d(4, 1, 1))
"""


def test_every_rank_scores_the_running_means_that_the_checkpoint_has(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=16)
    (tmp_path / "normed.py").write_text(NORMED)
    lock = write_lock(
        tmp_path / "two",
        {},
        engine={**BASE["engine"], "use_accelerate": False},
        parallel=TWO,
        model={**BASE["model"], "name": "normed:net", "args": {}},
        training__callbacks=["normed:Looks"],
        training__micro_batch_size=2,
        training__gradient_accumulation_steps=1,
        output_dir="out-two",
    )
    done = run([*TORCHRUN, "-m", "ratc_runtime.train", "--lock", str(lock)], tmp_path)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "ratc_runtime", "evaluate", "out-two", "--trust", "--device", "cpu"]
    scored = run([*command, "--split", "val", "-o", "scores.json"], tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert set((tmp_path / "modes.txt").read_text().split()) == {"True"}
    found, told = json.loads((tmp_path / "scores.json").read_text()), results(tmp_path / "out-two")
    assert found["scores"]["loss"] == pytest.approx(told["epochs"][told["best_epoch"] - 1]["val_loss"], rel=1e-5)


def test_a_deepspeed_run_stops_and_continues(tmp_path: Path) -> None:
    """Started through Accelerate, continued by DeepSpeed alone: their checkpoints are the same.

    Also where the newest checkpoint lacks the shard of a rank, and where one was killed before its rename.
    """
    slow_project(tmp_path)

    def lock_of(name: str, accelerate: bool = True) -> Path:
        return two_processes(
            tmp_path,
            name,
            {"use_accelerate": accelerate, "deepspeed": True, "zero_stage": 1},
            deepspeed_artifacts(tmp_path / name, 1, "fp32"),
            data__dataset="mine:open_slow",
        )

    lock = lock_of("broken")

    def touch(process: subprocess.Popen[str]) -> None:
        (tmp_path / "out-broken/STOP").touch()

    stopped = stop_midway(accelerate_command(lock), tmp_path, touch, "epoch 1/2  step 2/6")
    assert stopped.returncode == 0, stopped.stderr
    assert results(tmp_path / "out-broken")["status"] == "stopped"
    folder = tmp_path / "out-broken/checkpoints"
    last = (folder / "last").resolve()
    assert {path.name for path in folder.iterdir()} == {"last", last.name}
    newer = folder / "epoch-0001-step-000000"
    shutil.copytree(last, newer)
    (shard,) = newer.glob("pytorch_model/*pp_rank_1_*optim_states.pt")
    shard.unlink()
    shutil.copytree(last, folder / ".epoch-0001-step-000003.new")
    (tmp_path / "slow").unlink()
    lock = lock_of("broken", accelerate=False)
    continued = run([*TORCHRUN, "-m", "ratc_runtime.train", "--lock", str(lock)], tmp_path)
    assert continued.returncode == 0, continued.stderr
    assert continued.stderr.count("is damaged and passed over: its pytorch_model/") == 1
    assert "continuing after epoch 0, step " in continued.stdout
    assert not list(folder.glob(".*"))
    names = {path.name for path in folder.iterdir()}
    assert {"last", "best", "epoch-0001-step-000000", "epoch-0002-step-000000"} >= names > {"last", "best"}
    score = score_of_exported(folder / "best", tmp_path)
    assert score == pytest.approx(results(tmp_path / "out-broken")["test"]["loss"], rel=1e-4)
    # A checkpoint of DeepSpeed is not one of plain torch.
    lock_alone, engine = alone(read(folder / "best"), tmp_path)
    with pytest.raises(RuntimeFinding, match="R518") as caught:
        Checkpoints(folder.parent, engine, lock_alone).load_last()
    assert caught.value.note.splitlines() == ["engine.deepspeed: true -> false"]
    whole = run(accelerate_command(lock_of("whole")), tmp_path)
    assert whole.returncode == 0, whole.stderr
    one, other = results(tmp_path / "out-broken"), results(tmp_path / "out-whole")
    for a, b in zip(one["epochs"], other["epochs"], strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert one["test"] == other["test"]


def test_a_signal_to_one_rank_stops_all_ranks(tmp_path: Path) -> None:
    slow_project(tmp_path)
    lock = two_processes(tmp_path, "ddp", {}, {}, data__dataset="mine:open_slow")

    def signal_the_second(process: subprocess.Popen[str]) -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                mine = (folder / "cwd").resolve() == tmp_path
            except OSError:
                continue
            if mine and b"RANK=1" in variables:
                os.kill(int(folder.name), signal.SIGUSR2)

    command = [*TORCHRUN, "-m", "ratc_runtime.train", "--lock", str(lock)]
    stopped = stop_midway(command, tmp_path, signal_the_second, "epoch 1/2  step 2/6")
    assert stopped.returncode == 0, stopped.stderr
    assert results(tmp_path / "out-ddp")["status"] == "stopped"
    saved = torch.load(tmp_path / "out-ddp/checkpoints/last.pt", weights_only=True)
    assert 2 <= saved["progress"]["step"] < 6
    assert len(saved["rng"]) == 2


def test_r502_if_fewer_processes_meet_than_the_lock_names(tmp_path: Path) -> None:
    """A launcher's variable alone is not believed: two processes that train alone are none of the lock's."""
    write_data(tmp_path / "data")
    lock = two_processes(tmp_path, "alone", {"use_accelerate": True}, {})
    code = (
        "import os, sys\n"
        "from ratc_runtime import train\n"
        "from ratc_runtime.engine import with_accelerate\n"
        "def alone(lock):\n"
        "    from accelerate import Accelerator\n"
        "    for name in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK'): del os.environ[name]\n"
        "    return Accelerator(cpu=True)\n"
        "with_accelerate.make_accelerator = alone\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    variables = environment(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    done = subprocess.run(
        [sys.executable, "-c", code, "--lock", str(lock)],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 1, done.stdout
    assert "error[R502]: 1 process(es) found each other, the lock says 2" in done.stderr, done.stderr
