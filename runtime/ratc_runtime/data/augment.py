"""Augmentations of the training split: torchvision's transforms, applied to images, masks and boxes alike.

torchvision 0.28 transforms a tensor according to its type. Here every target gets the type mask or boxes, and a target
that fits neither is refused rather than left unchanged. Random numbers follow from the sample's seed alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ratc_runtime.data.randomness import torch_seeded
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import torchvision_operators

#: Photometric transforms that clip values to [0, 1]; GaussianNoise only if `clip`.
BOUNDED = frozenset(
    (
        "ColorJitter",
        "GaussianNoise",
        "RandomAdjustSharpness",
        "RandomEqualize",
        "RandomInvert",
        "RandomPhotometricDistort",
        "RandomPosterize",
        "RandomSolarize",
    )
)
#: Photometric: these change the image only.
PHOTOMETRIC = BOUNDED | {
    "GaussianBlur",
    "RandomAutocontrast",
    "RandomChannelPermutation",
    "RandomErasing",
    "RandomGrayscale",
}
GEOMETRIC = frozenset(
    (
        "ElasticTransform",
        "RandomAffine",
        "RandomCrop",
        "RandomHorizontalFlip",
        "RandomPerspective",
        "RandomResizedCrop",
        "RandomRotation",
        "RandomVerticalFlip",
    )
)
#: Our own: torchvision has no depth.
DEPTH_FLIP = "RandomDepthFlip"
#: Keys with a row per box, which are dropped with the box.
PER_BOX = ("labels", "area", "iscrowd", "masks")
#: The least side of a box in pixels. A smaller rest is dropped.
LEAST_SIDE = 1.0


class Augmentation:
    """The augmentations of a lock, in order, as `augment(image, target, seed)`.

    An image is (C, H, W), a volume (C, D, H, W), all slices of which get the same transform, or a pyramid: a list of
    such. Of a pyramid the finest level is augmented and the others are made from it again. A target is a tensor, a
    mapping or a list. A tensor whose last dimensions are the image's is a mask. Under the key `boxes` there are (N, 4)
    corners x0, y0, x1, y1 in pixels. Other tensors of two or more dimensions cannot go with a geometric transform
    (R534). Boxes of which less than a pixel stays in the image are dropped, with their rows of `labels`, `area`,
    `iscrowd` and `masks`.

    Raises R532 with the transform's name if it cannot be made or, in a call, cannot be applied.
    """

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self.steps = [_step(name, arguments or {}) for entry in entries for name, arguments in entry.items()]

    def __call__(self, image: Any, target: Any, seed: int) -> tuple[Any, Any]:
        levels = list(image) if isinstance(image, (list, tuple)) else [image]
        finest = max(range(len(levels)), key=lambda index: levels[index].numel())
        spatial = tuple(levels[finest].shape[1:])
        if len(spatial) not in (2, 3):
            raise RuntimeFinding(
                "R532", "an image of the data set has no augmentations", f"its shape is {tuple(levels[finest].shape)}"
            )
        geometric = any(step.geometric for step in self.steps)
        sample = {"image": _as_image(levels[finest]), "target": _wrap(target, spatial, geometric)}
        with torch_seeded(seed):
            for step in self.steps:
                sample = step(sample)
        moved = _plain(sample["image"])
        if moved.dim() == 4:
            moved = moved.transpose(0, 1)
        if tuple(moved.shape[1:]) != spatial:
            raise RuntimeFinding(
                "R532",
                "the augmentations change the size of an image",
                f"from {spatial} to {tuple(moved.shape[1:])}; a batch needs images of one size",
                "give RandomCrop and RandomResizedCrop the size of the image, and remove `expand` from RandomRotation",
            )
        moved = moved.contiguous()
        made = [moved if index == finest else _resized(moved, level) for index, level in enumerate(levels)]
        return made if isinstance(image, (list, tuple)) else moved, _unwrap(sample["target"], spatial)


class PerTask:
    """The same augmentations for each task's image and target, with different random numbers."""

    def __init__(self, augment: Augmentation) -> None:
        self.augment = augment

    def __call__(self, image: Mapping[str, Any], target: Mapping[str, Any], seed: int) -> tuple[Any, Any]:
        made = {name: self.augment(image[name], target[name], seed + n) for n, name in enumerate(image)}
        return {name: one[0] for name, one in made.items()}, {name: one[1] for name, one in made.items()}


class _Step:
    """One transform, with its name for messages."""

    def __init__(self, name: str, transform: Callable[[Any], Any], bounded: bool) -> None:
        self.name, self.transform, self.bounded = name, transform, bounded
        self.geometric = name not in PHOTOMETRIC

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        image = sample["image"]
        if self.bounded and image.is_floating_point():
            low, high = (float(value) for value in torch.aminmax(image.as_subclass(torch.Tensor)))
            if low < -1e-3 or high > 1 + 1e-3:
                raise RuntimeFinding(
                    "R532",
                    f"augmentation {self.name} needs images between 0 and 1",
                    f"this image goes from {low:g} to {high:g}; values outside of 0 to 1 would be cut off",
                    "scale the images in the data set, or leave the transform out",
                )
        try:
            result: dict[str, Any] = self.transform(sample)
        except RuntimeFinding:
            raise
        except Exception as error:  # torchvision raises many kinds
            raise RuntimeFinding(
                "R532", f"augmentation {self.name} cannot be applied", f"{type(error).__name__}: {error}"
            ) from error
        return result


def _step(name: str, arguments: dict[str, Any]) -> _Step:
    if name == DEPTH_FLIP:
        return _Step(name, _DepthFlip(**arguments), False)
    if name not in GEOMETRIC | PHOTOMETRIC:
        known = ", ".join(sorted(GEOMETRIC | PHOTOMETRIC | {DEPTH_FLIP}))
        raise RuntimeFinding("R532", f"no augmentation is called {name}", help=f"known are {known}")
    torchvision_operators.define()
    from torchvision.transforms import InterpolationMode, v2

    # It warns at each call that masks stay unchanged, as intended here.
    warnings.filterwarnings("ignore", message=r"RandomErasing\(\) is currently passing through")
    given = dict(arguments)
    try:
        if "interpolation" in given:
            given["interpolation"] = InterpolationMode(given["interpolation"])
        if "fill" in given:
            given["fill"] = _fill_of_images(given["fill"])
        transform = getattr(v2, name)(**given)
    except Exception as error:  # a constructor of the user's may raise anything
        shown = ", ".join(f"{key}={value!r:.40}" for key, value in arguments.items())
        raise RuntimeFinding(
            "R532",
            f"augmentation {name} cannot be made",
            f"{type(error).__name__}: {error}",
            f"it was called with {shown}" if shown else "it was called without arguments",
        ) from error
    return _Step(name, transform, name in BOUNDED and arguments.get("clip", True) is not False)


def _fill_of_images(fill: Any) -> dict[Any, Any]:
    """Return fill values that apply to images only. Uncovered parts of a mask become background, 0."""
    from torchvision import tv_tensors

    return {tv_tensors.Image: fill, tv_tensors.Mask: 0, "others": 0}


class _DepthFlip:
    """Flips a volume and its masks along their depth with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise RuntimeFinding("R532", f"augmentation {DEPTH_FLIP} cannot be made", f"p is {p}, not from 0 to 1")
        self.p = p

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        if sample["image"].dim() != 4:
            raise RuntimeFinding("R532", f"augmentation {DEPTH_FLIP} needs volumes", "the images have no depth")
        if torch.rand(()) >= self.p:
            return sample
        return {"image": _rewrapped(sample["image"], 0), "target": _flipped(sample["target"])}


def _rewrapped(tensor: Any, dim: int) -> Any:
    from torchvision import tv_tensors

    return tv_tensors.wrap(tensor.as_subclass(torch.Tensor).flip(dim), like=tensor)


def _flipped(target: Any) -> Any:
    from torchvision import tv_tensors

    if isinstance(target, tv_tensors.Mask):
        return _rewrapped(target, -3)
    if isinstance(target, dict):
        return {key: _flipped(item) for key, item in target.items()}
    return [_flipped(item) for item in target] if isinstance(target, list) else target


def _as_image(image: torch.Tensor) -> Any:
    from torchvision import tv_tensors

    # A volume becomes a row of images, (D, C, H, W), transformed with the same numbers. Not a Video of torchvision:
    # RandomGrayscale leaves those as they are without a word.
    return tv_tensors.Image(image.transpose(0, 1) if image.dim() == 4 else image)


def _wrap(value: Any, spatial: tuple[int, ...], geometric: bool, key: str = "") -> Any:
    from torchvision import tv_tensors

    if isinstance(value, Mapping):
        return {name: _wrap(item, spatial, geometric, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_wrap(item, spatial, geometric) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    if isinstance(value, tv_tensors.TVTensor):
        raise RuntimeFinding(
            "R534", f"a target is a {type(value).__name__} of torchvision", help="give plain tensors: boxes as corners"
        )
    if key == "boxes" and value.dim() == 2 and value.shape[-1] == 4:
        if len(spatial) != 2:
            raise RuntimeFinding("R534", "boxes of volumes cannot be moved by augmentations")
        return tv_tensors.BoundingBoxes(value, format="XYXY", canvas_size=spatial)
    if value.dim() >= len(spatial) and tuple(value.shape[-len(spatial) :]) == spatial:
        return tv_tensors.Mask(value)
    if value.dim() >= 2 and geometric:
        raise RuntimeFinding(
            "R534",
            f"a target of shape {tuple(value.shape)} cannot be changed together with an image of size {spatial}",
            "a mask has the size of its image, and boxes, (N, 4), stand under the key `boxes`",
            "give the data set's masks the size of its images, or leave geometric augmentations out",
        )
    return value


def _plain(tensor: Any) -> torch.Tensor:
    result: torch.Tensor = tensor.as_subclass(torch.Tensor)
    return result


def _unwrap(value: Any, spatial: tuple[int, ...]) -> Any:
    if isinstance(value, dict):
        return _clip_boxes({key: _unwrap(item, spatial) for key, item in value.items()}, spatial)
    if isinstance(value, list):
        return [_unwrap(item, spatial) for item in value]
    return _plain(value).contiguous() if isinstance(value, torch.Tensor) else value


def _clip_boxes(target: dict[str, Any], spatial: tuple[int, ...]) -> dict[str, Any]:
    """Clip boxes at the image's edge, and drop those with a side shorter than `LEAST_SIDE`."""
    boxes = target.get("boxes")
    if not isinstance(boxes, torch.Tensor) or boxes.dim() != 2 or boxes.shape[-1] != 4:
        return target
    height, width = spatial
    limits = torch.tensor([width, height, width, height], dtype=boxes.dtype)
    boxes = torch.minimum(boxes.clamp(min=0), limits)
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
    rows = {
        key: target[key][kept]
        for key in PER_BOX
        if isinstance(target.get(key), torch.Tensor) and target[key].shape[:1] == kept.shape
    }
    return {**target, **rows, "boxes": boxes[kept]}


def _resized(finest: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Return a coarser level of a pyramid in its previous size, with antialiasing as in Pillow."""
    from torch.nn import functional

    size = tuple(level.shape[1:])
    if len(size) == 2:
        return functional.interpolate(finest[None], size, mode="bilinear", antialias=True)[0]
    return functional.interpolate(finest[None], size, mode="area")[0]
