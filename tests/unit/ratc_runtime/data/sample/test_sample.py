"""Sample data: reproducible bytes, complete folders, and splits without leakage."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ratc_runtime.data.sample import NAMES, SampleDataError, find
from ratc_runtime.data.sample.brain import SAMPLE, splits

from tests.helpers.lockfile import environment


def digest(folder: Path) -> str:
    hashed = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            hashed.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return hashed.hexdigest()


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "with a space" / "brain"
    assert SAMPLE.write(folder)
    return folder


def test_the_brain_sample_is_reproducible_and_written_once(brain: Path, tmp_path: Path) -> None:
    before = digest(brain)
    assert SAMPLE.write(tmp_path / "other")
    assert digest(tmp_path / "other") == before
    assert not SAMPLE.write(brain)
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


def test_brain_slices_hold_brain_and_white_matter(brain: Path) -> None:
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


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(SampleDataError, match="not empty"):
        SAMPLE.write(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(SampleDataError, match="cannot write"):
        SAMPLE.write(tmp_path / "mine/thesis.txt/below")


def test_an_incomplete_folder_is_detected(brain: Path, tmp_path: Path) -> None:
    SAMPLE.write(tmp_path / "brain")
    next((tmp_path / "brain/masks").iterdir()).unlink()
    assert not SAMPLE.is_complete(tmp_path / "brain")
    assert SAMPLE.is_complete(brain)


def test_digits_equal_their_source_in_folders_and_table(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits, folder = find("digits"), tmp_path / "digits"
    assert digits.write(folder)
    assert not digits.write(folder)
    source = load_digits()
    rows = [line.split(",") for line in (folder / "labels.csv").read_text().splitlines()[1:]]
    assert [int(label) for _, label in rows] == source.target.tolist()
    for (name, label), pixels in list(zip(rows, source.images, strict=True))[::97]:
        assert name.split("/")[1] == label
        image = np.asarray(Image.open(folder / name))
        assert image.dtype == np.uint8
        assert np.array_equal(image, pixels.astype(int) * 255 // 16)
    assert {split: len(list((folder / split).rglob("*.png"))) for split in digits.counts} == digits.counts
    (folder / rows[5][0]).unlink()
    assert not digits.is_complete(folder)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes") / "brain3d"
    assert find("brain3d").write(folder)
    return folder


def test_blocks_are_cut_from_the_template_without_overlap(blocks: Path, tmp_path: Path) -> None:
    import nibabel
    from ratc_runtime.data.sample import mni152
    from ratc_runtime.data.sample.brain3d import SLABS

    find("brain3d").write(tmp_path / "again")
    assert digest(tmp_path / "again") == digest(blocks)
    ends = sorted((first, end) for _, first, end in SLABS)
    assert min(after[0] - before[1] for before, after in itertools.pairwise(ends)) == 6
    scan, affine = mni152.read("T1")
    white, _ = mni152.read("white matter")
    for names in json.loads((blocks / "splits.json").read_text()).values():
        for name in names:
            image = nibabel.load(blocks / "images" / f"{name}.nii.gz")
            mask = nibabel.load(blocks / "masks" / f"{name}_segmentation.nii.gz")
            voxels, classes = np.asarray(image.dataobj), np.asarray(mask.dataobj)
            assert voxels.shape == classes.shape == (160, 32, 160)
            assert np.array_equal(image.affine, mask.affine)
            # In world coordinates the block is where it was in the template.
            at = np.rint(np.linalg.inv(affine) @ image.affine @ (80, 16, 80, 1)).astype(int)[:3]
            assert voxels[80, 16, 80] == scan[tuple(at)]
            assert (classes[80, 16, 80] == 2) == (white[tuple(at)] >= 128)
            assert np.unique(classes).tolist() == [0, 1, 2]
            means = [voxels[classes == kind].mean() for kind in (1, 2)]
            assert means[0] < means[1]


def test_shapes_lie_in_their_boxes_and_are_reproducible(tmp_path: Path) -> None:
    sample = find("shapes")
    assert sample.write(tmp_path / "one")
    assert sample.write(tmp_path / "other")
    assert digest(tmp_path / "one") == digest(tmp_path / "other")
    found = []
    for split, count in sample.counts.items():
        content = json.loads((tmp_path / f"one/annotations/instances_{split}.json").read_text())
        assert len(content["images"]) == count
        found += [(split, content["images"][one["image_id"] - 1]["file_name"], one) for one in content["annotations"]]
    assert {one["category_id"] for _, _, one in found} == {1, 2, 3}
    # Of a plain colour up to the noise: the middle of a shape, and not what lies around its box.
    for split, name, one in found[:40]:
        pixels = np.asarray(Image.open(tmp_path / "one/images" / split / name)).astype(int)
        x, y, width, height = one["bbox"]
        assert min(x, y, width - 8, height - 8) >= 0
        assert max(x + width, y + height) <= 48
        corners = np.array(one["segmentation"][0]).reshape(-1, 2)
        assert (corners.min(0) >= (x - 1, y - 1)).all()
        assert (corners.max(0) <= (x + width + 1, y + height + 1)).all()
        middle = pixels[y + height // 2 - 1 : y + height // 2 + 2, x + width // 2 - 1 : x + width // 2 + 2]
        assert np.ptp(middle.reshape(-1, 3), axis=0).max() <= 24


def test_every_sample_name_has_its_data() -> None:
    assert {find(name).marker["sample_data"] for name in NAMES} == set(NAMES)


def test_the_command_writes_sample_data(tmp_path: Path) -> None:
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
