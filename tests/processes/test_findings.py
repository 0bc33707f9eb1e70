"""Each refusal that needs torch: its code, the thing that it names, and no traceback."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ratc_runtime.output.results import read_results

from tests.helpers.lockfile import environment, results, run_training, train_command, write_data, write_lock


def refused(done: subprocess.CompletedProcess[str], code: str) -> str:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert f"error[{code}]: " in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_r503_for_too_few_samples(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=3)
    said = refused(run_training(write_lock(tmp_path / "compiled")), "R503")
    assert "3 samples, fewer than one global batch of 4" in said


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "gradient accumulation 4, lock 2"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, "gradient accumulation 1, lock 2"),
        ({"ACCELERATE_DYNAMO_BACKEND": "EAGER"}, "Accelerate's compiler EAGER, lock none"),
    ],
)
def test_r503_for_variables_that_override_the_lock(project: Path, variables: dict[str, str], said: str) -> None:
    lock = write_lock(project / "compiled", engine__use_accelerate=True)
    printed = refused(run_training(lock, **variables), "R503")
    assert said in printed
    assert not (project / "out/results.json").exists()


@pytest.mark.parametrize("status", ["", "0", "3", "'done'"])
def test_r565_for_user_code_that_exits_the_process(project: Path, status: str) -> None:
    (project / "mine.py").write_text(
        "import sys\nfrom ratc_runtime.data.isic import IsicSegmentation\n"
        "class Ends(IsicSegmentation):\n    def __getitem__(self, index):\n"
        f"        sys.exit({status})\n"
        "def open_ends(data_dir, split):\n    return Ends(data_dir, split, (32, 32), 1)\n"
    )
    lock = write_lock(project / "compiled", data__dataset="mine:open_ends")
    printed = refused(run_training(lock), "R565")
    assert "mine.py" in printed
    assert not (project / "out/results.json").exists()


def _another_optimizer(engine: Any) -> str:
    import torch

    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in engine.optimizer.param_groups]
    engine.optimizer = torch.optim.Adam(groups, lr=0.1)
    return "optimizer adam, lock adamw"


def _another_decay(engine: Any) -> str:
    engine.optimizer.param_groups[0]["weight_decay"] = 0.5
    return "weight decay [0.0, 0.5], lock [0.0, 0.01]"


def _another_accumulation(engine: Any) -> str:
    engine.accumulation = 7
    return "gradient accumulation 7, lock 2"


def _another_precision(engine: Any) -> str:
    import torch

    engine._dtype = torch.bfloat16
    return "precision bf16, lock fp32"


@pytest.mark.parametrize("change", [_another_optimizer, _another_decay, _another_accumulation, _another_precision])
def test_r503_for_an_engine_that_differs_from_the_lock(tmp_path: Path, change: Any) -> None:
    import torch
    from ratc_runtime.config.lock import read_lock
    from ratc_runtime.engine import TorchEngine
    from ratc_runtime.errors import RuntimeFinding

    lock = read_lock(write_lock(tmp_path / "compiled"))
    engine = TorchEngine(lock, torch.nn.Linear(2, 2))
    engine.verify(lock)
    said = change(engine)
    with pytest.raises(RuntimeFinding, match="R503") as caught:
        engine.verify(lock)
    assert caught.value.note == said


def test_r504_if_torch_has_no_cuda(project: Path) -> None:
    (project / "pynvml.py").write_text(
        "def nvmlInit(): pass\ndef nvmlShutdown(): pass\ndef nvmlDeviceGetCount(): return 1\n"
        "def nvmlDeviceGetHandleByIndex(i): return i\ndef nvmlDeviceGetName(c): return 'card'\n"
        "def nvmlDeviceGetCudaComputeCapability(c): return 8, 0\ndef nvmlDeviceGetUUID(c): return 'GPU-a'\n"
        "def nvmlDeviceGetMemoryInfo(c): return type('M', (), {'total': 1})\n"
    )
    hardware = {"device": "cuda", "card": None, "compute_capability": "8.0", "memory_bytes": None}
    lock = write_lock(project / "compiled", hardware=hardware)
    # In a folder whose torch sees no card, whatever this machine has.
    code = (
        "import sys, torch; torch.cuda.is_available = lambda: False\n"
        "from ratc_runtime.train import main; sys.exit(main())"
    )
    command = [train_command(lock)[0], "-c", code, "--lock", str(lock)]
    env = environment(CUDA_VISIBLE_DEVICES="0")
    # The stand-in goes before the installed module.
    env["PYTHONPATH"] = f"{project}{os.pathsep}" + env["PYTHONPATH"]
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert "the lock says cuda, and torch" in refused(done, "R504")


def _corrupt(project: Path) -> str:
    path = project / "data/images/train4.png"
    path.write_bytes(path.read_bytes()[:60])
    return "images/train4.png cannot be decoded"


def _no_mask(project: Path) -> str:
    (project / "data/masks/val1_segmentation.png").unlink()
    return "masks/val1_segmentation.png"


def _no_images(project: Path) -> str:
    (project / "data/images").rename(project / "data/pictures")
    return "no readable images/"


def _leak(project: Path) -> str:
    path = project / "data/splits.json"
    splits = json.loads(path.read_text())
    splits["test"].append("train0")
    path.write_text(json.dumps(splits))
    return "train0 in both"


def _bad_splits(project: Path) -> str:
    (project / "data/splits.json").write_text('{"train": [1]}')
    return "not a mapping from split to names"


def _escape(project: Path) -> str:
    path = project / "data/splits.json"
    path.write_text(path.read_text().replace("train0", "../train0"))
    return "not a plain name"


def _empty_test(project: Path) -> str:
    path = project / "data/splits.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "test": []}))
    return "without samples"


@pytest.mark.parametrize("damage", [_corrupt, _no_mask, _no_images, _leak, _bad_splits, _escape, _empty_test])
def test_r506_names_the_fault_of_the_data(project: Path, damage: Any) -> None:
    said = damage(project)
    workers = 1 if damage is _corrupt else 0
    lock = write_lock(project / "compiled", data__num_workers=workers, data__prefetch_factor=2 if workers else None)
    printed = refused(run_training(lock), "R506")
    assert said in printed
    if damage in (_corrupt, _no_mask):
        assert "data.on_bad_sample: skip" in printed


def test_on_bad_sample_skip_counts_the_bad_samples(project: Path) -> None:
    _corrupt(project)
    _no_mask(project)
    (project / "data/masks/test2_segmentation.png").write_bytes(b"")
    lock = write_lock(project / "compiled", data__on_bad_sample="skip", training__epochs=2)
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    found = results(project / "out")
    assert found["skipped_samples"] == ["test2", "train4", "val1"]
    assert found["test"]["samples"] == 2
    assert "left out because an image or a mask is missing: 1 sample, val1" in done.stdout


def test_r507_names_the_samples_of_a_loss_that_is_not_finite(project: Path) -> None:
    (project / "mine.py").write_text(
        "import torch\n"
        "def loss():\n"
        "    calls = []\n"
        "    def value(logits, target):\n"
        "        calls.append(1) if torch.is_grad_enabled() else None\n"
        "        scale = float('nan') if len(calls) == 6 and torch.is_grad_enabled() else 1.0\n"
        "        return (logits * scale).mean() ** 2\n"
        "    return value\n"
    )
    lock = write_lock(project / "compiled", training__loss={"name": "mine:loss", "args": {}})
    said = refused(run_training(lock), "R507")
    assert "not finite in epoch 2, step 1" in said
    assert said.split("samples of the batch: ")[1].splitlines()[0].count("train") == 2
    assert "the last good checkpoint is kept: out/checkpoints/last.pt" in said
    assert (project / "out/checkpoints/last.pt").exists()


def test_nan_outputs_give_null_scores_and_name_their_samples(project: Path) -> None:
    """Training is sound, and one sample of val and test gets NaN, as by a damaged running mean."""
    (project / "own.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.last = torch.nn.Conv2d(1, 1, 3, padding=1)\n"
        "    def forward(self, image):\n"
        "        output = self.last(image)\n"
        "        if not self.training:\n"
        "            output = torch.cat([output[:1] * float('nan'), output[1:]])\n"
        "        return output\n"
    )
    model = {"name": "own:Net", "multi_scale": False, "args": {}, "attention_memory": "full"}
    done = run_training(write_lock(project / "compiled", model=model, training__epochs=1))
    assert done.returncode == 0, done.stderr
    assert "the model's outputs for 2 samples of 3 hold NaN, so there are no scores: test0, test2" in done.stderr
    assert "outputs for 2 samples of 3 hold NaN, so there are no scores: val0, val2" in done.stderr
    assert "no foreground" not in done.stdout
    told = results(project / "out")
    assert (told["test"]["dice"], told["epochs"][0]["val_dice"], told["epochs"][0]["val_loss"]) == (None, None, None)


def test_checkpoints_that_are_damaged_or_of_another_lock_are_refused(project: Path) -> None:
    one = {"training__epochs": 1}
    assert run_training(write_lock(project / "compiled", **one)).returncode == 0
    said = refused(run_training(write_lock(project / "compiled", **one, training__learning_rate=0.5)), "R518")
    assert "note: training.learning_rate: 0.003 -> 0.5\n" in said
    assert "--fresh" in said
    (project / "out/results.json").unlink()
    last = project / "out/checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    said = refused(run_training(write_lock(project / "compiled", **one)), "R508")
    assert "epoch-0001-step-000000.pt cannot be read" in said
    assert "--fresh" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__name": "resnet"}, "no model is called 'resnet'"),
        ({"model__name": "mine:Net"}, "`mine:Net` needs mine"),
        ({"model__name": "own:needs"}, "model own:needs cannot be called"),
        ({"model__name": "own:text", "model__args": {}}, "returned str, not a torch.nn.Module"),
        ({"model__args": {"num_heads": 3, "input_features": 1}}, "model rat cannot be called"),
        ({"model__args": {"input_features": 3}}, "takes 3 channels"),
        ({"training__loss": {"name": "bce", "args": {"weight": 1}}}, "loss bce cannot be called"),
        ({"training__loss": {"name": "focal", "args": {}}}, "no loss is called 'focal'"),
        ({"data__dataset": "own:text"}, "dataset own:text cannot be called"),
    ],
)
def test_r509_names_what_cannot_be_imported_or_called(project: Path, changes: dict[str, Any], said: str) -> None:
    (project / "own.py").write_text("def needs(more): ...\ndef text(): return 'text'\n")
    assert said in refused(run_training(write_lock(project / "compiled", **changes)), "R509")


def test_r510_for_an_output_folder_that_cannot_be_written(project: Path) -> None:
    (project / "out").write_text("a file")
    assert "output folder out cannot be written" in refused(run_training(write_lock(project / "compiled")), "R510")


def test_a_run_survives_a_checkpoint_that_the_full_disk_refuses(project: Path) -> None:
    lock = write_lock(project / "compiled")

    def small_files() -> None:
        # The kernel refuses to let any file grow beyond this, as a full disk would.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        train_command(lock), cwd=project, env=environment(), capture_output=True, text=True, preexec_fn=small_files
    )
    name = "epoch-0001-step-000000.pt"
    assert (
        f"checkpoint out/checkpoints/{name} not written: File too large; there is no earlier checkpoint" in done.stderr
    )
    assert list((project / "out/checkpoints").iterdir()) == []
    # The epochs go on; but a run of which nothing is left has not succeeded.
    assert "epoch 2/2" in done.stdout
    assert (done.returncode, "error[R562]" in done.stderr) == (1, True)
    assert not (project / "out/results.json").exists()


@pytest.mark.parametrize("kind", ["device", "pipe", "nested"])
def test_unreadable_results_are_ignored(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("[" * 100_000)
    assert read_results(tmp_path) == {}
