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
        0, description="The fold that validates, from 0; an array has a point for each."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seed of the division, the same for all folds.")
    group: Text | None = Field(
        None,
        description="Regular expression of samples' names: those with equal matches, or equal first groups, are in one "
        "fold, as the images of a patient. Patches of a volume always are.",
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
        description="Keyword arguments of a `package.module:callable`; `isic` and `volumes` take `mask_threshold`,"
        " `volumes` also `window`, `overlap` and `fill_nan`; `folders` and `csv` take `classes`, `csv` also `file`.",
    )
    data_dir: Annotated[
        Text | None,
        Key(
            (Effect.PLACEMENT,),
            "the data lies elsewhere; whether it is the same data ratc cannot see",
            rate=False,
            option="data-dir",
            order=1,
            path="folder",
        ),
    ] = Field(
        None,
        description="Folder of the data; relative to the spec's folder. Only beside `entrypoint` it may be absent.",
        examples=["/shared/ISIC2018", "data"],
    )
    image_size: Annotated[
        Side | Annotated[list[Side], Field(min_length=2, max_length=3)],
        Key((*LEARNT, Effect.MEMORY), "other images", memory="depends", option="image-size", order=7),
    ] = Field(
        256,
        description="Pixels images are resized to, or voxels of a volume's patches: one number for all sides, "
        "[height, width] or [depth, height, width].",
        examples=[256, [192, 256], [64, 96, 96]],
    )
    channels: Annotated[
        Annotated[int, Field(ge=1, le=1024)],
        Key((*LEARNT, Effect.MEMORY), "other images", memory="depends"),
    ] = Field(3, description="1 grey, 3 RGB; other numbers for `volumes` and your own data.")
    num_classes: Annotated[
        Annotated[int, Field(ge=1, le=256)],
        Key((*LEARNT, Effect.MEMORY), "other classes, and with them another head", memory="depends"),
    ] = Field(
        1,
        description="1: foreground and background. From 2 on a mask holds class numbers from 0, the background. Of "
        "detection: classes of objects; of classification: classes of images, from 2 on.",
        examples=[3],
    )
    class_names: Annotated[list[ClassName] | None, Key((Effect.COSMETIC,), "other words for the same classes")] = Field(
        None,
        description="Names of the classes, `num_classes` of them; numbers if absent.",
        examples=[["background", "grey matter", "white matter"]],
    )
    ignore_index: Annotated[
        Annotated[int, Field(ge=0, le=255)] | None, Key(LEARNT, "other pixels count", memory="depends")
    ] = Field(
        None, description="The number in a mask for pixels that do not count, with several classes.", examples=[255]
    )
    scales: Annotated[
        Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=8)] | None,
        Key((*LEARNT, Effect.MEMORY), "another image pyramid", memory="depends"),
    ] = Field(
        None,
        description="Image pyramid for `model.multi_scale`: factors of `image_size`, the first is 1.",
        examples=[[1.0, 0.5]],
    )
    folds: Annotated[Folds | None, Key(LEARNT, "other samples are trained on", memory="apart", rate=True)] = Field(
        None, description="One fold of a cross-validation.", examples=[{"number": 5, "index": 0}]
    )
    on_bad_sample: Literal["fail", "skip"] = Field("fail", description="Reaction to a missing or corrupt image.")
    augmentations: Annotated[
        list[Annotated[dict[Variable, Arguments], Field(min_length=1, max_length=1)]],
        Key(LEARNT, "other random changes of the training images"),
    ] = Field(
        [],
        description="Random changes of the training images, in order: transforms of torchvision by name, with their "
        "arguments; masks and boxes move along.",
        examples=[[{"RandomHorizontalFlip": {"p": 0.5}}, {"ColorJitter": {"brightness": 0.2}}]],
    )
    cache: Annotated[
        Literal["none", "memory", "disk"],
        Key(
            (Effect.PLACEMENT,),
            "decoded images are kept in another way; what is learnt is the same",
            rate=False,
        ),
    ] = Field(
        "none",
        description="Keep decoded images from epoch to epoch, one copy a node: in memory, or in a file under "
        "`RAT_CACHE_DIR` or the output folder.",
    )
    cache_size: Annotated[
        Annotated[str, Field(pattern=MEMORY)] | PositiveInt | None,
        Key(
            (Effect.PLACEMENT,),
            "decoded images are kept in another way; what is learnt is the same",
            rate=False,
        ),
    ] = Field(
        None,
        description="Most that the cache may hold on a node; a bare number is in GB. If absent, a third of the "
        "host's memory, or 64 GB of disk.",
        examples=["8GB"],
    )
    auto_optimize: bool = Field(
        True, description="Let ratc choose workers, pinning and prefetching if they are absent."
    )
    num_workers: Annotated[
        Annotated[int, Field(ge=0, le=1024)] | None,
        Key(
            (Effect.PLACEMENT,),
            "other loader processes; the order of samples stays",
            rate=False,
            option="num-workers",
            order=8,
        ),
    ] = Field(None, description="Loader processes per GPU.", examples=[4])
    pin_memory: Annotated[bool | None, Key((Effect.PLACEMENT,), "another way to copy to the GPU", rate=False)] = Field(
        None, description="Page-locked host buffers; if absent, on a GPU."
    )
    prefetch_factor: Annotated[
        PositiveInt | None, Key((Effect.PLACEMENT,), "more or fewer batches prepared ahead", rate=False)
    ] = Field(
        None,
        description="Batches each loader process prepares ahead; if absent, one and its share of an optimizer step, "
        "within the host's memory.",
        examples=[2],
    )
