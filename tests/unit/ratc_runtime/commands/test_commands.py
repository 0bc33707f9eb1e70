"""`ratc_runtime evaluate` scores a checkpoint, `ratc_runtime predict` writes masks and boxes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from PIL import Image
from ratc_runtime import inference
from ratc_runtime.commands import evaluate, predict
from ratc_runtime.config.lock import lock_from, read_lock
from ratc_runtime.data.coco import CocoDetection
from ratc_runtime.data.unlabelled import Piece, find_images
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.tasks.detection.writing import BoxWriter
from safetensors.torch import save_file

from tests.helpers.lockfile import BASE, lock_content, results, run_training, write_data, write_lock

#: Logits that are the image itself, above and below one half.
NET = """\
import torch


class Itself(torch.nn.Module):
    def __init__(self, classes=1):
        super().__init__()
        self.classes = classes
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, image):
        bright = (image - 0.5) * 20 * self.scale
        return bright if self.classes == 1 else torch.cat([-bright, bright], 1)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that has ended: `data`, `compiled/lock.yaml` and `out`."""
    folder = tmp_path_factory.mktemp("run")
    write_data(folder / "data", test=5)
    done = run_training(write_lock(folder / "compiled"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns weights and a lock of a model whose logits are the image."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(classes: int = 1, **changes: Any) -> list[str]:
        net = {**BASE["model"], "name": "net:Itself", "args": {"classes": classes}}
        lock = write_lock(tmp_path / "compiled", model=net, data__num_classes=classes, **changes)
        save_file({"scale": torch.ones(())}, tmp_path / "weights.safetensors")
        return [str(tmp_path / "weights.safetensors"), "--lock", str(lock)]

    return made


@pytest.mark.slow
def test_evaluate_reproduces_the_test_scores_of_the_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run)
    scores, drawn = tmp_path / "scores/test.json", tmp_path / "drawn"
    assert evaluate.main(["out", "--device", "cpu", "-o", str(scores), "--pictures", str(drawn)]) == 0
    found, expected = json.loads(scores.read_text()), results(run / "out")["test"]
    assert found["samples"] == expected["samples"] == 5
    for name, value in found["scores"].items():
        assert value == pytest.approx(expected[name], rel=1e-5), name
    assert Path(found["checkpoint"]) == Path("out/checkpoints/best.pt")
    assert found["fingerprint"] == read_lock(run / "compiled/lock.yaml").fingerprint()
    assert len(list(drawn.iterdir())) == 4
    assert capsys.readouterr().out.startswith("test Dice 0.")
    # Another split, another batch, the data elsewhere: the validation score of that epoch.
    shutil.copytree(run / "data", tmp_path / "elsewhere")
    monkeypatch.setenv("RAT_DATA_DIR", str(tmp_path / "elsewhere"))
    assert evaluate.main(["out/checkpoints/last.pt", "--split", "val", "--batch-size", "3", "-o", str(scores)]) == 0
    last = results(run / "out")["epochs"][-1]
    assert json.loads(scores.read_text())["scores"]["dice"] == pytest.approx(last["val_dice"], rel=1e-5)


@pytest.mark.slow
def test_predicted_masks_reproduce_the_test_scores(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((run / "data/images").glob("test*.png")):
        shutil.copy(path, images)
    assert predict.main(["out", str(images), "-o", str(tmp_path / "masks"), "--batch-size", "2"]) == 0
    hit = extra = missed = 0
    for path in images.iterdir():
        found = np.asarray(Image.open(tmp_path / f"masks/{path.stem}_segmentation.png")) == 255
        true = np.asarray(Image.open(run / f"data/masks/{path.stem}_segmentation.png")) >= 128
        hit, extra, missed = hit + (found & true).sum(), extra + (found & ~true).sum(), missed + (~found & true).sum()
    assert 2 * hit / (2 * hit + extra + missed) == pytest.approx(results(run / "out")["test"]["dice"], rel=1e-6)


def test_predicted_masks_have_the_image_size_and_bad_images_are_named(
    itself: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    picture = np.zeros((90, 200), np.uint8)
    picture[:, 120:] = 255
    for name in ("wide.png", "b.JPG"):
        Image.fromarray(picture).save(images / name)
    (images / "cut.png").write_bytes((images / "wide.png").read_bytes()[:40])
    (images / "notes.txt").write_text("no image")
    command = [*itself(), str(images), "-o", str(tmp_path / "masks")]
    assert predict.main(command) == 1
    said = capsys.readouterr()
    assert "cut.png cannot be decoded" in said.err
    assert "2 of 3 images predicted" in said.out
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        "b_segmentation.png",
        "wide_segmentation.png",
    ]
    mask = np.asarray(Image.open(tmp_path / "masks/wide_segmentation.png"))
    assert mask.shape == (90, 200)
    assert set(np.unique(mask)) == {0, 255}
    edge = np.argmax(mask, axis=1)
    assert np.abs(edge - 120).max() <= 200 / 32  # a pixel of what the model saw
    # What is there is not written over, and nothing is computed before that is known.
    assert predict.main(command) == 1
    assert "error[R543]" in capsys.readouterr().err
    assert predict.main([*command, "--force"]) == 1
    shutil.copy(images / "wide.png", images / "b.png")
    assert predict.main([*command, "--force"]) == 1
    assert "would be written to the same file, b_segmentation.png" in capsys.readouterr().err


def test_predicted_masks_of_two_classes_hold_class_numbers(itself: Any, tmp_path: Path) -> None:
    picture = np.zeros((32, 32), np.uint8)
    picture[8:, :] = 255
    Image.fromarray(picture).save(tmp_path / "one.png")
    names = ["background", "bright"]
    command = itself(classes=2, data__class_names=names, training__loss={"name": "cross_entropy", "args": {}})
    assert predict.main([*command, str(tmp_path / "one.png"), "-o", str(tmp_path / "masks")]) == 0
    mask = np.asarray(Image.open(tmp_path / "masks/one_segmentation.png"))
    assert (mask == (picture > 0)).all()


@pytest.mark.parametrize("axes", ["RAS", "LPI", "SAR", "PSL"])
def test_a_predicted_volume_keeps_the_orientation_of_its_file(itself: Any, tmp_path: Path, axes: str) -> None:
    random = np.random.default_rng(3)
    bright = random.random((11, 23, 17)) > 0.6
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    voxels = apply_orientation(bright, turn).astype(np.float32)
    affine = np.linalg.inv(np.eye(4))
    affine = affine @ nibabel.orientations.inv_ornt_aff(turn, bright.shape)
    assert "".join(nibabel.aff2axcodes(affine)) == axes
    (tmp_path / "volumes").mkdir()
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "volumes/scan.nii.gz")
    changes = {
        "data__dataset": "volumes",
        "data__image_size": [8, 8, 8],
        "data__args": {"window": [0.0, 1.0]},
    }
    command = [*itself(**changes), str(tmp_path / "volumes"), "-o", str(tmp_path / "masks"), "--batch-size", "5"]
    assert predict.main([*command, "--overlap", "0.5"] if axes == "SAR" else command) == 0
    written = nibabel.load(tmp_path / "masks/scan_segmentation.nii.gz")
    assert (np.asarray(written.dataobj) == (voxels > 0.5)).all()
    assert np.allclose(written.affine, affine)
    assert (io_orientation(written.affine) == io_orientation(affine)).all()


def fine(shape: tuple[int, ...], seed: int) -> Any:
    """Return a picture of single bright pixels, which no resized one holds."""
    return ((np.random.default_rng(seed).random(shape) > 0.7) * 255).astype(np.uint8)


@pytest.mark.parametrize("overlap", ["0", "0.5"])
def test_large_images_are_predicted_at_full_resolution(itself: Any, tmp_path: Path, overlap: str) -> None:
    shapes = {"wide": (45, 100), "tile": (32, 32), "small": (20, 70)}
    (tmp_path / "images").mkdir()
    for number, (name, shape) in enumerate(shapes.items()):
        Image.fromarray(fine(shape, number)).save(tmp_path / f"images/{name}.png")
    command = [*itself(), str(tmp_path / "images"), "-o", str(tmp_path / "masks"), "--batch-size", "3"]
    assert predict.main([*command, "--overlap", overlap]) == 0
    for number, (name, shape) in enumerate(shapes.items()):
        written = np.asarray(Image.open(tmp_path / f"masks/{name}_segmentation.png"))
        assert np.array_equal(written, fine(shape, number)), name


def test_large_images_are_scored_at_full_resolution(itself: Any, tmp_path: Path) -> None:
    write_data(tmp_path / "data", test=3)
    for number in range(3):
        values = fine((50 + 7 * number, 90), number)
        Image.fromarray(values).save(tmp_path / f"data/images/test{number}.png")
        Image.fromarray(values).save(tmp_path / f"data/masks/test{number}_segmentation.png")
    command = [*itself(), "--data-dir", str(tmp_path / "data"), "-o", str(tmp_path / "scores.json")]
    found = {}
    for name, more in (("resized", []), ("whole", ["--overlap", "0.25", "--pictures", str(tmp_path / "drawn")])):
        assert evaluate.main([*command, *more]) == 0
        found[name] = json.loads((tmp_path / "scores.json").read_text())
    assert found["whole"]["scores"]["dice"] == 1.0
    assert found["resized"]["scores"]["dice"] < 0.9
    assert (found["whole"]["samples"], found["whole"]["overlap"]) == (3, 0.25)
    assert "overlap" not in found["resized"]
    assert len(list((tmp_path / "drawn").iterdir())) == 3


def test_each_whole_volume_is_scored_once(itself: Any, tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    names = [f"scan{number}" for number in range(2)]
    (tmp_path / "data/splits.json").write_text(json.dumps({"train": [], "val": [], "test": names}))
    for number, name in enumerate(names):
        voxels = (fine((11, 23, 17), number) / 255).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"data/images/{name}.nii.gz")
        mask = nibabel.Nifti1Image(voxels.astype(np.uint8), np.eye(4))
        nibabel.save(mask, tmp_path / f"data/masks/{name}_segmentation.nii.gz")
    changes = {
        "data__dataset": "volumes",
        "data__image_size": [8, 8, 8],
        "data__args": {"window": [0.0, 1.0]},
    }
    command = [*itself(**changes), "--data-dir", str(tmp_path / "data"), "-o", str(tmp_path / "scores.json")]
    assert evaluate.main([*command, "--overlap", "0.5"]) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert (found["samples"], found["scores"]["dice"]) == (2, 1.0)


@pytest.mark.parametrize("main", [evaluate.main, lambda words: predict.main([*words, ".", "-o", "masks"])])
def test_overlap_is_refused_for_a_custom_task(
    itself: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], main: Any
) -> None:
    own = {"task_type": "custom", "data__dataset": "mine:Data", "checkpoint__best_metric": "loss"}
    command = itself(**own, training__loss={"name": "torch.nn:MSELoss", "args": {}})
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert main([*command, "--trust", "--overlap", "0.5"]) == 1
    assert "error[R542]: only patches of segmentation can be put together" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--overlap", "1"])


def test_predicted_boxes_are_in_file_pixels_and_readable_as_a_data_set(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 80), np.uint8)).save(tmp_path / "a.png")
    writer = BoxWriter(tmp_path / "annotations", ["dot", "ring"], 0.5)
    writer.folder.mkdir()
    logits = torch.full((1, 1, 2, 2), -9.0)
    logits[0, 0, 0, 1] = 9.0
    boxes = torch.tensor([[[[0.5, 0.5, 0.25, 0.5], [0.1, 0.1, 0.1, 0.1]]]])
    writer.add(Piece(tmp_path / "a.png", None, (40, 80)), {"logits": logits, "boxes": boxes})
    writer.close()
    content = json.loads((tmp_path / "annotations/detections.json").read_text())
    (box,) = content["annotations"]
    assert (box["bbox"], box["category_id"], box["image_id"]) == ([30.0, 10.0, 20.0, 20.0], 2, 1)
    assert box["score"] == pytest.approx(1.0, abs=1e-3)
    (tmp_path / "annotations/detections.json").rename(tmp_path / "annotations/instances_test.json")
    (item,) = CocoDetection(tmp_path, "test", (40, 80), channels=1, num_classes=2)
    assert item["target"]["boxes"].tolist() == [[30.0, 10.0, 50.0, 30.0]]
    assert item["target"]["labels"].tolist() == [1]


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["nowhere.pt"], "R508", "nowhere.pt"),
        (["weights.safetensors"], "R508", "holds no lock"),
        (["weights.safetensors", "--lock", "nowhere.yaml"], "R505", "nowhere.yaml"),
        (["weights.safetensors", "--lock", "compiled/lock.yaml", "--device", "tpu9"], "R504", "no device tpu9"),
        (["other.safetensors", "--lock", "compiled/lock.yaml"], "R509", "do not fit the model net:Itself"),
    ],
)
def test_evaluate_and_predict_refuse_unusable_checkpoints(
    itself: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], code: str, says: str
) -> None:
    itself()
    save_file({"other": torch.ones(())}, tmp_path / "other.safetensors")
    for main in (evaluate.main, lambda words: predict.main([*words, ".", "-o", "masks"])):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert f"error[{code}]" in said
        assert says in said
        assert "Traceback" not in said


def test_r542_for_image_files_with_a_custom_data_set(itself: Any, tmp_path: Path) -> None:
    weights, _, lock = itself(data__dataset="own:Data")
    model = inference.open_checkpoint(Path(weights), Path(lock), "cpu")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(RuntimeFinding, match="R542"):
        predict.predict(model, [tmp_path / "a.png"], tmp_path / "masks")


def test_nan_outputs_write_no_mask(itself: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = itself()
    save_file({"scale": torch.full((), float("nan"))}, command[0])
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "one.png")
    assert predict.main([*command, str(tmp_path / "one.png"), "-o", str(tmp_path / "masks")]) == 1
    assert "error[R597]: the model's outputs for " in capsys.readouterr().err
    assert not list((tmp_path / "masks").iterdir())


def test_files_that_are_no_images_are_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.PNG", "b.JPEG", "c.tif", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"")
    found = find_images(tmp_path, lock_from(lock_content()))
    assert [path.name for path in found] == ["a.PNG", "b.JPEG"]
    assert "2 of 4 files" in capsys.readouterr().err


OWN = """\
import torch


class Words:
    names = ["one/1", "two/2", "three"]

    def __init__(self, data_dir, split):
        self.split = split

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        ids = torch.arange(4) + index
        return {"image": {"ids": ids, "mask": ids > 1}, "target": {"labels": ids}, "name": self.names[index]}


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch):
        logits = batch["ids"] * self.scale * batch["mask"]
        return {"logits": logits, "states": [logits + 1]}


def loss():
    return lambda output, target: ((output["logits"] - target["labels"]) ** 2).mean()


def agreement():
    return lambda output, target: float((output["logits"] == target["labels"]).all())


class Images:
    def __init__(self, data_dir, split):
        pass

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = torch.zeros(1, 24, 40)
        image[:, :, 20:] = 1
        return {"image": image, "target": image, "name": f"case {index}"}
"""


def test_a_custom_task_with_mappings_is_predicted_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words_of_mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    net = {**BASE["model"], "name": "words_of_mine:Net", "args": {}}
    lock = write_lock(
        tmp_path / "compiled",
        task_type="custom",
        model=net,
        data__dataset="words_of_mine:Words",
        training__loss={"name": "words_of_mine:loss", "args": {}},
        evaluation={"hausdorff": False, "scores": {"agreement": "words_of_mine:agreement"}},
        checkpoint__best_metric="agreement",
    )
    save_file({"scale": torch.ones(())}, tmp_path / "weights.safetensors")
    words = ["weights.safetensors", "--lock", str(lock), "--split", "test", "--trust"]
    assert predict.main([*words, "-o", "found"]) == 0
    assert "3 samples of test predicted" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == ["one_1.npz", "three.npz", "two_2.npz"]
    found = np.load(tmp_path / "found/two_2.npz")
    assert found["logits"].tolist() == [0, 2, 3, 4]
    assert found["states.0"].tolist() == [1, 3, 4, 5]
    assert evaluate.main([*words, "-o", "scores.json"]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == {
        "agreement": pytest.approx(1 / 3),
        "loss": pytest.approx(1 / 6),
    }
    assert predict.main([*words, "-o", "found"]) == 1
    assert "error[R543]" in capsys.readouterr().err
    monkeypatch.delenv("RATC_TRUST")
    assert predict.main([word for word in words if word != "--trust"] + ["-o", "other"]) == 1
    assert "error[R584]" in capsys.readouterr().err


def test_a_custom_data_set_of_masks_is_predicted_by_split(itself: Any, tmp_path: Path) -> None:
    (tmp_path / "images_of_mine.py").write_text(OWN)
    words = [*itself(data__dataset="images_of_mine:Images"), "--split", "val", "--trust"]
    assert predict.main([*words, "-o", str(tmp_path / "masks")]) == 0
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        "case_0_segmentation.png",
        "case_1_segmentation.png",
    ]
    mask = np.asarray(Image.open(tmp_path / "masks/case_0_segmentation.png"))
    assert mask.shape == (24, 40)
    assert (mask == np.where(np.arange(40) >= 20, 255, 0)).all()
