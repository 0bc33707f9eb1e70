"""The sections of a spec about what a run leaves: `logging` and `checkpoint`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ratc.spec.base import Count, PositiveInt, Section, Text
from ratc.spec.keys import Effect, Key


class Logging(Section):
    """Where the curves go."""

    backend: Annotated[Literal["tensorboard", "none"], Key(plan="logging.tensorboard")] = Field(
        "tensorboard", description="Event files in the output folder: TensorBoard's, or none."
    )
    use_mlflow: Annotated[bool, Key(plan="logging.mlflow")] = Field(
        True,
        description="Track the run with MLflow: in an SQLite file in the output folder, or at "
        "MLFLOW_TRACKING_URI if that is set.",
    )
    mlflow_experiment_name: Annotated[Text | None, Key(memory="apart")] = Field(
        None, description="Experiment of MLflow; if absent, `experiment_name`."
    )
    use_wandb: Annotated[bool, Key(plan="logging.wandb")] = Field(
        False,
        description="Track the run with Weights & Biases; `pip install 'ratc[wandb]'` installs it.",
        examples=[True],
    )
    wandb_project: Annotated[Text | None, Key(memory="apart")] = Field(
        None, description="Project of Weights & Biases; if absent, `experiment_name`."
    )
    wandb_mode: Literal["online", "offline"] = Field(
        "online",
        description="Mode of Weights & Biases; `offline` keeps the run in the output folder, to be sent "
        "later. If the variable WANDB_MODE is set, it wins.",
    )
    log_every_steps: PositiveInt = Field(10, description="Optimizer steps between points of the training curves.")


class Checkpoint(Section):
    """What is kept of the model, and when."""

    every_epochs: PositiveInt = Field(1, description="Epochs between checkpoints.")
    every_steps: PositiveInt | None = Field(
        None, description="Optimizer steps between further checkpoints, beside those of `every_epochs`.", examples=[500]
    )
    keep_last: PositiveInt = Field(
        2,
        description="Number of newest checkpoints to keep. With 2, a damaged checkpoint costs one interval, not "
        "the whole run.",
    )
    keep_best: PositiveInt = Field(1, description="Number of best checkpoints to keep, ranked by `best_metric`.")
    asynchronous: Annotated[
        bool | Literal["auto"],
        Key(
            (Effect.PLACEMENT, Effect.MEMORY),
            "checkpoints are written from a copy in host memory, or training waits",
        ),
    ] = Field(
        "auto",
        description="Write checkpoints while training goes on, from a copy in host memory; `auto` does so on GPUs "
        "without DeepSpeed.",
    )
    best_metric: Annotated[
        Text | None, Key((Effect.TRAINING,), "another score decides which epoch is kept as the best")
    ] = Field(
        None,
        description="Validation metric that ranks checkpoints: `loss` or a score of the task; if absent, the task's "
        "first score.",
        examples=["dice", "iou", "loss"],
    )
    resume: Annotated[
        Literal["auto", "never"],
        Key((Effect.PLACEMENT,), "an interrupted run is continued, or starts from the beginning"),
    ] = Field(
        "auto",
        description="`auto` continues from the last checkpoint that was trained by the same lock; `never` does not.",
    )
    own_code: Annotated[
        Literal["strict", "warn"],
        Key((Effect.PLACEMENT,), "changed code of your own stops a run from starting, or gives a warning"),
    ] = Field(
        "strict",
        description="Reaction if your own code has changed since the spec was compiled, or since the checkpoint was "
        "trained: `strict` refuses to start, `warn` prints a warning and goes on.",
    )
    requeue: Literal["auto", "never"] = Field(
        "auto",
        description="With `auto`, a job that is preempted or out of time saves a checkpoint and is requeued, if the "
        "cluster allows it.",
    )
    max_restarts: Count = Field(20, description="Number of times that a job may be requeued.")
    stop_before_seconds: Annotated[int, Field(ge=60, le=65_535)] = Field(
        180,
        description="Seconds before the end of the walltime at which the job is told to save a checkpoint.",
        examples=[300],
    )
