"""The layout of the built-in data sets: `images/`, `masks/` and `splits.json`, and masks of class numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ratc_runtime.data.json_file import read_json
from ratc_runtime.data.near import ANOTHER_ENDING, nearest, shown
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.sizes import counted

SPLITS = ("train", "val", "test")
SKIP_HELP = "repair or remove it, or set `data.on_bad_sample: skip` in the spec and compile again"
#: Samples that a message names.
MOST_NAMED = 3


@dataclass(frozen=True)
class Files:
    """The samples of one split: name, image and mask of each, and the names of those without both files."""

    found: list[tuple[str, Path, Path]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def find_files(
    data_dir: Path, split: str, image_suffixes: Sequence[str], mask_suffixes: Sequence[str], skip_missing: bool
) -> Files:
    """Return the files of a split: `images/NAME<suffix>` and `masks/NAME_segmentation<suffix>`.

    Suffixes are lower-case and match in any case. Raises R506 if the folder, `splits.json` or a file is missing, or a
    name matches two files, unless `skip_missing`: with the number of such samples.
    """
    files = Files()
    images, masks = listing(data_dir / "images", data_dir), listing(data_dir / "masks", data_dir)
    image_of, mask_of = _by_stem(images, image_suffixes), _by_stem(masks, mask_suffixes)
    wanted, doubled = split_names(data_dir, split), {}
    lacking: list[tuple[str, bool]] = []
    for name in wanted:
        found, found_masks = image_of.get(name, []), mask_of.get(f"{name}_segmentation", [])
        if len(found) == len(found_masks) == 1:
            files.found.append((name, data_dir / "images" / found[0], data_dir / "masks" / found_masks[0]))
        elif skip_missing:
            files.missing.append(name)
        elif len(found) > 1 or len(found_masks) > 1:
            doubled[name] = ("images", found) if len(found) > 1 else ("masks", found_masks)
        else:
            lacking.append((name, not found))
    if lacking:
        named = [
            f"images/{name}{_either(image_suffixes)}" if image else f"masks/{name}_segmentation{mask_suffixes[0]}"
            for name, image in lacking[: MOST_NAMED + 1]
        ]
        message = f"sample {shown(lacking[0][0])} of split {split} has no file {shown(named[0])}"
        if len(lacking) > 1:
            message = f"{len(lacking)} of {len(wanted)} samples of split {split} lack a file: {first_of(named)}"
        name, image = lacking[0]
        if image:
            raise _missing(message, data_dir / "images", name, image_suffixes, images)
        raise _missing(message, data_dir / "masks", f"{name}_segmentation", mask_suffixes, masks)
    if doubled:
        name, (folder, several) = next(iter(doubled.items()))
        message = f"sample {shown(name)} of split {split} has {len(several)} files in {folder}/"
        if len(doubled) > 1:
            message = f"{len(doubled)} samples of split {split} have several files: {first_of(list(doubled))}"
        raise RuntimeFinding(
            "R506",
            message,
            f"{', '.join(shown(one) for one in several)} in {data_dir / folder}",
            "keep one of them, and move the others out of the folder",
        )
    return files


def first_of(names: Sequence[str]) -> str:
    """Return the first names of a list, as a message has them."""
    return ", ".join([*map(shown, names[:MOST_NAMED]), *["…"][: len(names) > MOST_NAMED]])


def _by_stem(names: set[str], suffixes: Sequence[str]) -> dict[str, list[str]]:
    """Return the files with one of the suffixes (in any case), by their names without it."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        suffix = next((one for one in suffixes if name.lower().endswith(one)), None)
        if suffix is not None:
            found.setdefault(name[: -len(suffix)], []).append(name)
    return found


def _missing(message: str, folder: Path, stem: str, suffixes: Sequence[str], names: set[str]) -> RuntimeFinding:
    """Return R506 for a sample without a file, with the file of the most similar name, if there is one."""
    if stem in names:
        without = "write the names into splits.json without suffix"
        return RuntimeFinding("R506", message, f"{shown(str(folder / stem))} is there", without)
    found = [near for suffix in suffixes if (near := nearest(stem + suffix, names)) is not None]
    if found:
        name, how = min(found, key=lambda near: near[1] == ANOTHER_ENDING)
        helps = "rename the file, or write its name into splits.json as the file system has it"
        if how == ANOTHER_ENDING:
            helps = f"convert it: names end in {', '.join(suffixes)} here"
        return RuntimeFinding("R506", message, f"{shown(str(folder / name))} is there, {how}", helps)
    return RuntimeFinding("R506", message, str(folder.parent), SKIP_HELP)


def _either(suffixes: Sequence[str]) -> str:
    return " or ".join(suffixes[:2])


def listing(folder: Path, data_dir: Path) -> set[str]:
    """Return the names in a folder. Raises R506 if it cannot be read."""
    try:
        # One listing instead of a stat per name: data sets lie on network file systems.
        return {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise RuntimeFinding(
            "R506",
            f"the data folder {data_dir} has no readable {folder.name}/",
            f"{folder}: {error.strerror or error}",
            "name the folder with --data-dir or RAT_DATA_DIR; `ratc sample-data brain DIR` writes a small one",
        ) from None


def split_names(data_dir: Path, split: str) -> list[str]:
    """Return the names of a split in `splits.json`. Raises R506 if the file is invalid or a name is in two splits."""
    path = data_dir / "splits.json"
    example = 'it is {"train": [names], "val": [names], "test": [names]}, names without suffix'
    splits = read_json(path, example, _once_each)
    if not isinstance(splits, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in splits.values()
    ):
        raise RuntimeFinding("R506", f"{path} is not a mapping from split to names", help=example)
    if split not in splits:
        raise RuntimeFinding("R506", f"{path} has no split {split!r}", f"found {', '.join(splits)}", example)
    names: list[str] = splits[split]
    for other, others in splits.items():
        shared = set(names) & set(others) if other != split else set()
        if shared:
            raise RuntimeFinding(
                "R506",
                f"{path} has {shown(min(shared))} in both {split} and {other}",
                f"{counted(len(shared), 'name')} in both: a score on them would be worthless",
            )
    if len(set(names)) != len(names):
        raise RuntimeFinding("R506", f"{path} names a sample twice in {split}")
    outside = [name for name in names if "/" in name or "\\" in name or name in ("", ".", "..")]
    if outside:
        raise RuntimeFinding("R506", f"{path} has {outside[0]!r:.80}, which is not a plain name")
    return names


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the keys and values of a JSON object. Raises ValueError for a duplicate key."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"the key {key!r:.80} is there {count} times")
    return dict(pairs)


def class_numbers(values: Any, path: Path, classes: int, ignore_index: int | None) -> Any:
    """Return a mask's values as class numbers, uint8. Raises R536 for a value that is not a class or `ignore_index`."""
    values = values.astype(np.uint8) if values.dtype.kind == "b" else values
    whole = values if values.dtype.kind in "ui" else np.rint(values)
    wrong = (whole < 0) | (whole >= classes)
    if whole is not values:
        wrong |= whole != values
    if ignore_index is not None:
        wrong &= values != ignore_index
    if wrong.any():
        value = values[wrong].flat[0]
        ignored = "" if ignore_index is None else f", and {ignore_index} for pixels that do not count"
        raise RuntimeFinding(
            "R536",
            f"{path} holds the value {value:g}, which is not a class",
            f"data.num_classes is {classes}: values from 0, the background, to {classes - 1}{ignored};"
            f" {int(wrong.sum())} of {wrong.size} pixels are others",
            "set data.num_classes, or data.ignore_index for pixels without a label, and compile again; or number the"
            " classes of the mask from 0",
            everywhere=False,
        )
    return whole.astype(np.uint8)
