"""The check of a segmentation target, and its number of pixels of each class."""

from __future__ import annotations

from typing import Any

import torch

from ratc_runtime.errors import RuntimeFinding


def amounts(image: Any, target: Any, name: str, classes: int, ignore_index: int | None) -> dict[int, int]:
    """Return the pixels of each class in one target: (1, ...) of one foreground class, else class numbers (...).

    `image` is a tensor (C, ...), a list of such from fine to coarse, or None if the shapes are not to be compared.
    Raises R573 if the target has a wrong form, or another size than the image, R570 and R536 for values that are no
    classes.
    """
    if not isinstance(target, torch.Tensor):
        raise _unfit(name, f"it is of type {type(target).__name__}, expected a tensor")
    finest = image[0] if isinstance(image, (list, tuple)) else image
    if classes == 1 and (target.dim() not in (3, 4) or target.shape[0] != 1):
        raise _unfit(name, f"its shape is {tuple(target.shape)}, expected (1, height, width) or one more for volumes")
    size = target.shape[1:] if classes == 1 else target.shape
    if isinstance(finest, torch.Tensor) and tuple(finest.shape[1:]) != tuple(size):
        raise _unfit(name, f"it has {_spelled(size)} pixels, the image {_spelled(finest.shape[1:])}")
    if classes > 1 and (target.is_floating_point() or target.dtype == torch.bool):
        raise _unfit(name, f"its numbers are {str(target.dtype).removeprefix('torch.')}, expected whole numbers")
    check_values(target, classes, ignore_index, f"the target of {name}")
    if classes == 1:
        foreground = int((target >= 0.5).sum())
        return {0: target.numel() - foreground, 1: foreground}
    values, counts = target.unique(return_counts=True)
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    found.pop(ignore_index, None)
    return found


def check_values(target: torch.Tensor, classes: int, ignore_index: int | None, what: str = "a target") -> None:
    """Check the values of a target, of any shape. Raises R570 unless those of one class are from 0 to 1, R536 unless
    those of several are class numbers or `ignore_index`.
    """
    if target.numel() == 0:
        return
    low, high = target.min().item(), target.max().item()
    if classes == 1 and (low < 0 or high > 1):
        raise RuntimeFinding(
            "R570",
            f"{what} is not a mask of one class: its values go from {low:g} to {high:g}",
            "data.num_classes is 1: a target is 0 in the background and 1 in the foreground",
            "divide masks of 0 and 255 by 255; if the values are classes, set data.num_classes",
            everywhere=False,
        )
    if classes == 1 or (low >= 0 and high < classes):
        return
    wrong = (target < 0) | (target >= classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if bool(wrong.any()):
        ignored = "" if ignore_index is None else f", and {ignore_index} for pixels that do not count"
        raise RuntimeFinding(
            "R536",
            f"{what} holds the value {target[wrong][0].item():g}, which is not a class",
            f"data.num_classes is {classes}: values from 0, the background, to {classes - 1}{ignored}",
            "set data.num_classes, or data.ignore_index for pixels without a label, and compile again",
            everywhere=False,
        )


def _unfit(name: str, note: str) -> RuntimeFinding:
    return RuntimeFinding(
        "R573",
        f"the target of {name} is not one of segmentation",
        note,
        "a target has the size of its image: (1, H, W) of 0 and 1, or with data.num_classes whole numbers (H, W)",
        everywhere=False,
    )


def _spelled(shape: Any) -> str:
    return " x ".join(map(str, shape))
