"""The section `data` of a spec: the samples and their loading."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ratc.spec.base import (
    DATASET,
    MEMORY,
    Arguments,
    ClassName,
    PositiveInt,
    Section,
    Side,
    Text,
    Variable,
)
from ratc.spec.keys import LEARNT, Effect, Key


class Folds(Section):
    """A fold of a cross-validation: train and val are put together and divided by a seed. The test split stays."""

    number: Annotated[int, Field(ge=2, le=1000)] = Field(..., description="Folds.", examples=[5])
    index: Annotated[int, Field(ge=0, le=999)] = Field(
        0, description="Number of the fold for validation, from 0; a `sweep` over it trains every fold."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seed of the division, the same for all folds.")
    group: Text | None = Field(
        None,
        description="Regular expression for names of samples. Samples with the same match, or the same first group, "
        "go into one fold, such as the images of one patient. All patches of a volume are in one fold anyway.",
        examples=["^(P[0-9]+)_"],
    )


class Data(Section):
    """What is trained on and how it is loaded."""

    dataset: str = Field(
        "isic",
        pattern=DATASET,
        description="`isic` (images in the ISIC 2018 layout), `volumes` (NIfTI, in patches), `coco` (boxes in the COCO "
        "layout), `folders` (images in a folder for each class), `csv` (images and classes in a table) or "
        "`package.module:callable`.",
        examples=["isic", "volumes", "coco", "folders", "csv"],
    )
    args: Arguments = Field(
        {},
        description="Keyword arguments of the data set: any of a `package.module:callable`; `mask_threshold` of "
        "`isic` and `volumes`; `window`, `overlap` and `fill_nan` of `volumes`; `classes` of `folders` and `csv`; "
        "`file` of `csv`.",
    )
    data_dir: Annotated[
        Text | None,
        Key(
            (Effect.PLACEMENT,),
            "the data lies in another folder; ratc cannot see whether it is the same data",
            rate=False,
            option="data-dir",
            order=1,
            path="folder",
        ),
    ] = Field(
        None,
        description="Folder of the data, relative to the spec's folder. Required, except with `entrypoint`.",
        examples=["/shared/ISIC2018", "data"],
    )
    image_size: Annotated[
        Side | Annotated[list[Side], Field(min_length=2, max_length=3)],
        Key((*LEARNT, Effect.MEMORY), "other images", memory="depends", option="image-size", order=7),
    ] = Field(
        256,
        description="Size in pixels to which images are resized, or size in voxels of a volume's patches: one number "
        "for all sides, [height, width] or [depth, height, width].",
        examples=[256, [192, 256], [64, 96, 96]],
    )
    channels: Annotated[
        Annotated[int, Field(ge=1, le=1024)],
        Key((*LEARNT, Effect.MEMORY), "other images", memory="depends"),
    ] = Field(
        3,
        description="Channels of an image: 1 for grey, 3 for RGB; other numbers only with `volumes` and "
        "your own data set.",
    )
    num_classes: Annotated[
        Annotated[int, Field(ge=1, le=256)],
        Key((*LEARNT, Effect.MEMORY), "other classes, and with them another head", memory="depends"),
    ] = Field(
        1,
        description="Number of classes. Segmentation: 1 means foreground and background; with 2 or more, a mask "
        "holds class numbers, and 0 is the background. Detection: classes of objects. Classification: classes of "
        "images, 2 or more.",
        examples=[3],
    )
    class_names: Annotated[list[ClassName] | None, Key((Effect.COSMETIC,), "other words for the same classes")] = Field(
        None,
        description="Names of the classes, `num_classes` of them; if absent, classes are shown by number.",
        examples=[["background", "grey matter", "white matter"]],
    )
    ignore_index: Annotated[
        Annotated[int, Field(ge=0, le=255)] | None,
        Key(LEARNT, "other pixels of the masks are ignored", memory="depends"),
    ] = Field(
        None,
        description="With several classes, the number in a mask for pixels that loss and scores ignore.",
        examples=[255],
    )
    scales: Annotated[
        Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=8)] | None,
        Key((*LEARNT, Effect.MEMORY), "another image pyramid", memory="depends"),
    ] = Field(
        None,
        description="Scales of the image pyramid for `model.multi_scale`, as factors of `image_size`; the first is 1.",
        examples=[[1.0, 0.5]],
    )
    folds: Annotated[Folds | None, Key(LEARNT, "the model is trained on other samples", memory="apart", rate=True)] = (
        Field(None, description="One fold of a cross-validation.", examples=[{"number": 5, "index": 0}])
    )
    on_bad_sample: Literal["fail", "skip"] = Field("fail", description="Reaction to a missing or damaged image.")
    augmentations: Annotated[
        list[Annotated[dict[Variable, Arguments], Field(min_length=1, max_length=1)]],
        Key(LEARNT, "other random changes of the training images"),
    ] = Field(
        [],
        description="Random changes of the training images, in this order: names of torchvision transforms with "
        "their arguments. Masks and boxes are changed in the same way.",
        examples=[[{"RandomHorizontalFlip": {"p": 0.5}}, {"ColorJitter": {"brightness": 0.2}}]],
    )
    cache: Annotated[
        Literal["none", "memory", "disk"],
        Key(
            (Effect.PLACEMENT,),
            "decoded images are cached in another way; the trained model is the same",
            rate=False,
        ),
    ] = Field(
        "none",
        description="Keep decoded images from epoch to epoch, one copy per node: in memory, or in a file under "
        "`RAT_CACHE_DIR` (if not set, under the output folder).",
    )
    cache_size: Annotated[
        Annotated[str, Field(pattern=MEMORY)] | PositiveInt | None,
        Key(
            (Effect.PLACEMENT,),
            "decoded images are cached in another way; the trained model is the same",
            rate=False,
        ),
    ] = Field(
        None,
        description="Largest size of the cache on a node; a bare number is in GB. If absent, a third of the host's "
        "memory, or 64 GB on disk.",
        examples=["8GB"],
    )
    auto_optimize: bool = Field(
        True, description="Let ratc choose `num_workers`, `pin_memory` and `prefetch_factor` if they are absent."
    )
    num_workers: Annotated[
        Annotated[int, Field(ge=0, le=1024)] | None,
        Key(
            (Effect.PLACEMENT,),
            "another number of loader processes; the order of samples stays",
            rate=False,
            option="num-workers",
            order=8,
        ),
    ] = Field(None, description="Loader processes per GPU.", examples=[4])
    pin_memory: Annotated[
        bool | None, Key((Effect.PLACEMENT,), "batches are copied to the GPU in another way", rate=False)
    ] = Field(
        None, description="Copy batches to page-locked host memory before they go to the GPU; if absent, true on GPUs."
    )
    prefetch_factor: Annotated[
        PositiveInt | None, Key((Effect.PLACEMENT,), "more or fewer batches prepared ahead", rate=False)
    ] = Field(
        None,
        description="Batches that each loader process prepares ahead; if absent, one plus its share of an optimizer "
        "step, as far as the host's memory allows.",
        examples=[2],
    )
