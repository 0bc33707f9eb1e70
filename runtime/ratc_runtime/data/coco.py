"""The COCO layout: `annotations/instances_SPLIT.json` and the images listed there.

The files of a split may be called `train` or `train2017`. Images are in `images/SPLIT/`, `images/SPLIT2017/`,
`SPLIT2017/`, `SPLIT/`, or in `images/` itself.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, TypeGuard

import torch

from ratc_runtime.data.folders import SKIP_HELP, first_of
from ratc_runtime.data.json_file import read_json
from ratc_runtime.data.near import is_file, is_possible, listed, nearest, shown
from ratc_runtime.data.pictures import Header, look_at, open_picture, pyramid, sizes_of
from ratc_runtime.errors import RuntimeFinding, warn

LAYOUT = (
    "annotations/instances_train.json, instances_val.json and instances_test.json (or train2017, val2017, test2017),"
    " and the images in images/, images/train/ or train2017/"
)
#: The largest position or side in pixels; beyond it a float32 skips whole numbers.
MOST_PIXELS = 2**24
#: The least side of a box inside the image, in pixels of the original image.
LEAST_SIDE = 1.0


class CocoDetection(torch.utils.data.Dataset[dict[str, Any]]):
    """Images and boxes of one split, resized to one size.

    An item has `image`, float (C, H, W) in [0, 1] (a list from fine to coarse if `scales` has several entries), `name`,
    and `target`: `boxes`, float (N, 4) corners x0, y0, x1, y1 in pixels of the resized image; `labels`, int64 (N,) from
    0; `iscrowd`, bool (N,). Categories are numbered in order of their ids; `class_names` are their names.

    Images without boxes are kept. Boxes are clipped at the image's border. If a side is then shorter than a pixel, the
    box is left out and counted in `dropped`, and in `negative` if its width or height is below 0.

    Raises R506 with the file's name if the folder, the annotations or an image are missing or damaged, or an image has
    another size than its entry; R539 if the number of categories is not `num_classes`. With `skip_missing`, missing
    images are left out and listed in `missing`.
    """

    def __init__(
        self,
        data_dir: Path,
        split: str,
        image_size: tuple[int, int],
        channels: int = 3,
        scales: tuple[float, ...] = (1.0,),
        skip_missing: bool = False,
        num_classes: int | None = None,
    ) -> None:
        self.image_size = image_size
        mode = {1: "L", 3: "RGB"}.get(channels)
        if mode is None:
            raise RuntimeFinding("R506", f"the coco dataset has 1 or 3 channels, not {channels}")
        self.mode = mode
        self.sizes = sizes_of(image_size, scales)
        self.data_dir = Path(data_dir)
        path = self._annotations = _annotations(self.data_dir, split)
        content = _read(path)
        classes = _categories(path, content)
        self.class_names = [name for _, name in classes]
        if num_classes is not None and len(classes) != num_classes:
            raise RuntimeFinding(
                "R539",
                f"{path} has {len(classes)} categories, the lock's data.num_classes is {num_classes}",
                f"they are {', '.join(self.class_names[:20])}",
                f"set `data.num_classes: {len(classes)}` in the spec and compile again",
            )
        self.names: list[str] = []
        self.missing: list[str] = []
        self.dropped = self.cut = self.repeated = self.negative = 0
        self._files: list[Path] = []
        self._listed: list[tuple[int, int]] = []
        self._targets: list[dict[str, torch.Tensor]] = []
        self._collect(
            path, split, content, {identity: label for label, (identity, _) in enumerate(classes)}, skip_missing
        )
        if os.environ.get("RANK", "0") == "0":
            self._warn(path)

    def _warn(self, path: Path) -> None:
        """Warn of likely mistakes in the annotations."""
        if self.dropped:
            warn(
                f"{path.name}: {self.dropped} box(es) lie outside of their image or are smaller than a pixel, and are"
                " left out; a bbox is [x, y, width, height] in pixels, not in shares of the image"
            )
        if self.negative:
            warn(f"{path.name}: {self.negative} of them have a width or a height below 0, which two corners would give")
        if self.cut:
            warn(
                f"{path.name}: {self.cut} box(es) reach beyond their image, and are cut off at its border; a bbox is"
                " [x, y, width, height] in pixels, not two corners"
            )
        if self.repeated:
            warn(f"{path.name}: {self.repeated} box(es) are there a second time, with the same image and category")

    def _collect(self, path: Path, split: str, content: Any, labels: dict[int, int], skip_missing: bool) -> None:
        boxes: dict[int, list[tuple[list[float], int, bool]]] = {}
        images = _images(path, content)
        for number, entry in enumerate(content["annotations"]):
            image, box, label, crowd = _annotation(path, number, entry, labels)
            if image not in images:
                raise _damaged(path, f"annotations[{number}] is of image {image}, which the file does not have")
            boxes.setdefault(image, []).append((box, label, crowd))
        self.repeated = sum(len(found) - len({(*box, label) for box, label, _ in found}) for found in boxes.values())
        folders = _folders(self.data_dir, split)
        for identity in sorted(images):
            name, width, height = images[identity]
            file = next((folder / name for folder in folders if is_file(folder / name)), None)
            if file is None:
                self.missing.append(name)
                continue
            self._files.append(file)
            self.names.append(name)
            self._listed.append((width, height))
            self._targets.append(self._target(boxes.get(identity, []), width, height))
        if self.missing and not skip_missing:
            raise _missing(path, self.missing, len(images), folders, self.data_dir)
        twice = next((file for file, count in Counter(self._files).items() if count > 1), None)
        if twice is not None:
            raise _damaged(path, f"several `images` name {shown(str(twice))}, and each would have a part of its boxes")

    def _target(self, found: list[tuple[list[float], int, bool]], width: int, height: int) -> dict[str, torch.Tensor]:
        kept = []
        for (x, y, wide, high), label, crowd in found:
            corners = [max(0.0, x), max(0.0, y), min(float(width), x + wide), min(float(height), y + high)]
            if min(corners[2] - corners[0], corners[3] - corners[1]) < LEAST_SIDE:
                self.dropped += 1
                self.negative += min(wide, high) < 0
                continue
            self.cut += min(x, y, width - x - wide, height - y - high) < -LEAST_SIDE
            kept.append((corners, label, crowd))
        rows, columns = self.image_size
        factors = torch.tensor([columns / width, rows / height] * 2)
        return {
            "boxes": torch.tensor([corners for corners, _, _ in kept]).reshape(-1, 4) * factors,
            "labels": torch.tensor([label for _, label, _ in kept], dtype=torch.int64),
            "iscrowd": torch.tensor([crowd for _, _, crowd in kept], dtype=torch.bool),
        }

    @property
    def image_files(self) -> list[Path]:
        """The files of the images, one for each sample."""
        return self._files

    @property
    def most_objects(self) -> int:
        """The largest number of objects in one image, without crowds."""
        return max((int((~target["iscrowd"]).sum()) for target in self._targets), default=0)

    def class_holders(self) -> Counter[int]:
        """Return the number of images with an object of each class, without crowds."""
        found: Counter[int] = Counter()
        for target in self._targets:
            found.update(set(target["labels"][~target["iscrowd"]].tolist()))
        return found

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture, size = open_picture(self._files[index], self.mode)
        if size != self._listed[index]:
            wide, high = self._listed[index]
            raise RuntimeFinding(
                "R506",
                f"{self._files[index]} has {look_at(self._files[index])} pixels, the annotations say {wide} x {high}",
                "its boxes are in pixels of the listed size, and would lie in the wrong place",
                "make boxes, width and height for this file as it is shown upright, or use the file that they were "
                "made for",
                everywhere=False,
            )
        return {
            "image": pyramid(picture, self.sizes),
            "target": self.target(index),
            "name": self.names[index],
        }

    def files(self, index: int) -> tuple[Path, Path]:
        """Return the source files of one sample: image and annotations."""
        return self._files[index], self._annotations

    def header(self, index: int) -> Header:
        """Return size and mode of one sample's image without decoding it; raise R506 if it cannot be read."""
        return look_at(self._files[index])

    def target(self, index: int) -> dict[str, torch.Tensor]:
        """Return the target of one sample, with the shapes that the class describes, without decoding its image."""
        # A copy: an augmentation of the boxes must not change those of the next epoch.
        return {key: value.clone() for key, value in self._targets[index].items()}


def _missing(path: Path, names: list[str], number: int, folders: list[Path], data_dir: Path) -> RuntimeFinding:
    """Return R506 for the missing ones of a number of images, with the file of the name most similar to the first."""
    name = names[0]
    looked = ", ".join(f"{folder.relative_to(data_dir)}/" for folder in folders) or "no folder"
    note, helps = f"looked in {looked} of {data_dir}", SKIP_HELP
    slashed = name.replace("\\", "/")
    last = slashed.rpartition("/")[2]
    for folder in folders:
        if slashed != name and is_possible(slashed) and is_file(folder / slashed):
            note += f"\n{shown(str(folder / slashed))} is there: the list has backslashes where folders begin"
            helps = "write `/` instead of `\\` in every file_name of the annotations"
            break
        place = (folder / slashed).parent
        near = nearest(last, listed(place)) if is_possible(slashed) else None
        if near is not None:
            note += f"\n{shown(str(place / near[0]))} is there, {near[1]}"
            helps = (
                f"write file_name as the file is called, {shown(near[0])}, or rename the file, and do the same for "
                "every such name"
            )
            break
        if last != slashed and last and is_possible(last) and is_file(folder / last):
            note += f"\n{shown(str(folder / last))} is there: the list has folders, or an address, of another place"
            helps = f"write file_name as it is below that folder, {shown(last)}, and do the same for every such name"
            break
    message = f"{path} names {shown(name)}, which is not there"
    if len(names) > 1:
        message = f"{len(names)} of {number} images that {path} names are not there: {first_of(names)}"
    return RuntimeFinding("R506", message, note, helps)


def _years(split: str) -> list[str]:
    return [split, f"{split}2017", f"{split}2014"]


def _annotations(data_dir: Path, split: str) -> Path:
    folder = data_dir / "annotations"
    found = [folder / f"instances_{name}.json" for name in _years(split)]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise RuntimeFinding(
            "R506",
            f"the data folder {data_dir} has no annotations/instances_{split}.json",
            f"the COCO layout is {LAYOUT}",
            "name the folder with --data-dir or RAT_DATA_DIR; `ratc sample-data shapes DIR` writes a small one",
        )
    return path


def _folders(data_dir: Path, split: str) -> list[Path]:
    """Return the existing folders that may hold the split's images."""
    named = [data_dir / "images" / name for name in _years(split)]
    named += [data_dir / name for name in _years(split)]
    return [folder for folder in [*named, data_dir / "images", data_dir] if folder.is_dir()]


def _damaged(path: Path, message: str) -> RuntimeFinding:
    return RuntimeFinding("R506", f"{path}: {message}", help="the format is described at cocodataset.org/#format-data")


def _read(path: Path) -> Any:
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise _damaged(path, f"it has no list `{key}`")
    return content


def _categories(path: Path, content: Any) -> list[tuple[int, str]]:
    """Return id and name of the categories, in order of their ids. COCO's ids have gaps."""
    found: dict[int, str] = {}
    for number, entry in enumerate(content["categories"]):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise _damaged(path, f"categories[{number}] has no whole `id` and no `name`")
        if entry["id"] in found:
            raise _damaged(path, f"categories[{number}] has the id {entry['id']} a second time")
        found[entry["id"]] = entry["name"]
    classes = sorted(found.items())
    twice = [name for name, count in Counter(found.values()).items() if count > 1]
    if twice:
        ids = ", ".join(str(identity) for identity, name in classes if name == twice[0])
        raise RuntimeFinding(
            "R539",
            f"{path} has several categories of the name {shown(twice[0])}",
            f"their ids are {ids}; scores are listed by name, and one would stand for all",
            "give each category its own name, or merge the categories",
        )
    return classes


def _images(path: Path, content: Any) -> dict[int, tuple[str, int, int]]:
    """Return file name, width and height of the images by id."""
    found: dict[int, tuple[str, int, int]] = {}
    for number, entry in enumerate(content["images"]):
        where = f"images[{number}]"
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            raise _damaged(path, f"{where} has no whole `id`")
        name, width, height = entry.get("file_name"), entry.get("width"), entry.get("height")
        if not isinstance(name, str) or not name or name.startswith("/") or ".." in re.split(r"[/\\]", name):
            raise RuntimeFinding(
                "R506",
                f"{path}: {where} has the file name {name!r:.80}, which is not a path below the data folder",
                help="write file_name from the folder of the split's images on, as `0001.jpg`",
            )
        if not is_possible(name):
            raise _damaged(path, f"{where} has the file name {shown(name)}, which is not a valid file name")
        if not _is_side(width) or not _is_side(height):
            raise _damaged(path, f"{where} ({shown(name)}) has the size {width!r:.20} x {height!r:.20}")
        if entry["id"] in found:
            raise _damaged(path, f"{where} ({shown(name)}) has the id {entry['id']} a second time")
        found[entry["id"]] = (name, width, height)
    return found


def _is_side(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value <= MOST_PIXELS


def _annotation(path: Path, number: int, entry: Any, labels: dict[int, int]) -> tuple[int, list[float], int, bool]:
    """Return image, box (x, y, width, height), label and whether it is a crowd."""
    where = f"annotations[{number}]"
    if not isinstance(entry, dict) or type(entry.get("image_id")) is not int:
        raise _damaged(path, f"{where} has no whole `image_id`")
    box = entry.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= MOST_PIXELS for v in box)
    ):
        raise _damaged(path, f"{where} has the bbox {box!r:.60}, expected [x, y, width, height] in pixels")
    if type(entry.get("category_id")) is not int or entry["category_id"] not in labels:
        raise _damaged(path, f"{where} has the category {entry.get('category_id')!r:.40}, which the file does not have")
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise _damaged(path, f"{where} has iscrowd {crowd!r:.40}, expected 0 or 1")
    return entry["image_id"], [float(value) for value in box], labels[entry["category_id"]], bool(crowd)
