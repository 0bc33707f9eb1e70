"""The sample data: the same bytes everywhere, whole or not there, and splits that do not leak."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lockfile import environment
from PIL import Image
from ratc_runtime.data.sample import SampleDataError, is_complete, splits, write_brain


def digest(folder: Path) -> str:
    hashed = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            hashed.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return hashed.hexdigest()


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "with a space" / "brain"
    assert write_brain(folder)
    return folder


def test_bytes_are_the_same_and_a_second_call_does_nothing(brain: Path, tmp_path: Path) -> None:
    before = digest(brain)
    assert write_brain(tmp_path / "other")
    assert digest(tmp_path / "other") == before
    assert not write_brain(brain)
    assert digest(brain) == before
    assert [path.name for path in brain.parent.iterdir()] == ["brain"]


def test_no_slice_has_a_neighbour_in_another_split(brain: Path) -> None:
    positions = splits()
    pairs = [
        abs(a - b)
        for one in positions
        for other in positions
        if one < other
        for a in positions[one]
        for b in positions[other]
    ]
    assert min(pairs) == 6
    named = json.loads((brain / "splits.json").read_text())
    assert {split: len(names) for split, names in named.items()} == {s: len(p) for s, p in positions.items()}
    assert sorted(path.stem for path in (brain / "images").iterdir()) == sorted(
        n for names in named.values() for n in names
    )


def test_slices_are_brains_with_white_matter_inside(brain: Path) -> None:
    for names in json.loads((brain / "splits.json").read_text()).values():
        for name in names:
            image = np.asarray(Image.open(brain / "images" / f"{name}.png"))
            mask = np.asarray(Image.open(brain / "masks" / f"{name}_segmentation.png"))
            assert image.shape == mask.shape == (192, 192)
            assert image.dtype == mask.dtype == np.uint8
            assert set(np.unique(mask)) == {0, 255}
            assert (mask == 255).mean() > 0.01
            # White matter is brighter than the rest of the head on T1.
            assert image[mask == 255].mean() > image[(mask == 0) & (image > 20)].mean()
            assert not image[[0, -1]].any()
            assert not image[:, [0, -1]].any()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(SampleDataError, match="not empty"):
        write_brain(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(SampleDataError, match="cannot write"):
        write_brain(tmp_path / "mine/thesis.txt/below")


def test_an_incomplete_folder_is_noticed(brain: Path, tmp_path: Path) -> None:
    write_brain(tmp_path / "brain")
    next((tmp_path / "brain/masks").iterdir()).unlink()
    assert not is_complete(tmp_path / "brain")
    assert is_complete(brain)


def test_the_command(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ratc_runtime.data.sample", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)

    (tmp_path / "empty").mkdir()
    written = run("brain", "empty")
    assert (written.returncode, written.stdout) == (0, "empty: written (56 train, 12 val, 10 test)\n"), written.stderr
    assert run("brain", "empty").stdout == "empty: already complete (56 train, 12 val, 10 test)\n"
    (tmp_path / "file").touch()
    refused = run("brain", "file")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert run("heart", "x").returncode == 2
