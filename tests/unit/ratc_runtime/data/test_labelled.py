"""Images with classes: the numbers of classes, and the form of an item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ratc_runtime.data.labelled import Labelled, numbered
from ratc_runtime.errors import RuntimeFinding


@pytest.mark.parametrize(
    ("found", "classes", "given", "numbers", "names"),
    [
        (["oak", "ash", "Elm"], 3, None, {"Elm": 0, "ash": 1, "oak": 2}, ["Elm", "ash", "oak"]),
        # Whole numbers are the classes themselves; one may be absent.
        (["10", "2"], 11, None, {"10": 10, "2": 2}, None),
        # A leading zero, or one name among them, and they are names.
        (["00", "01"], 2, None, {"00": 0, "01": 1}, ["00", "01"]),
        (["1", "a"], 2, None, {"1": 0, "a": 1}, ["1", "a"]),
        # The spec's own order, of classes without images, too.
        (["ash"], 3, ["oak", "ash", "elm"], {"oak": 0, "ash": 1, "elm": 2}, ["oak", "ash", "elm"]),
        (["2", "1"], 2, ["1", 2], {"1": 0, "2": 1}, ["1", "2"]),
    ],
)
def test_class_names_get_numbers_in_a_fixed_order(
    found: list[str], classes: int, given: Any, numbers: dict[str, int], names: list[str] | None
) -> None:
    assert numbered("data", found, classes, given) == (numbers, names)
    assert numbered("data", found[::-1], classes, given) == (numbers, names)


@pytest.mark.parametrize(
    ("found", "classes", "given", "code", "says"),
    [
        (["1", "2", "3"], 3, None, "R591", "num_classes: 4"),
        (["oak", "ash"], 3, None, "R539", "they are ash, oak"),
        ([], 3, None, "R539", "has 0 class(es)"),
        (["oak"], 2, ["oak"], "R539", "lists 1 class"),
        (["oak"], 2, ["oak", "oak"], "R539", "each once"),
        (["oak"], 2, "oak", "R539", "expected names"),
        (["elm"], 2, ["oak", "ash"], "R539", "does not list"),
        # A normal form, a character without a width, a space that does not break.
        (["caf\u00e9", "cafe\u0301"], 2, None, "R539", "look the same"),
        (["oak", "oak\u200b"], 2, None, "R539", "oak\\u200b"),
        (["red oak", "red\u00a0oak"], 2, None, "R539", "red\\xa0oak"),
    ],
)
def test_classes_that_contradict_the_lock_are_refused(
    found: list[str], classes: int, given: Any, code: str, says: str
) -> None:
    with pytest.raises(RuntimeFinding) as raised:
        numbered("data", found, classes, given)
    assert raised.value.code == code
    assert says in raised.value.render()


def test_the_help_for_too_few_classes_is_to_list_all_classes() -> None:
    with pytest.raises(RuntimeFinding) as raised:
        numbered("data", ["oak"], 2, None)
    assert raised.value.help == "list all classes in `data.args: {classes: […]}` if some have no images yet"


def test_an_item_is_an_image_pyramid_and_a_class_number(tmp_path: Path) -> None:
    # Lying on its side, by its orientation: 20 wide and 40 high upright.
    picture = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8), (20, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    data = Labelled("folders", (8, 6), 3, (1.0, 0.5), [tmp_path / "a.jpg"], [4], ["x/a.jpg"], None)
    item = data[0]
    assert [tuple(level.shape) for level in item["image"]] == [(3, 8, 6), (3, 4, 3)]
    assert item["image"][0][0, 0].mean() < item["image"][0][0, -1].mean()  # upright
    assert (int(item["target"]), item["target"].dtype, item["name"]) == (4, torch.int64, "x/a.jpg")
    assert data.header(0).size == (20, 40)
    assert data.header(0).orientation == 6
    assert data.class_holders() == {4: 1}
    assert not hasattr(data, "class_names")
    with pytest.raises(RuntimeFinding, match="1 or 3 channels"):
        Labelled("csv", (8, 8), 4, (1.0,), [], [], [], None)
