"""The table of augmentations: transforms of torchvision that move masks and boxes correctly, and their arguments.

It holds for torchvision 0.28 (`torchvision.transforms.v2`); the runtime's tests compare it with the one installed, and
move marked masks and boxes through every transform of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TORCHVISION = "0.28"


@dataclass(frozen=True, slots=True)
class Kind:
    """The valid values of an argument: a test, and the words for it."""

    accepts: Callable[[Any], bool]
    words: str


@dataclass(frozen=True, slots=True)
class Transform:
    """Arguments by name; the required ones; and whether it moves pixels, or changes only their colours."""

    arguments: dict[str, Kind]
    required: tuple[str, ...] = ()
    moves: bool = False


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(value: Any, *lengths: int) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(_number(item) for item in value)


def _ascending(value: Any) -> bool:
    return _numbers(value, 2) and value[0] <= value[1]


def _size(value: Any) -> bool:
    sides = value if isinstance(value, list) else [value]
    return len(sides) in (1, 2) and all(type(side) is int and side > 0 for side in sides)


def _odd(value: Any) -> bool:
    return _size(value) and all(side % 2 for side in (value if isinstance(value, list) else [value]))


def _padding(value: Any) -> bool:
    sides = value if isinstance(value, list) else [value]
    return len(sides) in (1, 2, 4) and all(type(side) is int and side >= 0 for side in sides)


def _choice(*names: str) -> Kind:
    return Kind(lambda value: value in names and isinstance(value, str), "one of " + ", ".join(names))


_P = Kind(lambda value: _number(value) and 0 <= value <= 1, "a number from 0 to 1")
_NUMBER = Kind(_number, "a number")
_AT_LEAST_0 = Kind(lambda value: _number(value) and value >= 0, "a number of at least 0")
_RANGE = Kind(_ascending, "a list of two numbers, the smaller first")
_POSITIVE_RANGE = Kind(
    lambda value: _ascending(value) and value[0] > 0, "a list of two numbers above 0, the smaller first"
)
_FRACTIONS = Kind(
    lambda value: _numbers(value, 2) and all(0 <= part <= 1 for part in value), "a list of two numbers from 0 to 1"
)
_SPREAD = Kind(
    lambda value: (_number(value) and value >= 0) or _ascending(value),
    "a number of at least 0, or a list of two, the smaller first",
)
_FACTOR = Kind(
    lambda value: (_number(value) and value >= 0) or (_ascending(value) and value[0] >= 0),
    "a number of at least 0, or a list of two such numbers, the smaller first",
)
_HUE = Kind(
    lambda value: (
        (_number(value) and 0 <= value <= 0.5) or (_ascending(value) and value[0] >= -0.5 and value[1] <= 0.5)
    ),
    "a number from 0 to 0.5, or a list of two from -0.5 to 0.5",
)
_SHEAR = Kind(lambda value: (_number(value) and value >= 0) or _numbers(value, 2, 4), "a number, or a list of 2 or 4")
_ONE_OR_TWO = Kind(
    lambda value: (_number(value) and value > 0) or (_numbers(value, 1, 2) and min(value) > 0),
    "a number above 0, or a list of two",
)
_SIZE = Kind(_size, "pixels: a whole number, or [height, width]")
_ODD = Kind(_odd, "an odd number of pixels, or a list of two")
_BOOL = Kind(lambda value: isinstance(value, bool), "true or false")
_FILL = Kind(lambda value: _number(value) or _numbers(value, 1, 3), "a number, or one for each channel")
_CENTER = Kind(lambda value: _numbers(value, 2), "a list of two numbers, x and y")
_PADDING = Kind(_padding, "pixels: a whole number, or a list of 1, 2 or 4")
_INTERPOLATION = _choice("nearest", "bilinear", "bicubic")
_BITS = Kind(lambda value: type(value) is int and 0 <= value <= 8, "a whole number from 0 to 8")

TRANSFORMS: dict[str, Transform] = {
    "RandomHorizontalFlip": Transform({"p": _P}, moves=True),
    "RandomVerticalFlip": Transform({"p": _P}, moves=True),
    "RandomDepthFlip": Transform({"p": _P}, moves=True),
    "RandomRotation": Transform(
        {"degrees": _SPREAD, "interpolation": _INTERPOLATION, "center": _CENTER, "fill": _FILL},
        ("degrees",),
        moves=True,
    ),
    "RandomAffine": Transform(
        {
            "degrees": _SPREAD,
            "translate": _FRACTIONS,
            "scale": _POSITIVE_RANGE,
            "shear": _SHEAR,
            "interpolation": _INTERPOLATION,
            "fill": _FILL,
            "center": _CENTER,
        },
        ("degrees",),
        moves=True,
    ),
    "RandomPerspective": Transform(
        {"distortion_scale": _P, "p": _P, "interpolation": _INTERPOLATION, "fill": _FILL}, moves=True
    ),
    "ElasticTransform": Transform(
        {"alpha": _FACTOR, "sigma": _ONE_OR_TWO, "interpolation": _INTERPOLATION, "fill": _FILL}, moves=True
    ),
    "RandomCrop": Transform(
        {
            "size": _SIZE,
            "padding": _PADDING,
            "pad_if_needed": _BOOL,
            "fill": _FILL,
            "padding_mode": _choice("constant", "edge", "reflect", "symmetric"),
        },
        moves=True,
    ),
    "RandomResizedCrop": Transform(
        {
            "size": _SIZE,
            "scale": _POSITIVE_RANGE,
            "ratio": _POSITIVE_RANGE,
            "interpolation": _INTERPOLATION,
            "antialias": _BOOL,
        },
        moves=True,
    ),
    "ColorJitter": Transform({"brightness": _FACTOR, "contrast": _FACTOR, "saturation": _FACTOR, "hue": _HUE}),
    "RandomPhotometricDistort": Transform(
        {"brightness": _RANGE, "contrast": _RANGE, "saturation": _RANGE, "hue": _RANGE, "p": _P}
    ),
    "RandomGrayscale": Transform({"p": _P}),
    "RandomChannelPermutation": Transform({}),
    "GaussianBlur": Transform({"kernel_size": _ODD, "sigma": _ONE_OR_TWO}, ("kernel_size",)),
    "GaussianNoise": Transform({"mean": _NUMBER, "sigma": _AT_LEAST_0, "clip": _BOOL}),
    "RandomInvert": Transform({"p": _P}),
    "RandomPosterize": Transform({"bits": _BITS, "p": _P}, ("bits",)),
    "RandomSolarize": Transform({"threshold": _NUMBER, "p": _P}, ("threshold",)),
    "RandomAdjustSharpness": Transform({"sharpness_factor": _AT_LEAST_0, "p": _P}, ("sharpness_factor",)),
    "RandomAutocontrast": Transform({"p": _P}),
    "RandomEqualize": Transform({"p": _P}),
    "RandomErasing": Transform({"p": _P, "scale": _RANGE, "ratio": _POSITIVE_RANGE, "value": _NUMBER}),
}

#: Of transforms that torchvision has and that do not belong here: why not.
ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(
        ("Resize", "RandomResize", "RandomShortestSize", "ScaleJitter", "RandomZoomOut", "RandomIoUCrop", "Pad"),
        "it changes the size of an image, and a batch needs images of one size: use RandomResizedCrop or RandomAffine",
    ),
    **dict.fromkeys(("FiveCrop", "TenCrop"), "it makes several images out of one"),
    **dict.fromkeys(("CenterCrop", "Grayscale", "RGB"), "it is not random: set `image_size` and `channels` instead"),
    **dict.fromkeys(
        ("Normalize", "LinearTransformation"),
        "it would not be applied to val and test: let the data set scale its images",
    ),
    **dict.fromkeys(
        ("Compose", "RandomApply", "RandomChoice", "RandomOrder", "Lambda"),
        "list the single transforms instead; most take a probability `p`",
    ),
    **dict.fromkeys(
        ("AugMix", "AutoAugment", "RandAugment", "TrivialAugmentWide"), "it moves images without their masks and boxes"
    ),
    **dict.fromkeys(("CutMix", "MixUp"), "it mixes labels, not masks or boxes"),
    **dict.fromkeys(("JPEG", "ToImage", "ToTensor", "ToDtype", "ToPILImage"), "images are tensors of floats already"),
}
#: Transforms without effect on grey images.
COLOUR_ONLY = ("RandomGrayscale", "RandomChannelPermutation")
COLOUR_ARGUMENTS = ("saturation", "hue")
