"""Fuzz targets of the runtime: its journals, and what it reads of data and checkpoints."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.security.fuzz import Targets, into, texts, write

TARGETS: Targets = {}
target = into(TARGETS)


@target("starts-and-journal", texts('{"fingerprint": "x", "epoch": 1}\n', '{"sent": 5, "marks": {"a": 1}}'))
def starts(data: bytes, err: Callable[[], str]) -> None:
    from ratc_runtime.output import run_history as runtime_starts

    runtime_starts.read(Path(write("starts.jsonl", data)))


JOURNAL = (
    '{"kind": "metrics", "step": 3, "values": {"loss": 0.5}, "time": 1.0}\n',
    '{"kind": "params", "values": {"a": 1}}\n{"kind": "metrics", "step": 9, "values": {"loss": 1, "dice": 0.2}}\n',
)
STATE = '{"sent": 0, "marks": {"loss": 2}, "uri": "http://localhost", "run": "x"}'


@target("journal", st.tuples(texts(*JOURNAL), texts(STATE, '{"sent": -1}', '{"sent": "x", "marks": 5}')))
def journalled(data: tuple[bytes, bytes], err: Callable[[], str]) -> None:
    from ratc_runtime.tracking.journal import Journal

    write("tracking/mlflow.jsonl", data[0])
    write("tracking/mlflow.json", data[1])
    journal = Journal(Path("tracking/mlflow"))
    try:
        sent: list[Any] = []
        assert journal.waiting() >= 0
        journal.append([{"kind": "metrics", "step": 2**40, "values": {"loss": 0.1}}])
        journal.deliver(sent.extend, 3)
        assert sent[-1]["step"] == 2**40
        assert not journal.waiting()
    finally:
        journal.release()


PICTURES = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "bmp": "BMP", "gif": "GIF"}


def picture(form: str) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 6), (9, 99, 199)).save(file, form)
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with some of its bytes, mostly of its header, exchanged, or cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, min(len(data), 400) - 1))
        data[place : place + 4] = draw(st.binary(min_size=1, max_size=4))
    return bytes(data[: draw(st.sampled_from((len(data), len(data) // 2, 20)))])


@target(
    "pictures",
    st.sampled_from(sorted(PICTURES)).flatmap(lambda end: st.tuples(st.just(end), damaged(picture(PICTURES[end])))),
)
def pictured(data: tuple[str, bytes], err: Callable[[], str]) -> None:
    from ratc_runtime.data.pictures import open_picture
    from ratc_runtime.errors import RuntimeFinding

    with contextlib.suppress(RuntimeFinding):
        open_picture(Path(write(f"some.{data[0]}", data[1])), "RGB", None)


def volume() -> bytes:
    import nibabel
    import numpy as np

    whole: bytes = nibabel.Nifti1Image(np.zeros((4, 5, 6), dtype=np.uint8), np.eye(4)).to_bytes()
    return whole


@target("volumes", damaged(volume()))
def voxels(data: bytes, err: Callable[[], str]) -> None:
    from ratc_runtime.data.volume_store import Recipe, decode_image
    from ratc_runtime.errors import RuntimeFinding

    with contextlib.suppress(RuntimeFinding):
        decode_image(Path(write("some.nii", data)), Recipe(1, 2, None, None))


def pictured_folder() -> None:
    for name, content in (("images/a.png", picture("PNG")), ("images/b.png", picture("PNG"))):
        write(name, content)
    for name in ("a", "b"):
        write(f"masks/{name}_segmentation.png", mask())


def mask() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (8, 6), 255).save(file, "PNG")
    return file.getvalue()


SPLITS = '{"train": ["a"], "val": ["b"], "test": []}'


@target("splits", texts(SPLITS, '{"train": ["a", "b"], "val": ["../b"], "test": ["c"]}'))
def split_lists(data: bytes, err: Callable[[], str]) -> None:
    from ratc_runtime.data import lengths
    from ratc_runtime.data.isic import IsicSegmentation
    from ratc_runtime.data.volumes import VolumePatches
    from ratc_runtime.errors import RuntimeFinding

    pictured_folder()
    write("splits.json", data)
    lengths._read(Path("splits.json"))
    for kind, size in ((IsicSegmentation, (6, 8)), (VolumePatches, (2, 2, 2))):
        for skip in (True, False):
            with contextlib.suppress(RuntimeFinding):
                found: Any = kind(Path(), "train", size, skip_missing=skip)  # type: ignore[arg-type]
                [found[number] for number in range(len(found))]


@target(
    "masks",
    st.tuples(
        st.sampled_from((1, 3)), st.sampled_from((None, 0.5, 9)), st.one_of(damaged(mask()), damaged(picture("PNG")))
    ),
)
def masked(data: tuple[int, Any, bytes], err: Callable[[], str]) -> None:
    from ratc_runtime.data.isic import IsicSegmentation
    from ratc_runtime.errors import RuntimeFinding

    classes, threshold, content = data
    pictured_folder()
    write("splits.json", SPLITS.encode())
    write("masks/a_segmentation.png", content)
    with contextlib.suppress(RuntimeFinding):
        found = IsicSegmentation(Path(), "train", (6, 8), num_classes=classes, mask_threshold=threshold)
        found.header(0)
        found[0]


ANNOTATIONS = json.dumps(
    {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2.5, 3, 1e0], "iscrowd": 0, "area": 3}],
        "categories": [{"id": 7, "name": "x"}],
    }
)


@target("annotations", texts(ANNOTATIONS))
def annotated(data: bytes, err: Callable[[], str]) -> None:
    from ratc_runtime.data import lengths
    from ratc_runtime.data.coco import CocoDetection
    from ratc_runtime.errors import RuntimeFinding

    write("images/train/a.png", picture("PNG"))
    lengths._read(Path(write("annotations/instances_train.json", data)))
    for skip in (True, False):
        with contextlib.suppress(RuntimeFinding):
            found = CocoDetection(Path(), "train", (6, 8), skip_missing=skip, num_classes=1)
            [(found.header(number), found[number]) for number in range(len(found))]


@target("masks-of-volumes", st.tuples(damaged(volume()), st.sampled_from((1, 3))))
def voxel_masks(data: tuple[bytes, int], err: Callable[[], str]) -> None:
    from ratc_runtime.data.volumes import VolumePatches
    from ratc_runtime.errors import RuntimeFinding

    write("images/a.nii", volume())
    write("masks/a_segmentation.nii", data[0])
    write("splits.json", b'{"train": ["a"]}')
    with contextlib.suppress(RuntimeFinding):
        found = VolumePatches(Path(), "train", (2, 2, 2), num_classes=data[1])
        found[0]


@target("checkpoint", st.one_of(st.binary(max_size=200), texts("PK\x03\x04")))
def checkpoint(data: bytes, err: Callable[[], str]) -> None:
    from ratc_runtime.checkpoint import header
    from ratc_runtime.errors import RuntimeFinding

    with pytest.raises(RuntimeFinding) as caught:
        header.read(Path(write("some.pt", data)))
    assert caught.value.code == "R508"


@target(
    "class-table", texts('path,label,split\na.png,oak,train\n"b, c.png",ash,val\n', "\ufeffpath;label\r\na.png;1\r\n")
)
def tabled(data: bytes, err: Callable[[], str]) -> None:
    from ratc_runtime.data.class_table import ClassTable
    from ratc_runtime.errors import RuntimeFinding

    write("a.png", picture("PNG"))
    write("labels.csv", data)
    for skip in (True, False):
        with contextlib.suppress(RuntimeFinding):
            found = ClassTable(Path(), "train", (6, 8), 1, num_classes=2, skip_missing=skip)
            [found[number] for number in range(len(found))]
