"""Valid masks and image files: values, colours, alpha, palettes, orientation, formats."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import subprocess
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ratc_runtime.config.lock import Lock, lock_from, read_lock
from ratc_runtime.data.pictures import look_at, open_picture
from ratc_runtime.data.sources import open_split
from ratc_runtime.data.unlabelled import find_images, pieces
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.progress import say_scores
from ratc_runtime.tasks import make_task
from ratc_runtime.tasks.segmentation import baseline
from ratc_runtime.tracking.interface import finite_only
from ratc_runtime.training.run import Run

from tests.helpers.lockfile import lock_content, run_forked, run_training, write_lock

SHAPE = (20, 30)
INSIDE = np.zeros(SHAPE, dtype=bool)
INSIDE[5:10, 5:20] = True
ALONE = World(0, 1, torch.device("cpu"))


def grey(foreground: int, kind: Any = np.uint8) -> Image.Image:
    return Image.fromarray((INSIDE * foreground).astype(kind))


def palette(*colours: int) -> Image.Image:
    made = Image.new("P", SHAPE[::-1])
    made.putdata(INSIDE.ravel().astype(int).tolist())
    made.putpalette(colours)
    return made


def coloured(*colour: int) -> Image.Image:
    return Image.fromarray((INSIDE[..., None] * np.array(colour)).astype(np.uint8))


def in_alpha() -> Image.Image:
    made = Image.new("LA", SHAPE[::-1])
    made.putalpha(grey(255))
    return made


def smoothed() -> Image.Image:
    return grey(255).resize((300, 200), Image.Resampling.BILINEAR).resize(SHAPE[::-1], Image.Resampling.BOX)


def with_some(value: int) -> Image.Image:
    values = INSIDE.astype(np.uint8)
    values[0] = value
    return Image.fromarray(values)


def isic(folder: Path, mask: Image.Image, **changes: Any) -> Any:
    """The train split of one sample."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    Image.new("L", mask.size).save(folder / "images/a.png")
    mask.save(folder / "masks/a_segmentation.png", **({"format": "JPEG"} if changes.pop("jpeg", False) else {}))
    (folder / "splits.json").write_text('{"train": ["a"], "val": [], "test": []}')
    size = [mask.size[1], mask.size[0]]
    return open_split(lock_from(lock_content(data__image_size=size, **changes)), folder, "train")


@pytest.mark.parametrize(
    "mask",
    [
        grey(255),
        grey(1),
        grey(65535, np.uint16),
        grey(1, np.uint16),
        Image.fromarray(INSIDE),
        coloured(255, 255, 255),
        coloured(255, 255, 255).convert("RGBA"),
        palette(0, 0, 0, 255, 255, 255),
        palette(0, 0, 0, 128, 0, 0),
    ],
    ids=lambda mask: mask.mode,
)
def test_an_unambiguous_two_valued_image_is_a_mask(tmp_path: Path, mask: Image.Image) -> None:
    data = isic(tmp_path, mask)
    for target in (data[0]["target"], data.target(0)):
        assert target.dtype == torch.float32
        assert np.array_equal(target[0].numpy() == 1, INSIDE)
        assert target.unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("mask", "seen", "helps"),
    [
        (grey(128), "0, 128", "mask_threshold: 64"),
        (grey(2), "0, 2", "data.num_classes: 3"),
        (with_some(2), "0, 1, 2", "data.num_classes: 3"),
        (with_some(255), "0, 1, 255", "data.num_classes: 2, data.ignore_index: 255"),
        (grey(300, np.uint16), "0, 300", "mask_threshold: 150"),
        (smoothed(), "0, ", "mask_threshold: 128"),
        (coloured(255, 0, 0), "(255, 0, 0)", "set data.num_classes"),
        (coloured(0, 1, 0), "(0, 1, 0)", "set data.num_classes"),
        (in_alpha(), "0, 255; 12.5% of the pixels", "getchannel"),
        (palette(68, 1, 84, 253, 231, 36), "(68, 1, 84)", "set data.num_classes"),
    ],
)
def test_r570_names_the_values_of_an_ambiguous_mask(tmp_path: Path, mask: Image.Image, seen: str, helps: str) -> None:
    data = isic(tmp_path, mask)
    for read in (lambda: data[0], lambda: data.target(0)):
        with pytest.raises(RuntimeFinding, match=r"R570.*a_segmentation.png") as raised:
            read()
        assert seen in raised.value.note
        assert helps in raised.value.help
        assert not raised.value.everywhere


def test_a_jpeg_mask_needs_a_mask_threshold(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFinding, match="R570"):
        isic(tmp_path / "without", grey(255), jpeg=True)[0]
    data = isic(tmp_path / "with", grey(255), jpeg=True, data__args={"mask_threshold": 128})
    assert np.array_equal(data[0]["target"][0].numpy() == 1, INSIDE)


def test_mask_threshold_must_be_a_positive_number_and_needs_one_class(tmp_path: Path) -> None:
    for wrong in ("128", True, 0, -3, float("nan")):
        with pytest.raises(RuntimeFinding, match=r"R50[59].*mask_threshold"):  # R505: no lock holds what is no number
            isic(tmp_path / f"{wrong}", grey(255), data__args={"mask_threshold": wrong})
    several = {"data__num_classes": 2, "data__class_names": ["a", "b"]}
    with pytest.raises(RuntimeFinding, match=r"R509.*one class"):
        isic(tmp_path / "several", grey(1), data__args={"mask_threshold": 1}, **several)


def turned(folder: Path, orientation: int, kind: str) -> Path:
    """A picture whose first rows are white, stored so that it is upright only by its EXIF orientation."""
    upright = np.zeros((24, 40), dtype=np.uint8)
    upright[:6] = 255
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    stored = stored.transpose(back[orientation]) if orientation in back else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / f"a.{kind.lower()}"
    stored.save(path, format=kind, exif=exif)
    return path


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_read_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    path = turned(tmp_path, orientation, kind)
    picture, size = open_picture(path, "L")
    assert size == picture.size == look_at(path).size == (40, 24)
    rows = np.asarray(picture).mean(1)
    assert rows[:5].min() > 200
    assert rows[8:].max() < 60


def test_a_reduced_jpeg_is_read_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1600, 800)).save(tmp_path / "a.jpg", exif=exif)
    picture, size = open_picture(tmp_path / "a.jpg", "RGB", (80, 40))
    assert size == (800, 1600)
    assert picture.size == (100, 200)


def test_training_and_prediction_read_the_same_upright_image(tmp_path: Path) -> None:
    data = isic(tmp_path, Image.new("L", (40, 24)))
    turned(tmp_path / "images", 6, "JPEG")
    (tmp_path / "images/a.png").unlink()
    (tmp_path / "images/a.jpeg").rename(tmp_path / "images/a.jpg")
    lock = lock_from(lock_content(data__image_size=[24, 40]))
    trained = open_split(lock, tmp_path, "train")[0]["image"]
    [piece] = pieces([tmp_path / "images/a.jpg"], lock)
    assert torch.equal(trained, piece.image)
    assert piece.size == (24, 40)
    assert trained[0, :5].mean() > 0.8
    assert trained[0, 8:].mean() < 0.2
    assert len(data) == 1


def test_a_mask_that_ignores_the_exif_rotation_is_refused_with_both_sizes(tmp_path: Path) -> None:
    isic(tmp_path, Image.new("L", (24, 40)))
    turned(tmp_path / "images", 6, "PNG")
    data = open_split(lock_from(lock_content()), tmp_path, "train")
    with pytest.raises(RuntimeFinding, match=r"R506.*24 x 40 pixels, its image 40 x 24 \(upright, by its EXIF"):
        data[0]


def eps(path: Path) -> None:
    Image.new("RGB", (10, 10)).save(path, format="EPS")


def pages(kind: str) -> Any:
    frames = [Image.new("RGB", (9, 9), (40 * number, 0, 0)) for number in range(3)]
    return lambda path: frames[0].save(path, format=kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (eps, "none of BMP"),
        (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n"), "none of BMP"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (pages("TIFF"), "several frames"),
        (pages("GIF"), "several frames"),
        (pages("PNG"), "several frames"),
        (lambda path: path.write_bytes(b""), "none of BMP"),
        (lambda path: None, "No such file"),
    ],
)
def test_only_single_images_of_known_formats_are_opened(tmp_path: Path, make: Any, says: str) -> None:
    path = tmp_path / "a.png"
    make(path)
    for read in (lambda: open_picture(path, "RGB"), lambda: open_picture(path, None), lambda: look_at(path)):
        with pytest.raises(RuntimeFinding, match=r"R506.*a.png cannot be decoded") as raised:
            read()
        assert says in raised.value.note


def test_no_process_is_started_for_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eps(tmp_path / "a.png")
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **named: pytest.fail(f"{given}"))
    lock = lock_from(lock_content())
    [piece] = pieces([tmp_path / "a.png"], lock)
    assert piece.problem is not None
    assert piece.problem.code == "R506"


def empty_scores(lock: Lock) -> dict[str, float]:
    scorer = make_task(lock).scorer()
    scorer.add(torch.full((2, 1, 8, 8), -9.0), torch.zeros(2, 1, 8, 8))
    return scorer.scores(ALONE)


def test_a_score_without_foreground_is_nan() -> None:
    lock = lock_from(lock_content())
    scores = empty_scores(lock)
    assert math.isnan(scores["dice"])
    assert math.isnan(scores["iou"])
    assert finite_only(scores) == {}
    assert "1.0" not in say_scores(scores, {"dice": "Dice"})
    assert "no foreground" in make_task(lock).remarks(scores)[0]

    class Blank:
        def __len__(self) -> int:
            return 2

        def target(self, index: int) -> torch.Tensor:
            return torch.zeros(1, 4, 4)

    assert all(math.isnan(value) for value in baseline.evaluate(Blank(), Blank(), ALONE).values())
    picture = make_task(lock).picture(
        0, "a", torch.rand(1, 8, 8), torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), -9.0)
    )
    assert math.isnan(picture.dice)


def test_a_split_without_foreground_has_null_scores(project: Path) -> None:
    (project / "own.py").write_text(
        "import torch\n\n\n"
        "class Nothing(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.bias = torch.nn.Parameter(torch.tensor(-50.0))\n\n"
        "    def forward(self, image):\n"
        "        return image * 0 + self.bias\n"
    )
    model = {"name": "own:Nothing", "multi_scale": False, "args": {}, "attention_memory": "full"}
    told = run_training(write_lock(project / "compiled", model=model, training__epochs=1))
    assert told.returncode == 0, told.stderr
    for path in (project / "data/masks").glob("test*"):
        Image.new("L", (32, 32)).save(path)
    told = run_forked("ratc_runtime.commands.evaluate", project, "out/checkpoints/best.pt", "-o", "scores.json")
    assert told.returncode == 0, told.stderr
    scores = json.loads((project / "scores.json").read_text())["scores"]
    assert scores["dice"] is None
    assert scores["iou"] is None
    assert "Dice n/a" in told.stdout
    assert "no score: the split has no foreground" in told.stdout


def test_an_epoch_without_a_score_is_never_the_best() -> None:
    lock = lock_from(lock_content())
    nothing = float("nan")

    def best(*epochs: tuple[float | None, float]) -> list[int]:
        history = [
            {"epoch": number, "val_dice": dice, "val_loss": loss} for number, (dice, loss) in enumerate(epochs, 1)
        ]
        progress = SimpleNamespace(history=history, lost=[])
        run: Any = SimpleNamespace(lock=lock, task=make_task(lock), progress=progress, _pruned=0)
        return [place.epoch for place in Run.ranking(run)]

    assert best((nothing, 0.1), (0.0, 0.9), (0.3, 0.8)) == [3, 2, 1]
    assert best((None, 0.1), (0.0, 0.9)) == [2, 1]
    assert best((nothing, 0.5), (nothing, 0.2), (nothing, nothing)) == [2, 1, 3]


def as_tiff(values: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF")
    return stream.getvalue()


@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_mask_with_nan_or_infinite_values_is_refused(tmp_path: Path, value: float, threshold: float | None) -> None:
    data = isic(tmp_path, grey(255), data__args={} if threshold is None else {"mask_threshold": threshold})
    values = INSIDE.astype(np.float32)
    values[0, 0] = value
    (tmp_path / "masks/a_segmentation.png").write_bytes(as_tiff(values))
    with pytest.raises(RuntimeFinding, match=r"R570.*NaN or infinity") as raised:
        data[0]
    assert raised.value.note == "1 of 600 values are not finite"
    assert "mask_threshold" not in raised.value.help


def test_no_invalid_threshold_is_suggested(tmp_path: Path) -> None:
    data = isic(tmp_path, grey(255))
    (tmp_path / "masks/a_segmentation.png").write_bytes(as_tiff(INSIDE.astype(np.int32) * 2 - 1))
    with pytest.raises(RuntimeFinding, match="R570") as raised:
        data[0]
    assert "values: -1, 1;" in raised.value.note
    assert "mask_threshold" not in raised.value.help


def sixteen_bits(colour_type: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel in several channels, which Pillow does not write."""
    rows = b"".join(b"\0" + row.tobytes() for row in np.full((SHAPE[0], SHAPE[1] * channels), 4000, ">u2"))
    head = struct.pack(">IIBBBBB", SHAPE[1], SHAPE[0], 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("what", ["images/a.png", "masks/a_segmentation.png"])
def test_colours_of_sixteen_bits_are_refused(tmp_path: Path, what: str, colour_type: int, channels: int) -> None:
    data = isic(tmp_path, grey(255))
    (tmp_path / what).write_bytes(sixteen_bits(colour_type, channels))
    with pytest.raises(RuntimeFinding, match=r"R506.*cannot be decoded") as raised:
        data[0]
    assert "16 bits a channel" in raised.value.note


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (INSIDE.astype(np.float32), "holds fractions"),
        (np.zeros((*SHAPE, 3), np.uint8), r"holds several channels \(RGB"),
    ],
)
def test_class_masks_hold_whole_numbers_in_one_channel(tmp_path: Path, values: Any, says: str) -> None:
    data = isic(tmp_path, grey(1), data__num_classes=3, data__class_names=["background", "a", "b"])
    (tmp_path / "masks/a_segmentation.png").write_bytes(as_tiff(values))
    with pytest.raises(RuntimeFinding, match=f"R536.*{says}"):
        data[0]


def test_a_folder_with_images_only_below_it_is_told_apart_from_one_without(tmp_path):
    lock = read_lock(write_lock(tmp_path))
    (tmp_path / "test/a").mkdir(parents=True)
    with pytest.raises(RuntimeFinding, match="has no images") as found:
        find_images(tmp_path / "test", lock)
    assert "name one of these" in found.value.help
    with pytest.raises(RuntimeFinding, match="has no images") as found:
        find_images(tmp_path / "test/a", lock)
    assert not found.value.help
