"""Output folders that hold links out of the folder, pipes and devices before a run."""

import os
from pathlib import Path

import pytest
import torch
from ratc_runtime import train
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.plots import draw_curves
from ratc_runtime.output.results import refuse_links
from ratc_runtime.tasks.detection.figures import draw_boxes
from ratc_runtime.tasks.detection.picture import Picture as Boxes
from ratc_runtime.tasks.detection.writing import BoxWriter
from ratc_runtime.tasks.segmentation.figures import draw_overlays
from ratc_runtime.tasks.segmentation.picture import Picture as Masks

from ratc.cli import main
from tests.places import ROOT

LOCK = ROOT / "tests" / "cases" / "product-document-cpu" / "expected" / "lock.yaml"
#: Files that a run writes, folders that it writes into.
WRITTEN = ("results.json", ".results.json.new", "checkpoints", "checkpoints/last.pt", "tracking/x/y.json")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("kind", ["file", "folder", "nothing", "pipe"])
def test_a_run_writes_through_no_link_pipe_or_device(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside, place = tmp_path / "outside", tmp_path / "out" / name
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("kept")
    place.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(outside / kind)
    before = tree(outside)
    assert train.main([f"--lock={LOCK}", f"--data-dir={tmp_path}", f"--output-dir={tmp_path / 'out'}"]) == 1
    said = capsys.readouterr().err
    assert "error[R510]" in said
    assert name in said
    assert tree(outside) == before
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [
        path for path in [place] if kind == "file"
    ]


def test_a_run_keeps_the_links_that_it_made(tmp_path: Path) -> None:
    """Those to the best and the last checkpoint, those of Weights & Biases, and the folder's own."""
    real, named = tmp_path / "scratch", tmp_path / "out"
    (real / "checkpoints").mkdir(parents=True)
    named.symlink_to(real)
    (real / "checkpoints" / "epoch.pt").write_text("")
    (real / "checkpoints" / "best.pt").symlink_to("epoch.pt")
    (real / "wandb").mkdir()
    (real / "wandb" / "debug.log").symlink_to("/var/log/wandb.log")
    refuse_links(named)
    refuse_links(tmp_path / "not-there")


def test_r510_if_the_wandb_folder_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "wandb").symlink_to("/tmp")
    with pytest.raises(RuntimeFinding) as caught:
        refuse_links(tmp_path)
    assert caught.value.code == "R510"


ZERO = torch.zeros(1, 8, 8)
WRITERS = {
    "curves.png": lambda folder: draw_curves(
        folder / "curves.png", [{"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "learning_rate": 0.1}], {}, "x", 1
    ),
    "a.png": lambda folder: draw_overlays(folder, [Masks(0, "a", ZERO, ZERO[0], ZERO[0], 0.5, ("x",))]),
    "b.png": lambda folder: draw_boxes(folder, [Boxes(0, "b", ZERO, torch.zeros(0, 6), torch.zeros(0, 6))], ["x"]),
    "detections.json": lambda folder: BoxWriter(folder, ["x"], 0.5).close(),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("aim", ["file", "nothing"])
def test_evaluate_predict_and_compress_replace_links(name: str, aim: str, tmp_path: Path) -> None:
    """Of `evaluate`, `predict` and `compress`, which take a folder with whatever stands in it."""
    outside, folder = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    folder.mkdir()
    (outside / "file").write_text("kept")
    for place in (folder / name, folder / f".new.{name}"):
        place.symlink_to(outside / aim)
    before = tree(outside)
    WRITERS[name](folder)
    assert tree(outside) == before
    assert [path for path in folder.iterdir() if path.is_symlink()] == []
    assert (folder / name).stat().st_size > 0


@pytest.mark.parametrize("words", [["compile", "spec.yaml", "-o"], ["init"], ["report", "spec.yaml", "-o"]])
def test_an_output_path_of_thousands_of_folders_is_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = (
        "experiment_name: demo\ndata: {data_dir: data}\ntraining: {batch_size: 2}\nresources: {num_gpus: 0, cpus: 2}\n"
    )
    (tmp_path / "spec.yaml").write_text(spec)
    assert main([*words, "d/" * 2500 + "x.html"]) == 1
    err = capsys.readouterr().err
    assert "error[R403]" in err
    assert "internal error" not in err
