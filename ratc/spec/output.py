"""The sections of a spec about what a run leaves: `logging` and `checkpoint`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ratc.spec.base import Count, PositiveInt, Section, Text
from ratc.spec.keys import Effect, Key


class Logging(Section):
    """Where the curves go."""

    backend: Annotated[Literal["tensorboard", "none"], Key(plan="logging.tensorboard")] = Field(
        "tensorboard", description="Local event files."
    )
    use_mlflow: Annotated[bool, Key(plan="logging.mlflow")] = Field(
        True, description="Track with MLflow: SQLite in the output folder, or MLFLOW_TRACKING_URI if set."
    )
    mlflow_experiment_name: Annotated[Text | None, Key(memory="apart")] = Field(
        None, description="MLflow experiment; `experiment_name` if absent."
    )
    use_wandb: Annotated[bool, Key(plan="logging.wandb")] = Field(
        False, description="Track with Weights & Biases, which `pip install 'ratc[wandb]'` brings.", examples=[True]
    )
    wandb_project: Annotated[Text | None, Key(memory="apart")] = Field(
        None, description="Weights & Biases project; `experiment_name` if absent."
    )
    wandb_mode: Literal["online", "offline"] = Field(
        "online", description="`offline` keeps runs in the output folder to be sent later; WANDB_MODE comes before it."
    )
    log_every_steps: PositiveInt = Field(10, description="Optimizer steps between points of the training curves.")


class Checkpoint(Section):
    """What is kept of the model, and when."""

    every_epochs: PositiveInt = Field(1, description="Epochs between checkpoints.")
    every_steps: PositiveInt | None = Field(
        None, description="Optimizer steps between checkpoints, besides those of `every_epochs`.", examples=[500]
    )
    keep_last: PositiveInt = Field(
        2, description="Newest checkpoints to keep; with 2, one that turns out damaged costs an interval, not the run."
    )
    keep_best: PositiveInt = Field(1, description="Best checkpoints to keep, by `best_metric`.")
    asynchronous: Annotated[
        bool | Literal["auto"],
        Key(
            (Effect.PLACEMENT, Effect.MEMORY),
            "checkpoints are written from a copy in host memory, or training waits",
        ),
    ] = Field(
        "auto",
        description="Write checkpoints while training goes on, from a copy in host memory; `auto`: on a GPU, without "
        "DeepSpeed.",
    )
    best_metric: Annotated[Text | None, Key((Effect.TRAINING,), "another epoch is kept as the best")] = Field(
        None,
        description="Validation metric that chooses the best: `loss` or a score of the task; its first if absent.",
        examples=["dice", "iou", "loss"],
    )
    resume: Annotated[Literal["auto", "never"], Key((Effect.PLACEMENT,), "whether an interrupted run is continued")] = (
        Field("auto", description="Continue from the last checkpoint of the same lock.")
    )
    own_code: Annotated[
        Literal["strict", "warn"],
        Key((Effect.PLACEMENT,), "whether own code that changed keeps a run from starting"),
    ] = Field(
        "strict",
        description="If code of your own changed since it was compiled, or since the checkpoint was trained: "
        "`strict` refuses to start, `warn` says so and goes on.",
    )
    requeue: Literal["auto", "never"] = Field(
        "auto",
        description="`auto`: a job that is preempted or out of time saves and is requeued, if the cluster allows it.",
    )
    max_restarts: Count = Field(20, description="Times a job may be requeued.")
    stop_before_seconds: Annotated[int, Field(ge=60, le=65_535)] = Field(
        180, description="Seconds before the walltime at which the job is told to save.", examples=[300]
    )
