"""Several tasks in one run: data, gradient, scores, and real runs that stop, continue and use two processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ratc_runtime import inference
from ratc_runtime.commands.evaluate import score
from ratc_runtime.config.lock import Lock, lock_from
from ratc_runtime.data.joint import flat, joined, open_data_set, open_evaluation
from ratc_runtime.data.loading import train_loader
from ratc_runtime.data.sample import shapes
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.build import build_model
from ratc_runtime.tasks import make_task
from ratc_runtime.training.evaluation import evaluate
from ratc_runtime.training.memory_rehearsal import noise
from ratc_runtime.training.open_run import seed_everything

from tests.effort import HANGS_S
from tests.helpers.lockfile import environment, lock_content, results, run_forked, train_command, write_data
from tests.processes.test_resume import group_signal, same, stop_midway

WEIGHT = 0.25
NO_DROPOUT = {**lock_content()["model"]["args"], "mlp_dropout": 0.0}


def content(**changes: Any) -> dict[str, Any]:
    """A lock of two tasks on the same small RAT: discs to segment, and shapes to find."""
    found = lock_content(checkpoint__best_metric="loss", data__dataset="joint", **changes)
    found["task_type"] = "multi"
    found["training"]["loss"] = {"name": "weighted_sum", "args": {}}
    disc = {"folder": "discs", "dataset": "isic", "args": {}, "num_classes": 1, "class_names": ["disc"]}
    shape = {"folder": "shapes", "dataset": "coco", "args": {}, "num_classes": 3, "class_names": ["a", "b", "c"]}
    found["tasks"] = {
        "discs": {
            "task_type": "segmentation",
            "weight": 1.0,
            "loss": {"name": "dice", "args": {}},
            "data": {**disc, "ignore_index": None},
        },
        # A name that a module's attributes cannot have.
        "train": {
            "task_type": "detection",
            "weight": WEIGHT,
            "loss": {"name": "set_prediction", "args": {}},
            "data": {**shape, "class_names": [f"class {n}" for n in range(3)], "ignore_index": None},
            "detection": {"queries": 5, "decoder_layers": 1},
        },
    }
    return found


def lock_of(**changes: Any) -> Lock:
    return lock_from(content(**changes))


def data(folder: Path) -> Path:
    """Six discs to train on, and ten drawings of shapes: one task begins again."""
    write_data(folder / "discs", train=6, val=3, test=2)
    with pytest.MonkeyPatch.context() as patch:
        (folder / "shapes").mkdir()
        patch.setattr(shapes, "COUNTS", {"train": 10, "val": 4, "test": 3})
        shapes.make(folder / "shapes")
    return folder


def write(folder: Path, made: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "lock.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return folder / "lock.yaml"


def test_every_task_has_a_sample_at_every_position(tmp_path: Path) -> None:
    lock = lock_of(data__augmentations=[{"RandomHorizontalFlip": {"p": 1.0}}])
    joint = open_data_set(lock, data(tmp_path), "train")
    assert (len(joint), len(joint.parts["discs"]), len(joint.parts["train"])) == (10, 6, 10)
    assert joint.names[7] == f"discs train1 + train {joint.parts['train'].names[7]}"
    torch.testing.assert_close(joint[7]["image"]["discs"], joint.parts["discs"][1]["image"])
    with pytest.raises(IndexError):
        joint[10]
    again = joined(flat({"train": joint, "val": joint.parts["discs"]}))
    assert (list(again), list(again["train"].parts)) == (["train", "val"], ["discs", "train"])
    task = make_task(lock)
    batch = next(iter(train_loader(joint, lock, 0, task.collate)))
    assert {name: tuple(image.shape) for name, image in batch.image.items()} == {
        "discs": (2, 1, 32, 32),
        "train": (2, 1, 32, 32),
    }
    for row, position in enumerate(batch.position.tolist()):
        plain = joint[position]
        torch.testing.assert_close(batch.image["discs"][row], plain["image"]["discs"].flip(-1))
        torch.testing.assert_close(batch.target["discs"][row], plain["target"]["discs"].flip(-1).float())
        (unmoved,) = task.parts["train"].collate([plain["target"]["train"]])
        moved = batch.target["train"][row]["boxes"]
        mirrored = unmoved["boxes"] * torch.tensor([-1.0, 1, 1, 1]) + torch.tensor([1.0, 0, 0, 0])
        torch.testing.assert_close(moved, mirrored, atol=1e-5, rtol=0)


def test_a_bad_sample_is_named_with_its_task(tmp_path: Path) -> None:
    lock = lock_of()
    joint = open_data_set(lock, data(tmp_path), "train")
    (tmp_path / "discs" / "images" / "train1.png").write_bytes(b"no picture")
    with pytest.raises(RuntimeFinding) as raised:
        joint[7]
    assert (raised.value.code, "train1" in raised.value.message) == ("R506", True)


def test_the_gradient_is_the_weighted_sum_of_the_tasks_gradients() -> None:
    lock = lock_of(model__args=NO_DROPOUT)
    seed_everything(lock, 0)
    model: Any = build_model(lock)
    task = make_task(lock)
    image, target = noise(task, lock, 2, torch.device("cpu"))
    task.loss()(model(image), target).backward()
    expected: dict[str, torch.Tensor] = {}
    for name, part in task.parts.items():
        alone = build_model(lock.part(name))
        state = {f"backbone.{key}": value for key, value in model.backbone.state_dict().items()}
        alone.load_state_dict({**state, **model.heads[f"{name}_head"].state_dict()})
        (task.weights[name] * part.loss()(alone(image[name]), target[name])).backward()
        for key, parameter in alone.named_parameters():
            if parameter.grad is not None:
                whole = key if key.startswith("backbone.") else f"heads.{name}_head.{key}"
                expected[whole] = expected.get(whole, torch.zeros(())) + parameter.grad
    found = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == expected.keys()
    assert any(key.startswith("heads.train_head") for key in found)
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected[key], rtol=1e-4, atol=1e-6)
    # The backbone is there once: in no head, and no weight has two names.
    assert len({id(parameter) for parameter in model.state_dict(keep_vars=True).values()}) == len(model.state_dict())


def test_each_task_is_scored_on_its_own_data(tmp_path: Path) -> None:
    lock, task = lock_of(), make_task(lock_of())
    data(tmp_path)
    seed_everything(lock, 0)
    engine = inference.Predictor(lock, build_model(lock), torch.device("cpu"))
    criterion: Any = task.loss()
    joint = open_data_set(lock, tmp_path, "val")
    task.opened({"val": joint})
    loader = open_evaluation(joint, lock, 0, task)
    whole = evaluate(engine, loader, criterion, task, 2)
    assert (whole.samples, [name for name, _ in whole.pictures]) == (7, ["discs", "discs", "train", "train"])
    assert whole.loss == pytest.approx(whole.scores["discs/loss"] + WEIGHT * whole.scores["train/loss"])
    checkpoint = inference.OpenCheckpoint(tmp_path, lock, engine, task, "")
    for name, part in task.parts.items():
        alone, _ = score(checkpoint.of(name), "val", tmp_path / (lock.tasks or {})[name].data.folder)
        assert whole.scores[f"{name}/loss"] == pytest.approx(alone.loss)
        for key, value in alone.scores.items():
            assert whole.scores[f"{name}/{key}"] == pytest.approx(value, nan_ok=True)
        assert len(alone.pictures) == 0
        assert set(part.metrics) <= set(alone.scores)
    with pytest.raises(RuntimeFinding, match="no task `discus`"):
        checkpoint.of("discus")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tasks": None}, "goes with task_type multi"),
        ({"task_type": "segmentation"}, "goes with task_type multi"),
        ({"tasks__discs__task_type": "custom"}, "tasks.discs.task_type is 'custom'"),
        ({"tasks__discs__weight": 0.0}, "tasks.discs.weight is 0.0"),
        ({"tasks__train__detection": None}, "detection section"),
        ({"tasks__discs__data__num_classes": 2}, "class_names has 1 values"),
        ({"checkpoint__best_metric": "dice"}, "best_metric is 'dice'"),
    ],
)
def test_a_lock_with_incompatible_tasks_is_refused(change: dict[str, Any], says: str) -> None:
    broken = content()
    for dotted, value in change.items():
        *parents, last = dotted.split("__")
        inner = broken
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    with pytest.raises(RuntimeFinding) as raised:
        lock_from(broken)
    assert (raised.value.code, says in raised.value.message) == ("R505", True)


def test_the_fingerprint_covers_the_settings_that_affect_weights() -> None:
    lock = lock_of()
    for change, differs in (("weight", True), ("folder", False), ("class_names", False), ("num_classes", True)):
        other = content()
        part = other["tasks"]["train"]
        inner = part if change in part else part["data"]
        inner[change] = {"weight": 2.0, "folder": "x", "class_names": ["x", "y", "z"], "num_classes": 3}[change]
        if change == "num_classes":
            inner |= {"num_classes": 2, "class_names": ["x", "y"]}
        assert (lock_from(other).fingerprint() != lock.fingerprint()) == differs, change


@pytest.mark.slow
def test_a_run_has_the_same_losses_after_a_stop_and_on_two_processes(tmp_path: Path) -> None:
    data(tmp_path / "data")
    changes = {"training__epochs": 3, "checkpoint__every_steps": 1, "model__args": NO_DROPOUT}
    lock = write(tmp_path / "one", content(**changes))
    made = content(**changes, training__gradient_accumulation_steps=1)
    made["parallel"] |= {"world_size": 2, "processes_per_node": 2}
    two = write(tmp_path / "two", made)

    def train(lock: Path, output: str) -> subprocess.CompletedProcess[str]:
        return run_forked(
            "ratc_runtime.train", tmp_path, "--lock", str(lock), "--data-dir", "data", "--output-dir", output
        )

    done = train(lock, "whole")
    assert done.returncode == 0, done.stderr
    whole = results(tmp_path / "whole")
    assert whole["test"]["samples"] == 5
    assert {"discs/dice", "train/map", "discs/loss"} <= whole["test"].keys()
    assert {"discs/dice", "train/map"} <= whole["baseline"].keys()
    assert whole["epochs"][-1]["train_loss"] < whole["epochs"][0]["train_loss"]
    assert "task train: detection, weight 0.25, 10 + 4 + 3 samples" in done.stdout
    assert {path.name for path in (tmp_path / "whole" / "overlays").iterdir()} == {"discs", "train"}

    # From a cache, by loader processes: another way to the same samples.
    loading = {"data__cache": "memory", "data__cache_size_bytes": 1 << 24, "data__num_workers": 1}
    cached = write(tmp_path / "cached", content(**changes, **loading, data__prefetch_factor=2))
    command = [*train_command(cached), "--data-dir", "data", "--output-dir", "stopped"]
    first = stop_midway(command, tmp_path, group_signal(signal.SIGTERM), "epoch 2/3")
    assert "stopped as asked" in first.stdout
    assert train(cached, "stopped").returncode == 0
    # Of each split as many samples as both tasks have.
    assert results(tmp_path / "stopped")["cache"]["of"] == 6 + 3 + 2 + 10 + 4 + 3
    states = [torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True) for name in ("whole", "stopped")]
    assert all(same(states[0][part], states[1][part]) for part in ("model", "optimizer"))

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "ratc_runtime.train", "--lock", str(two), "--data-dir", "data", "--output-dir", "pair"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    for one, other in zip(whole["epochs"], results(tmp_path / "pair")["epochs"], strict=True):
        for key in ("train_loss", "val_loss", "val_discs/dice"):
            assert other[key] == pytest.approx(one[key], rel=1e-4), key


def test_a_debug_run_shortens_each_task(tmp_path: Path) -> None:
    data(tmp_path / "data")
    lock = write(tmp_path / "one", {**content(training__epochs=1, training__max_steps_per_epoch=1), "debug": True})
    done = run_forked("ratc_runtime.train", tmp_path, "--lock", str(lock), "--data-dir", "data")
    assert done.returncode == 0, done.stderr
    assert "task discs: segmentation, weight 1, 4 + 3 + 2 samples" in done.stdout
    assert "task train: detection, weight 0.25, 4 + 4 + 3 samples" in done.stdout
