"""Images with one class each: what the data sets of classification, `folders` and `csv`, have in common."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from ratc_runtime.data.near import shown
from ratc_runtime.data.pictures import Header, look_at, open_picture, pyramid, sizes_of
from ratc_runtime.errors import RuntimeFinding

#: Ends of the names of images, lower-case: those of `pictures.FORMATS`.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".jp2", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


class Labelled(torch.utils.data.Dataset[dict[str, Any]]):
    """Images of one split, resized to one size, and the number of the class of each.

    An item has `image`, float (C, H, W) in [0, 1] (a list from fine to coarse if `scales` has several entries),
    `target`, int64 without dimensions, and `name`. Raises R506 for an image that cannot be read.
    """

    def __init__(
        self,
        kind: str,
        image_size: tuple[int, int],
        channels: int,
        scales: tuple[float, ...],
        files: Sequence[Path],
        labels: Sequence[int],
        names: Sequence[str],
        class_names: Sequence[str] | None,
    ) -> None:
        mode = {1: "L", 3: "RGB"}.get(channels)
        if mode is None:
            raise RuntimeFinding("R506", f"the {kind} dataset has 1 or 3 channels, not {channels}")
        self.mode = mode
        self.sizes = sizes_of(image_size, scales)
        self.names, self._files, self._labels = list(names), list(files), list(labels)
        if class_names is not None:  # classes that are numbers have none
            self.class_names = list(class_names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture, _ = open_picture(self._files[index], self.mode, max(self.sizes))
        return {"image": pyramid(picture, self.sizes), "target": self.target(index), "name": self.names[index]}

    def files(self, index: int) -> tuple[Path, ...]:
        """Return the files that one sample is made from, the image first."""
        return (self._files[index],)

    def header(self, index: int) -> Header:
        """Return size and mode of one sample's image without decoding it; raise R506 if it cannot be read."""
        return look_at(self._files[index])

    def target(self, index: int) -> torch.Tensor:
        """Return the class number of one sample, an int64 scalar, without decoding its image."""
        return torch.tensor(self._labels[index])

    def class_holders(self) -> Counter[int]:
        """Return the number of images of each class."""
        return Counter(self._labels)


def numbered(place: str, found: Collection[str], classes: int, given: Any) -> tuple[dict[str, int], list[str] | None]:
    """Return the number of each class that data name, and the classes' names in order of their numbers.

    There are `classes` of them. `given` are their names if the spec lists them (`data.args: {classes: […]}`). Otherwise
    names that are whole numbers are the numbers themselves (and the second value is None), and other names are numbered
    in their alphabetical order. `place` is the folder or file that has the names.

    Raises R539 if there are other classes than that, or two that look the same, R591 for a number beyond them.
    """
    _check_looks(place, found)
    if given is not None:
        return _listed(place, found, classes, given)
    if found and all(_NUMBER.fullmatch(name) for name in found):
        beyond = [name for name in found if int(name) >= classes]
        if beyond:
            most = max(beyond, key=int)
            raise RuntimeFinding(
                "R591",
                f"{place} has the class {most}, and data.num_classes is {classes}",
                f"classes that are whole numbers are numbered from 0 to {classes - 1}",
                f"set `data.num_classes: {int(most) + 1}`; or list the classes in the order of their numbers, as"
                " `data.args: {classes: ['1', '2']}`, if they are names that look like numbers",
            )
        return {name: int(name) for name in found}, None
    names = sorted(found)
    if len(names) != classes:
        wanted = f"set `data.num_classes: {len(names)}`, or " if len(names) > 1 else ""
        raise RuntimeFinding(
            "R539",
            f"{place} has {len(names)} class(es), the lock's data.num_classes is {classes}",
            f"they are {', '.join(shown(name) for name in names[:20])}",
            f"{wanted}list all classes in `data.args: {{classes: […]}}` if some have no images yet",
        )
    return {name: number for number, name in enumerate(names)}, names


def _check_looks(place: str, found: Collection[str]) -> None:
    """Raise R539 if two names differ only in Unicode normal form, spaces or characters without a shape."""
    looks: dict[str, str] = {}
    for name in sorted(found):
        seen = "".join(char for char in name if char.isspace() or unicodedata.category(char) not in ("Cf", "Cc"))
        look = " ".join(unicodedata.normalize("NFC", seen).split())
        other = looks.setdefault(look, name)
        if other != name:
            raise RuntimeFinding(
                "R539",
                f"{place} has two classes that look the same: {shown(other)} and {shown(name)}",
                f"they are {other.encode('unicode_escape').decode()} and {name.encode('unicode_escape').decode()}",
                "write both in the same way",
            )


def _listed(place: str, found: Collection[str], classes: int, given: Any) -> tuple[dict[str, int], list[str]]:
    if not isinstance(given, (list, tuple)) or len(set(map(str, given))) != len(given):
        raise RuntimeFinding("R539", f"data.args.classes is {given!r:.80}, expected names of classes, each once")
    names = [str(name) for name in given]
    if len(names) != classes:
        raise RuntimeFinding(
            "R539",
            f"data.args.classes lists {len(names)} class(es), data.num_classes is {classes}",
            help="make both agree, and compile again",
        )
    other = sorted(set(found) - set(names))
    if other:
        raise RuntimeFinding(
            "R539",
            f"{place} has the class {shown(other[0])}, which data.args.classes does not list",
            f"it lists {', '.join(shown(name) for name in names[:20])}",
            "add it there and to data.num_classes, or take its images out",
        )
    return {name: number for number, name in enumerate(names)}, names
