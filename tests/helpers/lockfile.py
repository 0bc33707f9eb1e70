"""Locks and tiny data sets for the tests of the runtime, as docs/reference/lock.md describes them."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

from ratc.tracing import warm
from tests.effort import HANGS_S
from tests.places import RUNTIME

if TYPE_CHECKING:
    from ratc_runtime.config.lock import Lock

#: What trainings are forked from.
SERVER = str(Path(__file__).resolve().parent / "training_server.py")

BASE: dict[str, Any] = {
    "lock_version": 1,
    "ratc_version": "0.1.0",
    "target": "local",
    "experiment_name": "tiny",
    "description": "A tiny run",
    "task_type": "segmentation",
    "seed": 42,
    "debug": False,
    "model": {
        "name": "rat",
        "multi_scale": False,
        "args": {
            "spatial_dims": 2,
            "input_features": 1,
            "feature_dims": 16,
            "num_blocks": 1,
            "num_heads": 2,
            "iters": 1,
            "sga_kernel_size": 5,
            "stride": 4,
            "mlp_dropout": 0.1,
        },
        "attention_memory": "full",
    },
    "training": {
        "epochs": 2,
        "max_steps_per_epoch": None,
        "learning_rate": 0.003,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "betas": [0.9, 0.999],
        "scheduler": "cosine",
        "warmup_epochs": 0.5,
        "min_learning_rate": 0.0,
        "step_epochs": 30,
        "step_gamma": 0.1,
        "gradient_clipping": 1.0,
        "loss": {"name": "combined", "args": {}},
        "precision": "fp32",
        "tf32": False,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "last_batch": "drop",
        "activation_checkpointing": False,
        "compile": False,
        "callbacks": [],
    },
    "engine": {"use_accelerate": False, "deepspeed": False, "zero_stage": 0, "offload_optimizer": False},
    "data": {
        "dataset": "isic",
        "args": {},
        "data_dir": "data",
        "image_size": [32, 32],
        "channels": 1,
        "num_classes": 1,
        "class_names": ["foreground"],
        "ignore_index": None,
        "scales": [1.0],
        "on_bad_sample": "fail",
        "augmentations": [],
        "cache": "none",
        "cache_size_bytes": None,
        "num_workers": 0,
        "pin_memory": False,
        "persistent_workers": False,
        "prefetch_factor": None,
    },
    "evaluation": {"hausdorff": False},
    "logging": {
        "tensorboard": False,
        "mlflow": False,
        "mlflow_experiment_name": "tiny",
        "wandb": False,
        "wandb_project": "tiny",
        "wandb_mode": "offline",
        "log_every_steps": 1,
    },
    "checkpoint": {
        "every_epochs": 1,
        "every_steps": None,
        "keep_last": 2,
        "keep_best": 1,
        "best_metric": "dice",
        "resume": "auto",
        "asynchronous": False,
    },
    "output_dir": "out",
    "parallel": {
        "world_size": 1,
        "nodes": 1,
        "processes_per_node": 1,
        "backend": "gloo",
        "threads_per_process": 1,
        "timeout_seconds": 120,
    },
    "hardware": {"device": "cpu", "card": None, "compute_capability": None, "memory_bytes": None},
    "memory": {"peak_allocated_bytes": None, "peak_reserved_bytes": None, "margin": None},
    "inputs": {"config.yaml": "sha256:" + "0" * 64},
    "artifacts": {},
}


def lock_content(**changes: Any) -> dict[str, Any]:
    """Return a lock's content; keys are dotted with `__`: training__epochs=3."""
    content = copy.deepcopy(BASE)
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        target = content
        for parent in parents:
            target = target[parent]
        beside = ("compression", "elastic", "fsdp2", "health", "training__parameter_groups")
        assert parents == ["artifacts"] or last in target or dotted in beside, dotted
        target[last] = value
    return content


def write_lock(folder: Path, artifacts: dict[str, str] | None = None, **changes: Any) -> Path:
    """Write lock.yaml and the artifacts it names into `folder`; return the lock's path."""
    folder.mkdir(parents=True, exist_ok=True)
    content = lock_content(**changes)
    for name, text in (artifacts or {}).items():
        (folder / name).write_text(text)
        content["artifacts"][name] = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    path = folder / "lock.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def lock_with(folder: Path, **changes: Any) -> Lock:
    """Return the lock that `write_lock` writes, as a run reads it."""
    from ratc_runtime.config.lock import read_lock

    return read_lock(write_lock(folder, **changes))


def write_data(
    folder: Path, train: int = 10, val: int = 3, test: int = 3, size: int = 32, mode: str = "L"
) -> dict[str, list[str]]:
    """Write discs on noise in the ISIC layout, the same at every call; return the splits."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    splits = {split: [f"{split}{i}" for i in range(n)] for split, n in (("train", train), ("val", val), ("test", test))}
    rows, columns = np.mgrid[:size, :size]
    for name in (name for names in splits.values() for name in names):
        x, y, radius = random.uniform(0.3, 0.7) * size, random.uniform(0.3, 0.7) * size, size / 5
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        shape = (size, size) if mode == "L" else (size, size, 3)
        noise = random.integers(0, 90, shape)
        image = noise + 120 * (disc if mode == "L" else disc[..., None])
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{name}.png")
        Image.fromarray((disc * 255).astype(np.uint8)).save(folder / "masks" / f"{name}_segmentation.png")
    (folder / "splits.json").write_text(json.dumps(splits))
    return splits


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a training process: this one's, without what a launcher or a user may have set."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("RAT_", "ACCELERATE_", "MLFLOW_", "WANDB_"))
        and key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    }
    return {**kept, "PYTHONPATH": str(RUNTIME), **extra}


def train_command(lock: Path, *arguments: str) -> list[str]:
    """Return the command of one training process."""
    return [sys.executable, "-m", "ratc_runtime.train", "--lock", str(lock), *arguments]


def run_alone(lock: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Train in an interpreter of its own, as `run.sh` does, in the lock's folder's parent; return what came of it.

    For what happens before torch is imported, and for variables that only a new interpreter reads.
    """
    return subprocess.run(
        train_command(lock, *arguments),
        cwd=lock.parent.parent,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )


def run_forked(program: str, folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a module of the runtime, or a file, in `folder`, in a process of its own; return what came of it.

    The process is forked from one that has imported torch and RAT. One runs at a time. Variables of `extra` that
    do not begin with `RAT_`, `RATC_` or `ACCELERATE_` start another such server, which costs more than `run_alone`.
    """
    variables = environment(OMP_NUM_THREADS=str(BASE["parallel"]["threads_per_process"]), **extra)
    work = {"file" if program.endswith(".py") else "module": program}
    with tempfile.TemporaryDirectory() as place:
        streams = (os.devnull, f"{place}/out", f"{place}/errors")
        job = warm.start(work, arguments, str(folder), variables, {}, streams, SERVER)
        try:
            status = job.wait(HANGS_S)
        finally:
            if job.returncode is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
        printed, said = (Path(stream).read_text() for stream in streams[1:])
    return subprocess.CompletedProcess([program, *arguments], status, printed, said)


def run_training(lock: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Train as `run_forked` does, in the lock's folder's parent; return what came of it."""
    return run_forked("ratc_runtime.train", lock.parent.parent, "--lock", str(lock), *arguments, **extra)


def results(folder: Path) -> dict[str, Any]:
    """Return results.json of an output folder."""
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content
