"""From a spec to a trained model, through the emitted script: real processes, Accelerate and RAT, tiny images."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.effort import HANGS_S
from tests.places import ROOT

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}",
    "RATC_PYTHON": sys.executable,
    "RATC_TRUST": "1",
}
SPEC = {
    "experiment_name": "tiny",
    "model": {"feature_dims": 16, "num_blocks": 1, "num_heads": 2, "iters": 1, "sga_kernel_size": 5, "stride": 4},
    "training": {"epochs": 2, "batch_size": 2, "target_batch_size": 4, "learning_rate": 0.003},
    "data": {"data_dir": "data", "image_size": 32, "channels": 1, "num_workers": 1},
    "logging": {"backend": "none", "use_mlflow": False},
    "resources": {"num_gpus": 0, "cpus": 1},
}
OWN_CODE = '''
import torch

def model(width):
    return torch.nn.Sequential(torch.nn.Conv2d(1, width, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(width, 1, 1))

class Squares(torch.utils.data.Dataset):
    """`split` and `data_dir` come from the runtime, `count` from the spec's args."""
    def __init__(self, data_dir, split, count, **others):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        image = torch.zeros(1, 16, 16)
        image[:, index % 8 : index % 8 + 6, 4:10] = 1.0
        return {"image": image, "target": image.clone()}

def squared(scale):
    return lambda logits, target: scale * ((logits.sigmoid() - target) ** 2).mean()
'''


def write_images(folder: Path, train: int = 8) -> None:
    """Discs of random place and size, with their masks, as ISIC 2018 lays them out."""
    names = {"train": [f"t{i}" for i in range(train)], "val": ["v0", "v1"], "test": ["e0", "e1"]}
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :40]
    for name in [name for split in names.values() for name in split]:
        y, x, radius = random.uniform(10, 30), random.uniform(10, 30), random.uniform(5, 9)
        mask = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        image = np.clip(mask * 120 + random.normal(60, 20, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray((mask * 255).astype(np.uint8)).save(folder / "masks" / f"{name}_segmentation.png")
    (folder / "splits.json").write_text(json.dumps(names))


def write_spec(folder: Path, **sections) -> Path:
    """SPEC with sections laid over it, as YAML."""
    spec = {key: dict(value) if isinstance(value, dict) else value for key, value in SPEC.items()}
    for key, value in sections.items():
        spec[key] = {**spec.get(key, {}), **value} if isinstance(value, dict) else value
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def compiled(spec: Path) -> Path:
    """The compiled script of a spec."""
    run([sys.executable, "-m", "ratc", "compile", str(spec)])
    return spec.parent / "compiled" / "tiny" / "local" / "run.sh"


def run(command, status=0, **variables):
    done = subprocess.run(
        [str(part) for part in command],
        env={**ENVIRONMENT, **variables},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def folder(tmp_path):
    """A folder with a name that wants quoting, and images in it."""
    place = tmp_path / "it's a $(folder)"
    write_images(place / "data")
    return place


@pytest.mark.slow
def test_the_script_trains_from_any_folder_and_skips_a_finished_run(folder, tmp_path):
    script = compiled(write_spec(folder))
    done = subprocess.run(
        [script], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    first = results(folder / "outputs/tiny")
    assert first["status"] == "finished"
    assert [epoch["epoch"] for epoch in first["epochs"]] == [1, 2]
    assert (folder / "outputs/tiny/curves.png").stat().st_size > 5000
    assert list((folder / "outputs/tiny/overlays").glob("*.png"))
    again = run([script])
    assert "already finished" in again.stdout
    assert results(folder / "outputs/tiny") == first


@pytest.mark.slow
def test_variables_of_the_script_set_the_data_and_output_folders(folder, tmp_path):
    script = compiled(write_spec(folder, training={"epochs": 1}))
    shutil.move(folder / "data", tmp_path / "other data")
    done = subprocess.run(
        [script],
        env={**ENVIRONMENT, "RAT_DATA_DIR": "other data", "RAT_OUTPUT_DIR": "other results", "RAT_BATCH_SIZE": "7"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "other results")["status"] == "finished"
    assert not (folder / "outputs").exists()
    assert "RAT_BATCH_SIZE is read when compiling" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", [True, False], ids=["accelerate", "plain"])
def test_a_signal_to_the_script_saves_and_the_same_command_continues(folder, accelerate):
    training = {"epochs": 12, "use_accelerate": accelerate}
    undisturbed = folder / "outputs" / "undisturbed"
    script = compiled(write_spec(folder, training=training))
    run([script], RAT_OUTPUT_DIR=str(undisturbed))
    process = subprocess.Popen([script], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if line.startswith("epoch 3/12"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=HANGS_S) == 0, rest
    assert "stopped as asked" in rest
    stopped = results(folder / "outputs/tiny")
    assert stopped["status"] == "stopped"
    assert len(stopped["epochs"]) < 12
    assert not (folder / "outputs/tiny/STOP").exists()
    run([script])
    finished, expected = results(folder / "outputs/tiny"), results(undisturbed)
    assert finished["status"] == "finished"
    for mine, theirs in zip(finished["epochs"], expected["epochs"], strict=True):
        assert {key: mine[key] for key in mine if key != "seconds"} == {
            key: theirs[key] for key in theirs if key != "seconds"
        }
    assert finished["test"] == expected["test"]


@pytest.mark.slow
def test_r501_for_an_edited_artifact_before_anything_starts(folder):
    script = compiled(write_spec(folder))
    accelerate = script.with_name("accelerate.yaml")
    accelerate.write_text(accelerate.read_text().replace("num_processes: 1", "num_processes: 2"))
    start = time.monotonic()
    done = run([script], status=1)
    print(f"refused after {time.monotonic() - start:.2f} s")
    assert "error[R501]" in done.stderr
    assert not (folder / "outputs").exists()


@pytest.mark.slow
def test_the_script_returns_the_status_of_a_failed_training(folder):
    script = compiled(write_spec(folder))
    (folder / "data" / "images" / "t3.png").write_bytes(b"not a picture")
    done = run([script], status=1)
    assert "error[R506]" in done.stderr
    assert "t3.png" in done.stderr
    assert "on_bad_sample: skip" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_model_data_and_loss_are_imported_from_beside_the_spec(folder):
    (folder / "own.py").write_text(OWN_CODE)
    spec = write_spec(
        folder,
        model={"name": "own:model", "args": {"width": 4}},
        data={"dataset": "own:Squares", "args": {"count": 8}, "image_size": 16},
        training={"loss": "own:squared", "loss_args": {"scale": 10.0}, "epochs": 20, "learning_rate": 0.05},
    )
    text = yaml.safe_load(spec.read_text())
    for key in ("feature_dims", "num_blocks", "num_heads", "iters", "sga_kernel_size", "stride"):
        del text["model"][key]
    spec.write_text(yaml.safe_dump(text))
    run([compiled(spec)])
    epochs = results(folder / "outputs/tiny")["epochs"]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"precision": "bf16", "epochs": 1}},
        {"model": {"multi_scale": True}, "data": {"scales": [1.0, 0.5]}, "training": {"epochs": 1, "loss": "dice"}},
        {"debug": True, "training": {"scheduler": "step", "activation_checkpointing": True, "use_accelerate": False}},
    ],
    ids=["bf16", "pyramid", "debug"],
)
def test_each_variant_of_a_spec_trains(folder, changes):
    run([sys.executable, "-m", "ratc", "train", str(write_spec(folder, **changes))])
    (found,) = (folder / "outputs").glob("*/results.json")
    assert json.loads(found.read_text())["status"] == "finished"


@pytest.mark.slow
def test_mlflow_and_tensorboard_receive_the_curves(folder):
    spec = write_spec(folder, logging={"backend": "tensorboard", "use_mlflow": True, "log_every_steps": 1})
    run([compiled(spec)])
    output = folder / "outputs/tiny"
    assert list((output / "tensorboard").glob("events.*"))
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    (tracked,) = client.search_runs([experiment.experiment_id])
    epochs = results(output)["epochs"]
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["training.micro_batch_size"] == "2"
    assert [point.value for point in client.get_metric_history(tracked.info.run_id, "val/dice")] == [
        epoch["val_dice"] for epoch in epochs
    ]


@pytest.mark.slow
def test_the_brain3d_example_trains_to_scores_for_each_class(tmp_path):
    """`specs/brain3d` made short: the real volume, its script, two scales, and distances besides."""
    shutil.copy(ROOT / "specs/brain3d/config.yaml", tmp_path / "spec.yaml")
    run([sys.executable, "-m", "ratc", "sample-data", "brain3d", tmp_path / "data"])
    splits = json.loads((tmp_path / "data/splits.json").read_text())
    (tmp_path / "data/splits.json").write_text(json.dumps({**splits, "train": splits["train"][:1]}))
    short = ("training.epochs=1", "data.image_size=16", "model.stride=6", "training.target_batch_size=20")
    short += ("training.batch_size=20", "evaluation.hausdorff=true", "logging.use_mlflow=false")
    short += (
        "data.scales=[1.0, 0.5]",
        "model.feature_dims=8",
        "experiment_name=tiny",
        "checkpoint.best_metric=hausdorff95",
    )
    options = [part for change in short for part in ("--set", change)]
    run([sys.executable, "-m", "ratc", "compile", tmp_path / "spec.yaml", *options])
    done = run([tmp_path / "compiled/tiny/local/run.sh"], TMPDIR=str(tmp_path))
    found = results(tmp_path / "outputs/tiny")
    test = found["test"]
    assert test["samples"] == 10 * 2 * 10
    assert test["dice"] == pytest.approx((test["dice/grey matter"] + test["dice/white matter"]) / 2)
    assert test["hausdorff95"] is None or 0 < test["hausdorff95"] <= test["hausdorff"] <= 16 * 3**0.5
    assert {"hausdorff_undefined", "iou/grey matter"} <= set(test)
    assert 0 < found["baseline"]["dice"] < 1
    assert "by class: grey matter" in done.stdout
    assert len(list((tmp_path / "outputs/tiny/overlays").glob("mni152_y138_*.png"))) == 4
    assert list(tmp_path.glob("ratc-volumes-*/*.image.npy"))


@pytest.mark.slow
def test_the_shapes_example_trains_to_average_precision(tmp_path):
    """`specs/shapes` made short: the sample data, cut to a few images, and the emitted script."""
    shutil.copy(ROOT / "specs/shapes/config.yaml", tmp_path / "spec.yaml")
    run([sys.executable, "-m", "ratc", "sample-data", "shapes", tmp_path / "data"])
    for split, count in (("train", 16), ("val", 8), ("test", 8)):
        path = tmp_path / f"data/annotations/instances_{split}.json"
        content = json.loads(path.read_text())
        content["images"] = content["images"][:count]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
        path.write_text(json.dumps(content))
    short = ("training.epochs=2", "training.warmup_epochs=0", "model.feature_dims=8", "experiment_name=tiny")
    options = [part for change in (*short, "logging.use_mlflow=false") for part in ("--set", change)]
    run([sys.executable, "-m", "ratc", "compile", tmp_path / "spec.yaml", *options])
    done = run([tmp_path / "compiled/tiny/local/run.sh"])
    found = results(tmp_path / "outputs/tiny")
    assert (found["test"]["samples"], len(found["epochs"])) == (8, 2)
    assert found["epochs"][1]["train_loss"] < found["epochs"][0]["train_loss"]
    assert {"map", "map_50", "map_75", "map/circle", "map/square", "map/triangle"} <= set(found["test"])
    assert 0 <= found["test"]["map"] <= 1
    assert "test mAP" in done.stdout
    assert list((tmp_path / "outputs/tiny/overlays").glob("*.png"))


@pytest.mark.slow
def test_the_digits_example_trains_to_accuracy(tmp_path):
    """`specs/digits` made short: the sample data, listed in a table of a few, and the emitted script."""
    shutil.copy(ROOT / "specs/digits/config.yaml", tmp_path / "spec.yaml")
    run([sys.executable, "-m", "ratc", "sample-data", "digits", tmp_path / "data"])
    header, *rows = (tmp_path / "data/labels.csv").read_text().splitlines()
    (tmp_path / "data/few.csv").write_text("\n".join([header, *rows[:160], *rows[1200:1240], *rows[1450:1490]]))
    few = ("data.dataset=csv", "data.args={file: few.csv}", "training.epochs=2", "training.warmup_epochs=0")
    options = [
        part for change in (*few, "experiment_name=tiny", "logging.use_mlflow=false") for part in ("--set", change)
    ]
    run([sys.executable, "-m", "ratc", "compile", tmp_path / "spec.yaml", *options])
    done = run([tmp_path / "compiled/tiny/local/run.sh"])
    found = results(tmp_path / "outputs/tiny")
    assert (found["test"]["samples"], len(found["epochs"])) == (40, 2)
    assert found["epochs"][1]["train_loss"] < found["epochs"][0]["train_loss"]
    assert {"accuracy", "macro_f1", *(f"f1/{digit}" for digit in range(10))} <= set(found["test"])
    assert "test accuracy" in done.stdout
    assert (tmp_path / "outputs/tiny/overlays/confusion.png").is_file()


@pytest.mark.parametrize("name", ["brain", "brain3d", "brain_tuning", "shapes", "digits"])
def test_committed_files_of_the_examples_are_up_to_date(name):
    run([sys.executable, "-m", "ratc", "compile", ROOT / f"specs/{name}/config.yaml", "--check"])


def test_compiler_and_runtime_know_the_same_loss_arguments():
    import inspect

    from ratc_runtime.data.sources import BUILT_IN
    from ratc_runtime.tasks.classification.losses import LOSSES as LABELS
    from ratc_runtime.tasks.detection.losses import LOSSES as BOXES
    from ratc_runtime.tasks.segmentation.losses import BINARY, MULTI

    from ratc.catalog.tasks import DATASETS, DIMENSIONS, LOSSES
    from ratc.rules.model_arguments import (
        BOX_LOSS_ARGUMENTS,
        CLASS_LOSS_ARGUMENTS,
        DATA_ARGUMENTS,
        LABEL_LOSS_ARGUMENTS,
        LOSS_ARGUMENTS,
    )

    def arguments(called):
        return tuple(name for name in inspect.signature(called).parameters if name not in ("classes", "ignore_index"))

    assert {name: arguments(loss) for name, loss in BINARY.items()} == LOSS_ARGUMENTS
    assert {name: arguments(loss) for name, loss in MULTI.items()} == CLASS_LOSS_ARGUMENTS
    assert {name: arguments(loss) for name, loss in BOXES.items()} == BOX_LOSS_ARGUMENTS
    assert {name: arguments(loss) for name, loss in LABELS.items()} == LABEL_LOSS_ARGUMENTS
    known = {"segmentation": {*BINARY, *MULTI}, "detection": set(BOXES), "classification": set(LABELS)}
    assert {task: set(names) for task, names in LOSSES.items() if names} == known
    assert {name: one.dims for name, one in BUILT_IN.items()} == DIMENSIONS
    assert {name for names in DATASETS.values() for name in names} == BUILT_IN.keys()
    given = {"data_dir", "split", "image_size", "channels", "scales", "skip_missing", "num_classes"}
    for name, one in BUILT_IN.items():
        own = inspect.signature(one.made).parameters.keys() - given - set(one.takes)
        assert own == set(DATA_ARGUMENTS.get(name, ())), name


def test_compiler_and_runtime_know_the_same_tasks():
    from ratc_runtime import tasks
    from ratc_runtime.config.sections import Part as PartOfLock

    from ratc import resources
    from ratc.catalog.tasks import TASKS
    from ratc.spec.tasks import Part

    known = {name: (task.scores, task.part) for name, task in TASKS.items()}
    assert {name: (tuple(kind.metrics), kind.part) for name, kind in tasks.TASKS.items()} == known
    parts = [name for name, task in TASKS.items() if task.part]
    assert parts == ["segmentation", "detection", "classification"]
    for model in (Part, PartOfLock):
        assert model.model_json_schema()["properties"]["task_type"]["enum"] == parts
    for name in ("experiment", "lock"):
        assert resources.schema(name)["properties"]["task_type"]["enum"] == list(TASKS)


def test_model_defaults_of_the_schema_equal_those_of_rat():
    import inspect

    from ratc_runtime.models import rat_patches

    from ratc import resources

    ResolutionAwareTransformer = rat_patches.import_rat()

    published = inspect.signature(ResolutionAwareTransformer).parameters
    ours = resources.schema("experiment")["properties"]["model"]["properties"]
    for name, schema in ours.items():
        if name in ("name", "multi_scale", "args", "input_features", "attention_memory", "output"):
            continue
        assert schema["default"] == published[name].default, name
