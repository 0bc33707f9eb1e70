"""Out of memory: the same global batch in smaller micro-batches, agreed by all ranks, recorded and reported.

No GPU here: the model's forward raises torch's error if a micro-batch is larger than a file allows. The rest is real
training in real processes. The rehearsal, which only GPUs get, is switched on by the script that starts training.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ratc_runtime.config.lock import read_lock
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.training import out_of_memory
from ratc_runtime.training.micro_batch import Split, smaller, with_micro_batch

from tests.effort import HANGS_S
from tests.helpers.lockfile import BASE, environment, results, run_forked, write_data, write_lock
from tests.processes.test_distributed import ACCELERATE, accelerate_command, deepspeed_artifacts

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

# `limit` holds the largest micro-batch that fits, `from_call` the number of forward passes that are spared.
MODEL = """\
import os
import torch
from torch import nn

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free."


class Net(nn.Module):
    def __init__(self, limit, rank=-1, spared=0, norm=False, when="forward"):
        super().__init__()
        self.limit, self.rank, self.spared, self.when, self.calls = limit, rank, spared, when, 0
        layers = [nn.Conv2d(1, 4, 3, padding=1, bias=not norm), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4, 1, 1))

    def forward(self, image):
        if self.training == (self.when == "forward"):
            self.calls += 1
            mine = self.rank < 0 or os.environ.get("RANK", "0") == str(self.rank)
            if mine and self.calls > self.spared and len(image) > self.limit:
                raise torch.OutOfMemoryError(SAID)
        return self.layers(image)
"""
LOSS = """\
from torch.nn.functional import binary_cross_entropy_with_logits


def loss():
    return binary_cross_entropy_with_logits
"""
REHEARSING = """\
import sys
from ratc_runtime.training import memory_rehearsal as rehearsal; from ratc_runtime import train

rehearsal.worthwhile = lambda device: True
sys.exit(train.main(sys.argv[1:]))
"""
TWO = {**BASE["parallel"], "world_size": 2, "processes_per_node": 2}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path / "data", train=21, val=5)
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "own.py").write_text(LOSS)
    (tmp_path / "rehearsing.py").write_text(REHEARSING)
    return tmp_path


def lock_of(folder: Path, name: str, micro: int, limit: int, world: int = 1, **more: Any) -> Path:
    net = {key: more.pop(key) for key in ("rank", "spared", "norm", "when") if key in more}
    return write_lock(
        folder / name,
        model={**BASE["model"], "name": "net:Net", "args": {"limit": limit, **net}},
        training__loss={"name": "own:loss", "args": {}},
        training__global_batch_size=8,
        training__micro_batch_size=micro,
        training__gradient_accumulation_steps=8 // micro // world,
        output_dir=f"out-{name}",
        parallel=TWO if world == 2 else BASE["parallel"],
        **more,
    )


def start(
    folder: Path, lock: Path, world: int = 1, rehearse: bool = False, *options: str
) -> subprocess.CompletedProcess[str]:
    program = str(folder / "rehearsing.py") if rehearse else "ratc_runtime.train"
    if world == 1:
        return run_forked(program, folder, "--lock", str(lock), *options)
    command = [*TORCHRUN, *([program] if rehearse else ["-m", program]), "--lock", str(lock), *options]
    # `rehearsing.py` imports torch before the lock is read, which is too late for the lock's number of threads.
    env = {**environment(), "OMP_NUM_THREADS": str(BASE["parallel"]["threads_per_process"])}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=HANGS_S)


def same_losses(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(found["epochs"]) == len(expected["epochs"]) == 2
    for one, other in zip(found["epochs"], expected["epochs"], strict=True):
        assert one["learning_rate"] == other["learning_rate"]
        for key in ("train_loss", "val_loss"):
            assert one[key] == pytest.approx(other[key], rel=1e-5), key
    assert found["test"]["loss"] == pytest.approx(expected["test"]["loss"], rel=1e-5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds that never runs out of memory."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_data(folder / "data", train=21, val=5)
    (folder / "net.py").write_text(MODEL)
    (folder / "own.py").write_text(LOSS)
    done = start(folder, lock_of(folder, "whole", micro=8, limit=8))
    assert done.returncode == 0, done.stderr
    assert not (folder / "out-whole/micro_batch.json").exists()
    found = results(folder / "out-whole")
    assert found["batch"]["out_of_memory"] == []
    return found


# The arithmetic.


def test_the_split_halves_the_micro_batch_and_keeps_the_global_batch(tmp_path: Path) -> None:
    lock = read_lock(
        write_lock(
            tmp_path,
            training__global_batch_size=36,
            training__micro_batch_size=18,
            training__gradient_accumulation_steps=1,
            parallel=TWO,
        )
    )
    seen = []
    while True:
        training = lock.training
        assert training.micro_batch_size * training.gradient_accumulation_steps * 2 == 36
        seen.append(training.micro_batch_size)
        size = smaller(lock)
        if size is None:
            break
        lock = with_micro_batch(lock, size)
    assert seen == [18, 9, 3, 1]
    assert lock.fingerprint() == read_lock(tmp_path / "lock.yaml").fingerprint()
    with pytest.raises(ValueError, match="does not divide"):
        with_micro_batch(lock, 4)


@pytest.mark.parametrize(
    ("error", "device", "known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), CUDA, True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), CPU, True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"), CUDA, True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), CUDA, True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), CPU, True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), CUDA, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), CUDA, False),
        (ValueError("CUDA out of memory"), CUDA, False),
        (RuntimeFinding("R506", "CUDA out of memory"), CUDA, False),
    ],
)
def test_out_of_memory_errors_are_recognised(error: Exception, device: torch.device, known: bool) -> None:
    assert (out_of_memory.explain(error, device) is not None) is known


def test_an_error_caused_by_out_of_memory_is_recognised() -> None:
    inner, outer = torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), RuntimeError("the backend failed")
    outer.__cause__ = inner
    assert out_of_memory.explain(outer, CUDA) == "CUDA out of memory. Tried 2 GiB"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "lock_sha256": "a"}'])
def test_a_damaged_record_is_ignored_with_a_warning(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = read_lock(write_lock(tmp_path))
    (tmp_path / "micro_batch.json").write_text(text)
    split = Split(lock, "a", tmp_path, fresh=False)
    assert split.lock == lock
    assert "micro_batch.json cannot be read and is left out" in capsys.readouterr().err


def test_a_record_applies_only_to_its_own_lock(tmp_path: Path) -> None:
    lock = read_lock(write_lock(tmp_path))
    split = Split(lock, "sha256:one", tmp_path, fresh=False)
    split.reduce("in a test", 0, "CUDA out of memory", everywhere=True)
    split.write()
    assert Split(lock, "sha256:one", tmp_path, fresh=False).lock.training.micro_batch_size == 1
    assert Split(lock, "sha256:two", tmp_path, fresh=False).lock == lock
    assert Split(lock, "sha256:one", tmp_path, fresh=True).lock == lock
    with pytest.raises(RuntimeFinding, match="R511"):
        split.reduce("in a test", 0, "CUDA out of memory", everywhere=True)


# One process.


def test_one_process_continues_from_the_step_boundary(folder: Path, undisturbed: dict[str, Any]) -> None:
    # The third forward pass is the second step of the first epoch.
    done = start(folder, lock_of(folder, "mid", micro=8, limit=3, spared=1))
    assert done.returncode == 0, done.stderr
    found = results(folder / "out-mid")
    same_losses(found, undisturbed)
    batch = found["batch"]
    assert [(one["before"], one["after"]) for one in batch["out_of_memory"]] == [(8, 4), (4, 2)]
    assert batch["out_of_memory"][0]["when"] == "in epoch 1, step 2"
    assert (batch["micro_batch_size"], batch["gradient_accumulation_steps"]) == (2, 4)
    assert (batch["lock_micro_batch_size"], batch["global_batch_size"]) == (8, 8)
    assert done.stderr.count("OUT OF MEMORY in epoch 1, step 2") == 2
    assert "This differs from the lock, which says micro-batch 8 x 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_evaluation_out_of_memory_is_repeated_with_smaller_batches(
    folder: Path, undisturbed: dict[str, Any]
) -> None:
    done = start(folder, lock_of(folder, "eval", micro=8, limit=4, when="eval"))
    assert done.returncode == 0, done.stderr
    same_losses(results(folder / "out-eval"), undisturbed)
    assert "OUT OF MEMORY in the evaluation of epoch 1" in done.stderr


def test_a_rehearsal_does_not_change_the_losses_of_the_run(folder: Path, undisturbed: dict[str, Any]) -> None:
    done = start(folder, lock_of(folder, "first", micro=8, limit=4), rehearse=True)
    assert done.returncode == 0, done.stderr
    assert "OUT OF MEMORY in the rehearsal of the first step (rank 0): micro-batch 8 does not fit" in done.stderr
    found = results(folder / "out-first")
    same_losses(found, undisturbed)
    # The statistics of batch norm must be those that training alone would have.
    for name, rehearse in (("plain", False), ("rehearsed", True)):
        done = start(folder, lock_of(folder, name, micro=4, limit=4, norm=True), rehearse=rehearse)
        assert done.returncode == 0, done.stderr
    same_losses(results(folder / "out-plain"), results(folder / "out-rehearsed"))


def test_a_rehearsal_does_not_change_rat_with_dropout(folder: Path) -> None:
    found = []
    for name, rehearse in (("plain", False), ("rehearsed", True)):
        lock = write_lock(folder / name, output_dir=f"out-{name}", training__epochs=1)
        done = start(folder, lock, rehearse=rehearse)
        assert done.returncode == 0, done.stderr
        found.append(results(folder / f"out-{name}"))
    assert found[0]["epochs"][0]["train_loss"] == found[1]["epochs"][0]["train_loss"]
    assert found[0]["test"] == found[1]["test"]


def test_a_smaller_micro_batch_warns_about_batch_norm(folder: Path) -> None:
    done = start(folder, lock_of(folder, "norm", micro=8, limit=4, norm=True))
    assert done.returncode == 0, done.stderr
    assert "batch norm now takes its statistics over 4 samples instead of 8" in done.stderr


@pytest.mark.parametrize("rehearse", [False, True])
def test_r511_if_one_sample_does_not_fit(folder: Path, rehearse: bool) -> None:
    done = start(folder, lock_of(folder, "none", micro=8, limit=0), rehearse=rehearse)
    assert done.returncode == 1
    assert "error[R511]: out of memory" in done.stderr
    assert "a micro-batch of 1 is the smallest there is" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_next_start_keeps_the_smaller_micro_batch_and_fresh_resets_it(folder: Path) -> None:
    lock = lock_of(folder, "again", micro=8, limit=4, logging__mlflow=True)
    assert start(folder, lock).returncode == 0
    (folder / "out-again/results.json").unlink()
    done = start(folder, lock)
    assert done.returncode == 0, done.stderr
    assert "the lock says micro-batch 8 x 1, which ran out of memory in epoch 1, step 1" in done.stderr
    assert "this run takes micro-batch 4 x 2 accumulation steps" in done.stderr
    assert "OUT OF MEMORY" not in done.stderr
    assert results(folder / "out-again")["batch"]["micro_batch_size"] == 4
    assert "OUT OF MEMORY in epoch 1, step 1" in start(folder, lock, 1, False, "--fresh").stderr

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/out-again/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    parameters = client.search_runs([experiment.experiment_id])[0].data.params
    assert parameters["out_of_memory.1"] == "micro-batch 8 -> 4, in epoch 1, step 1, rank 0"
    assert parameters["training.micro_batch_size"] == "8"


def test_a_model_that_does_not_fit_gives_a_finding(folder: Path) -> None:
    (folder / "net.py").write_text(MODEL.replace("super().__init__()", "raise torch.OutOfMemoryError(SAID)"))
    done = start(folder, lock_of(folder, "model", micro=8, limit=8))
    assert done.returncode == 1
    assert "error[R5" in done.stderr
    assert "CUDA out of memory" in done.stderr
    assert "Traceback" not in done.stderr


def test_r513_for_a_killed_loader_process(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "import os, signal\n"
        "from ratc_runtime.data.sources import *\n"
        "class Set:\n"
        "    def __len__(self): return 16\n"
        "    def __getitem__(self, index):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "def open_set(**_): return Set()\n"
    )
    lock = lock_of(folder, "killed", micro=8, limit=8, data__dataset="mine:open_set", data__num_workers=1)
    done = start(folder, lock)
    assert done.returncode == 1
    assert "error[R513]: a data-loading process was killed" in done.stderr
    assert "Traceback" not in done.stderr.split("error[R513]")[1]


# Two processes.


@pytest.mark.slow
def test_all_ranks_reduce_the_micro_batch_if_one_runs_out_of_memory(folder: Path, undisturbed: dict[str, Any]) -> None:
    lock = lock_of(folder, "two", micro=4, limit=1, world=2, rank=1)
    done = start(folder, lock, world=2, rehearse=True)
    assert done.returncode == 0, done.stderr
    found = results(folder / "out-two")
    same_losses(found, undisturbed)
    assert [(one["after"], one["rank"]) for one in found["batch"]["out_of_memory"]] == [(2, 1), (1, 1)]
    assert "(rank 1): micro-batch 4 does not fit" in done.stderr
    assert done.stderr.count("OUT OF MEMORY") == 2


@pytest.mark.slow
def test_r512_inside_a_step_of_two_ranks_and_the_restart_uses_less(folder: Path, undisturbed: dict[str, Any]) -> None:
    # Two steps an epoch: the third forward pass of rank 1 is the first of the second epoch.
    lock = lock_of(folder, "late", micro=4, limit=2, world=2, rank=1, spared=2)
    done = start(folder, lock, world=2)
    assert done.returncode != 0
    assert "error[R512]: out of memory in epoch 2, step 1 on rank 1" in done.stderr
    assert not re.search(r"\[rank\d\]: Traceback", done.stderr)
    record = json.loads((folder / "out-late/micro_batch.json").read_text())
    assert (record["micro_batch_size"], record["lock_micro_batch_size"]) == (2, 4)
    again = start(folder, lock, world=2)
    assert again.returncode == 0, again.stderr
    assert "continuing after epoch 1, step 0" in again.stdout
    assert again.stderr.count("this run takes micro-batch 2 x 2 accumulation steps x 2 process(es)") == 1
    same_losses(results(folder / "out-late"), undisturbed)


def launched(folder: Path, lock: Path, rehearse: bool) -> subprocess.CompletedProcess[str]:
    command = accelerate_command(lock)
    if rehearse:
        command[command.index("-m", 3) : command.index("--lock")] = [str(folder / "rehearsing.py")]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=HANGS_S)


@pytest.mark.slow
def test_accelerate_ranks_reduce_the_micro_batch_together(folder: Path, undisturbed: dict[str, Any]) -> None:
    engine = {**BASE["engine"], "use_accelerate": True}
    artifacts = {"accelerate.yaml": ACCELERATE}
    lock = lock_of(folder, "acc", micro=4, limit=2, world=2, rank=1, engine=engine, artifacts=artifacts)
    done = launched(folder, lock, rehearse=True)
    assert done.returncode == 0, done.stderr
    assert "(rank 1): micro-batch 4 does not fit" in done.stderr
    same_losses(results(folder / "out-acc"), undisturbed)


@pytest.mark.slow
def test_one_accelerate_process_continues_inside_a_step(folder: Path, undisturbed: dict[str, Any]) -> None:
    engine = {**BASE["engine"], "use_accelerate": True}
    # The fourth micro-batch is the second of the second step: gradients of the first are there.
    lock = lock_of(folder, "acc1", micro=4, limit=2, spared=3, engine=engine)
    done = start(folder, lock)
    assert done.returncode == 0, done.stderr
    assert "OUT OF MEMORY in epoch 1, step 2" in done.stderr
    same_losses(results(folder / "out-acc1"), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_ranks_reduce_the_micro_batch_together(folder: Path, undisturbed: dict[str, Any], stage: int) -> None:
    """ZeRO-2 rehearses without a collective. ZeRO-3 cannot; it ends, and its next start has DeepSpeed take less."""
    name = f"zero{stage}"
    engine = {**BASE["engine"], "use_accelerate": True, "deepspeed": True, "zero_stage": stage}
    artifacts = deepspeed_artifacts(folder / name, stage, "fp32")
    content = json.loads(artifacts["deepspeed.json"])
    content |= {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1}
    artifacts["deepspeed.json"] = json.dumps(content)
    lock = lock_of(folder, name, micro=4, limit=2, world=2, rank=1, spared=2, engine=engine, artifacts=artifacts)
    if stage == 2:
        spec = yaml.safe_load(lock.read_text())
        spec["model"]["args"]["spared"] = 0
        lock.write_text(yaml.safe_dump(spec, sort_keys=False))
    done = launched(folder, lock, rehearse=True)
    if stage == 3:
        assert done.returncode != 0
        assert "error[R512]: out of memory in epoch 2, step 1 on rank 1" in done.stderr
        done = launched(folder, lock, rehearse=True)
        assert "continuing after epoch 1, step 0" in done.stdout
    assert done.returncode == 0, done.stderr
    found = results(folder / f"out-{name}")
    assert found["batch"]["micro_batch_size"] == 2
    same_losses(found, undisturbed)
