"""Classification: targets, loss and scores against plain references, and real runs.

The runs stop and continue, use two processes, and end with evaluation and prediction.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from ratc_runtime.commands import evaluate, predict
from ratc_runtime.config.lock import Lock, lock_from
from ratc_runtime.data.class_table import ClassTable
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import fused_maps
from ratc_runtime.models.build import build_model
from ratc_runtime.tasks import make_task
from ratc_runtime.tasks.classification.losses import CrossEntropy
from ratc_runtime.tasks.classification.metrics import Confusion, scores
from ratc_runtime.tasks.classification.task import unnamed

from tests.effort import HANGS_S
from tests.helpers.lockfile import environment, lock_content, results, run_training, train_command, write_data
from tests.helpers.reference_attention import attend
from tests.processes.test_resume import group_signal, same, stop_midway

ALONE = World(0, 1, torch.device("cpu"))
NAMES = ["dark", "light", "mixed"]


def content(**changes: Any) -> dict[str, Any]:
    """A lock of three classes on a small RAT."""
    own = {
        "checkpoint__best_metric": "accuracy",
        "data__dataset": "folders",
        "data__num_classes": 3,
        "data__class_names": NAMES,
        "training__loss": {"name": "cross_entropy", "args": {}},
        "model__args": {**lock_content()["model"]["args"], "mlp_dropout": 0.0},
    }
    found = lock_content(**{**own, **changes})
    found["task_type"] = "classification"
    return found


def lock_of(**changes: Any) -> Lock:
    return lock_from(content(**changes))


def data(folder: Path, train: int = 12, val: int = 6, test: int = 6) -> Path:
    """Write images of noise that are dark, light or half of each, in turn; the same at every call."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            pixels = random.integers(0, 60, (32, 32))
            pixels[:, 16 * (number % 3 == 2) :] += 180 * (number % 3 > 0)
            place = folder / split / NAMES[number % 3]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:02}.png")
    return folder


def write(folder: Path, made: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "lock.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return folder / "lock.yaml"


def test_targets_are_class_numbers() -> None:
    task = make_task(lock_of())
    made = task.collate([2, torch.tensor(0), np.int64(1), torch.tensor([2], dtype=torch.uint8)])
    assert (made.tolist(), made.dtype) == ([2, 0, 1, 2], torch.int64)
    assert task.amounts(None, torch.tensor(1), "a") == {1: 1}
    assert task.class_labels == dict(enumerate(NAMES))


@pytest.mark.parametrize(
    "target", [3, -1, 1.0, True, "1", None, [1], torch.tensor(1.0), torch.tensor(True), torch.tensor([1, 2])]
)
def test_r591_for_a_target_that_is_no_class_number(target: Any) -> None:
    with pytest.raises(RuntimeFinding) as raised:
        make_task(lock_of()).collate([target])
    assert raised.value.code == "R591"


def test_the_loss_equals_its_definition_and_is_a_mean_over_samples() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 2, 2])
    weights, smoothing = [0.5, 2.0, 1.0], 0.2
    chances = logits.softmax(1)
    plain = 0.0
    for row, true in enumerate(target.tolist()):
        for number in range(3):
            wanted = (1 - smoothing) * (number == true) + smoothing / 3
            plain -= weights[number] * wanted * math.log(float(chances[row, number])) / 5
    loss = CrossEntropy(3, weights, smoothing)
    assert float(loss(logits, target)) == pytest.approx(plain, rel=1e-5)
    pieces = [loss(logits[row : row + 1], target[row : row + 1]) for row in range(5)]
    assert float(sum(pieces)) / 5 == pytest.approx(plain, rel=1e-5)
    assert float(CrossEntropy(3)(logits, target)) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, target)), rel=1e-5
    )
    assert loss.state_dict() == {}


@pytest.mark.parametrize(
    "arguments",
    [
        {"class_weights": [1, 2]},
        {"class_weights": [1, 2, -1]},
        {"class_weights": [0, 0, 0]},
        {"class_weights": "balanced"},
        {"class_weights": [1, 2, float("nan")]},
        {"class_weights": 3},
        {"label_smoothing": 1.0},
        {"label_smoothing": -0.1},
        {"label_smoothing": True},
        {"label_smoothing": "a"},
        {"smoothing": 0.1},
    ],
)
def test_unknown_arguments_of_the_loss_give_a_finding(arguments: dict[str, Any]) -> None:
    lock = lock_of()
    loss = lock.training.loss.replace(args=arguments)
    with pytest.raises(RuntimeFinding) as raised:
        make_task(lock.replace(training=lock.training.replace(loss=loss))).loss()
    assert raised.value.code == "R509"


def test_outputs_of_another_shape_give_a_finding() -> None:
    target = torch.tensor([0, 1])
    for output, code in ((torch.zeros(2, 4), "R538"), (torch.zeros(2, 3, 1), "R538"), ({"logits": 1}, "R574")):
        for use in (CrossEntropy(3), Confusion(NAMES).add):
            with pytest.raises(RuntimeFinding) as raised:
                use(output, target)  # type: ignore[operator]
            assert raised.value.code == code
    assert "`model: {output: logits}`" in raised.value.help


def test_scores_equal_their_definitions() -> None:
    # True classes are rows: of 4 dark ones 3 are found, of 2 light ones none, the mixed one is.
    found = scores(torch.tensor([[3.0, 1, 0], [2, 0, 0], [0, 0, 1]]), NAMES)
    assert found["accuracy"] == pytest.approx(4 / 7)
    assert [found[f"f1/{name}"] for name in NAMES] == pytest.approx([2 * 3 / (4 + 5), 0, 1])
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)


@pytest.mark.parametrize("predicted", [0, 2])
def test_a_class_missing_from_the_split_gives_no_score_and_no_mean(predicted: int) -> None:
    matrix = torch.zeros(3, 3)
    matrix[0, predicted] = 1
    matrix[1, 1] = 3
    found = scores(matrix, NAMES)
    assert math.isnan(found["f1/mixed"])
    assert math.isnan(found["macro_f1"])
    assert found["f1/light"] == 1
    assert found["accuracy"] == pytest.approx((4 - (predicted > 0)) / 4)
    assert math.isnan(scores(torch.zeros(3, 3), NAMES)["accuracy"])
    assert any("not scored: mixed" in line for line in make_task(lock_of()).remarks(found))


def test_predictions_are_the_largest_logits() -> None:
    scorer = Confusion(NAMES)
    scorer.add(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 2]))
    scorer.add(torch.eye(3)[[2]], torch.tensor([2]))
    assert scorer.matrix(ALONE).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert scorer.scores(ALONE)["accuracy"] == 0.75


@pytest.mark.parametrize("dims", [2, 3])
def test_every_weight_of_the_head_gets_a_gradient_on_pyramids(dims: int) -> None:
    side = [32] * 2 if dims == 2 else [16] * 3
    arguments = {**lock_content()["model"]["args"], "spatial_dims": dims}
    made = content(model__multi_scale=True, data__scales=[1.0, 0.5], data__image_size=side)
    made["model"]["args"] = arguments
    lock = lock_from(made)
    torch.manual_seed(0)
    task, model = make_task(lock), build_model(lock)
    output = model([torch.rand(2, 1, *side), torch.rand(2, 1, *(length // 2 for length in side))])
    assert output.shape == (2, 3)
    loss: Any = task.loss()(output, task.example_target(2, torch.device("cpu")))
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    # RAT's own, which only masked inputs use.
    assert [name for name in without if "mask_embedding" not in name] == []


@pytest.mark.parametrize("attention", ["chunked", "fused"])
def test_lean_attention_classifies_with_the_same_gradients(attention: str) -> None:
    def step(kind: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        lock = lock_of(model__attention_memory=kind)
        model, task = build_model(lock).double().eval(), make_task(lock)
        torch.manual_seed(1)
        loss = task.loss()(model(torch.rand(2, 1, 32, 32).double()), torch.tensor([0, 2]))
        loss.backward()
        return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    with fused_maps.instead(attend):
        for found, expected in zip(step(attention), step("full"), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_classification_of_one_class_is_refused() -> None:
    made = content()
    made["data"] |= {"num_classes": 1, "class_names": ["a"]}
    with pytest.raises(RuntimeFinding, match="num_classes"):
        lock_from(made)


def test_a_run_learns_and_its_checkpoint_evaluates_and_predicts(tmp_path: Path) -> None:
    data(tmp_path / "data")
    # As a spec without names is compiled: the folders give them, and the checkpoint keeps them.
    changes = {"training__epochs": 6, "training__learning_rate": 0.01, "data__class_names": unnamed(3)}
    made = run_training(write(tmp_path / "compiled", content(**changes)))
    assert made.returncode == 0, made.stderr
    assert "test accuracy" in made.stdout
    found = results(tmp_path / "out")
    assert set(found["test"]) == {"accuracy", "macro_f1", *(f"f1/{name}" for name in NAMES), "loss", "samples"}
    assert found["test"]["accuracy"] >= 0.8
    # A third of the test images is of the commonest class, whichever of the three is taken for it.
    assert found["baseline"] == {"accuracy": pytest.approx(1 / 3), "macro_f1": pytest.approx(1 / 6)}
    drawn = sorted(path.name for path in (tmp_path / "out/overlays").iterdir())
    assert "confusion.png" in drawn
    assert len(drawn) > 1
    run, folder = str(tmp_path / "out"), tmp_path / "put to use"
    arguments = [run, "--data-dir", str(tmp_path / "data"), "-o", str(folder / "scores.json")]
    assert evaluate.main([*arguments, "--pictures", str(folder / "pictures")]) == 0
    again = json.loads((folder / "scores.json").read_text())["scores"]
    assert again == pytest.approx({key: value for key, value in found["test"].items() if key != "samples"}, abs=1e-5)
    with Image.open(folder / "pictures/confusion.png") as picture:
        assert min(picture.size) > 300
    assert predict.main([run, str(tmp_path / "data/test/light"), "-o", str(folder)]) == 0
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["01.png", "04.png"]
    for row in rows:
        chances = {name: float(row[f"probability/{name}"]) for name in NAMES}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-4)
        assert (row["label"], float(row["probability"])) == (
            max(chances, key=chances.__getitem__),
            max(chances.values()),
        )


def test_predictions_are_written_as_a_readable_table(tmp_path: Path) -> None:
    folder = data(tmp_path / "data")
    task = make_task(lock_of())
    writer = task.writer(tmp_path, 0.5)
    from ratc_runtime.data.unlabelled import Piece

    for number, name in enumerate(("a, b.png", 'c".png', "d.png")):
        (folder / "test" / NAMES[number] / f"{number:02}.png").rename(folder / name)
        writer.add(Piece(Path(name), size=(32, 32)), torch.eye(3)[[number]])
    writer.close()
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    table = "\n".join([f"split,{rows[0]}", *(f"val,{row}" for row in rows[1:])])
    (folder / "labels.csv").write_text(table)
    read = ClassTable(folder, "val", (32, 32), 1, num_classes=3)
    assert (read.names, read.class_names) == (["a, b.png", 'c".png', "d.png"], NAMES)
    assert [int(read[index]["target"]) for index in range(3)] == [0, 1, 2]


@pytest.mark.slow
def test_a_run_has_the_same_losses_after_a_stop_and_on_two_processes(tmp_path: Path) -> None:
    # Five test images: the last batch of two processes is padded, and the padding is not counted.
    data(tmp_path / "data", test=5)
    loss = {"name": "cross_entropy", "args": {"class_weights": [1, 3, 0.5], "label_smoothing": 0.1}}
    changes = {"training__epochs": 3, "checkpoint__every_steps": 1, "training__gradient_clipping": None}
    made = content(**changes)
    made["training"]["loss"] = loss
    lock = write(tmp_path / "one", made)
    pair = copy.deepcopy(made)
    pair["training"] |= {"micro_batch_size": 1, "gradient_accumulation_steps": 2}
    pair["parallel"] |= {"world_size": 2, "processes_per_node": 2}
    cached = copy.deepcopy(made)
    cached["data"] |= {"cache": "memory", "cache_size_bytes": 1 << 24, "num_workers": 1, "prefetch_factor": 2}

    assert run_training(lock, "--output-dir", "whole").returncode == 0
    # From a cache, by a loader process: another way to the same samples.
    stopped = write(tmp_path / "cached", cached)
    command = train_command(stopped, "--output-dir", "stopped")
    first = stop_midway(command, tmp_path, group_signal(signal.SIGTERM), "epoch 2/3")
    assert "stopped as asked" in first.stdout
    assert run_training(stopped, "--output-dir", "stopped").returncode == 0
    states = [torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True) for name in ("whole", "stopped")]
    assert all(same(states[0][part], states[1][part]) for part in ("model", "optimizer"))

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, *train_command(write(tmp_path / "two", pair), "--output-dir", "pair")[1:]]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    one, two = results(tmp_path / "whole"), results(tmp_path / "pair")
    for before, after in zip(one["epochs"], two["epochs"], strict=True):
        assert after["train_loss"] == pytest.approx(before["train_loss"], rel=1e-4)
        assert after["val_accuracy"] == before["val_accuracy"]
    assert two["test"] == pytest.approx(one["test"], rel=1e-4)
    assert two["baseline"] == one["baseline"]
    assert one["test"]["samples"] == 5
    drawn = [sorted(path.name for path in (tmp_path / name / "overlays").iterdir()) for name in ("whole", "pair")]
    assert drawn[0] == drawn[1]


def test_classification_trains_beside_other_tasks_on_one_trunk(tmp_path: Path) -> None:
    made = content(data__dataset="joint", checkpoint__best_metric="kinds/macro_f1", training__epochs=1)
    made["task_type"] = "multi"
    made["training"]["loss"] = {"name": "weighted_sum", "args": {}}
    names = {"num_classes": 3, "class_names": NAMES, "ignore_index": None, "args": {}}
    discs = {"folder": "discs", "dataset": "isic", "num_classes": 1, "class_names": ["disc"]}
    made["tasks"] = {
        "kinds": {
            "task_type": "classification",
            "weight": 2.0,
            "loss": {"name": "cross_entropy", "args": {"label_smoothing": 0.1}},
            "data": {**names, "folder": "kinds", "dataset": "folders"},
        },
        "discs": {
            "task_type": "segmentation",
            "weight": 1.0,
            "loss": {"name": "dice", "args": {}},
            "data": {**names, **discs},
        },
    }
    data(tmp_path / "data/kinds")
    write_data(tmp_path / "data/discs", train=8, val=2, test=2)
    done = run_training(write(tmp_path / "compiled", made))
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "out")
    assert {"kinds/accuracy", "kinds/macro_f1", "kinds/f1/dark", "discs/dice"} <= set(found["test"])
    assert {"kinds/accuracy", "discs/dice"} <= set(found["baseline"])
    assert (tmp_path / "out/overlays/kinds/confusion.png").is_file()
    assert not (tmp_path / "out/overlays/discs/confusion.png").exists()
    place = tmp_path / "predicted"
    arguments = [str(tmp_path / "out"), str(tmp_path / "data/kinds/test/dark"), "--task", "kinds"]
    assert predict.main([*arguments, "-o", str(place)]) == 0
    assert len((place / "predictions.csv").read_text().splitlines()) == 3
