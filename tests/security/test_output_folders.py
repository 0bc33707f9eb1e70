"""What stands in an output folder before a run: links that lead out of it, pipes and devices."""

import os
from pathlib import Path

import pytest
from ratc_runtime import train
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.results import refuse_links

from tests.places import ROOT

LOCK = ROOT / "tests" / "cases" / "product-document-cpu" / "expected" / "lock.yaml"
#: Files that a run writes, folders that it writes into.
WRITTEN = ("results.json", ".results.json.new", "checkpoints", "checkpoints/last.pt", "tracking/x/y.json")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("kind", ["file", "folder", "nothing", "pipe"])
def test_a_run_writes_nothing_through_them(
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


def test_a_run_keeps_its_own_links(tmp_path: Path) -> None:
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


def test_the_folder_of_weights_and_biases_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "wandb").symlink_to("/tmp")
    with pytest.raises(RuntimeFinding) as caught:
        refuse_links(tmp_path)
    assert caught.value.code == "R510"
