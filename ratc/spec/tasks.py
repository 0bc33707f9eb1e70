"""The sections of a spec about what is learnt beside `model` and `data`: `evaluation`, `detection` and `tasks`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ratc.catalog.tasks import PartType
from ratc.spec.base import CALLABLE, DATASET, LOSS, Arguments, ClassName, Positive, Section, TaskName, Text
from ratc.spec.keys import LEARNT, Effect, Key


class Evaluation(Section):
    """How a model is scored, beside the scores that every run has."""

    hausdorff: bool = Field(
        False,
        description="Also compute Hausdorff distances on val and test (95th percentile and maximum), in units of "
        "`model.spacing`. They cost CPU time.",
    )
    scores: dict[TaskName, Annotated[str, Field(pattern=CALLABLE)]] = Field(
        {},
        description="Scores of your own beside those of the task, by names of your choice. Each "
        "`package.module:callable` returns a function of the outputs and targets of one sample; the function returns "
        "a number, and larger is better.",
        examples=[{"mae": "my_package.scores:Closeness"}],
    )


class Detection(Section):
    """The head of `task_type: detection`: queries that look for one object each."""

    queries: Annotated[int, Field(ge=1, le=2000)] = Field(
        100, description="Largest number of objects that can be found in an image.", examples=[100]
    )
    decoder_layers: Annotated[int, Field(ge=1, le=24)] = Field(
        3, description="Number of layers of the decoder.", examples=[3]
    )


class PartData(Section):
    """The data of one of several tasks; sizes, channels, augmentations and loading stand under `data`."""

    folder: Annotated[
        Text,
        Key(
            (Effect.PLACEMENT,),
            "the task's data lies in another folder; ratc cannot see whether it is the same data",
        ),
    ] = Field(".", description="Folder of the task's data, within `data.data_dir`.", examples=["lesions"])
    dataset: str | None = Field(
        None,
        pattern=DATASET,
        description="Data set of the task, as in `data.dataset`; if absent, the first of the task.",
        examples=["isic", "coco"],
    )
    args: Arguments = Field({}, description="As `data.args`.")
    num_classes: Annotated[
        Annotated[int, Field(ge=1, le=256)],
        Key((*LEARNT, Effect.MEMORY), "other classes, and with them another head"),
    ] = Field(1, description="As `data.num_classes`.", examples=[3])
    class_names: Annotated[list[ClassName] | None, Key((Effect.COSMETIC,), "other words for the same classes")] = Field(
        None, description="As `data.class_names`."
    )
    ignore_index: Annotated[int, Field(ge=0, le=255)] | None = Field(None, description="As `data.ignore_index`.")


class Part(Section):
    """One of several tasks: its head, its loss and its data."""

    task_type: PartType = Field(..., description="Kind of task.")
    weight: Annotated[Positive, Key(LEARNT, "the task's loss has another weight")] = Field(
        1.0, description="Factor of the task's loss in the sum of all losses.", examples=[0.5]
    )
    loss: Annotated[str, Field(pattern=LOSS)] | None = Field(None, description="As `training.loss`.")
    loss_args: Arguments = Field({}, description="As `training.loss_args`.")
    data: Annotated[PartData, Key(LEARNT, "the task has other data")] = Field(PartData(), description="Its data.")
    detection: Detection = Field(Detection(), description="Head of the model with `task_type: detection`.")
