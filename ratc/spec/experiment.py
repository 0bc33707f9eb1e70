"""The spec's shape: pydantic models, the one source of ``schemas/experiment.schema.json`` and of the docs' reference.

The compiler itself reads the generated schema (importing pydantic costs more than the whole of ``ratc validate``);
these classes are for generating it, for tools that want a typed spec, and for the test that both accept the same.

The sections are in files of their own: `model.py`, `training.py`, `data.py`, `tasks.py` (also `evaluation` and
`detection`), `job.py` (`entrypoint`, `parallel`, `distributed`, `resources`, `environment`), `output.py` (`logging`,
`checkpoint`), `compression.py` and `tuning.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from ratc.catalog.tasks import TaskType
from ratc.spec.base import KeyPath, Name, PositiveInt, Section, TaskName, Text
from ratc.spec.compression import Compression
from ratc.spec.data import Data
from ratc.spec.job import Distributed, Entrypoint, Environment, Parallel, Resources
from ratc.spec.keys import LEARNT, Effect, Key
from ratc.spec.model import Model
from ratc.spec.output import Checkpoint, Logging
from ratc.spec.tasks import Detection, Evaluation, Part
from ratc.spec.training import Training
from ratc.spec.tuning import Tuning


class Sweep(Section):
    """An array of runs on one cluster, a point each: one of `grid`, `list` and `points`."""

    grid: dict[KeyPath, Annotated[list[Any], Field(min_length=1)]] | None = Field(
        None,
        description="Values to combine, by key. Every combination is a point of the array; the last key varies "
        "fastest.",
        examples=[{"training.learning_rate": [1e-4, 3e-4], "seed": [1, 2, 3]}],
    )
    entries: list[dict[KeyPath, Any]] | None = Field(
        None,
        alias="list",
        description="Points of the array in their order, each a mapping of keys to values.",
        examples=[[{"seed": 1}, {"seed": 2}]],
    )
    points: dict[Name, dict[KeyPath, Any]] | None = Field(
        None,
        description="Points of the array by name, each a mapping of keys to values.",
        examples=[{"small": {"model.feature_dims": 64}}],
    )
    max_parallel: Annotated[
        PositiveInt | None, Key((Effect.PLACEMENT,), "more or fewer points run at the same time", script=True)
    ] = Field(None, description="Largest number of points that run at the same time.", examples=[4])


class Spec(Section):
    """What to train. `ratc compile` works out how."""

    model_config = Section.model_config | ConfigDict(
        # The built-in loop needs data; a program of your own finds its own.
        json_schema_extra={
            "if": {"not": {"required": ["entrypoint"], "properties": {"entrypoint": {"type": "object"}}}},
            "then": {
                "required": ["data"],
                "properties": {"data": {"required": ["data_dir"], "properties": {"data_dir": {"type": "string"}}}},
            },
        }
    )

    @model_validator(mode="after")
    def _has_data(self) -> Spec:
        if self.entrypoint is None and self.data.data_dir is None:
            raise ValueError("the key `data.data_dir` is missing")
        return self

    experiment_name: Annotated[
        Name,
        Key(
            (Effect.COSMETIC,),
            "another name",
            memory="apart",
            job=True,
            option="experiment-name",
            order=19,
        ),
    ] = Field(
        ...,
        description="Name of the run and of its folders: letters, digits, `.`, `_` and `-`.",
        examples=["isic-rat-128"],
    )
    description: Annotated[str, Key((Effect.COSMETIC,), "words only", memory="apart")] = Field(
        "", description="One line that tells people what the run is for."
    )
    task_type: Annotated[
        TaskType,
        Key(LEARNT, "another task", memory="depends", rate=True, option="experiment-type", order=20),
    ] = Field(
        "segmentation",
        description="Kind of task. With `custom`, the model, the data set and the loss are your own; with `multi`, "
        "the key `tasks` lists several tasks of one model.",
    )
    seed: Annotated[
        Annotated[int, Field(ge=0, lt=2**32)],
        Key(
            LEARNT,
            "the initial weights and the order of samples change",
            memory="apart",
            option="seed",
            order=21,
        ),
    ] = Field(42, description="Seed of all random numbers.")
    debug: Annotated[
        bool,
        Key(
            (Effect.TRAINING, Effect.COST),
            "a debug run is short and says nothing about a full run",
            option="debug",
            order=22,
        ),
    ] = Field(False, description="A short, verbose run: one epoch of a few steps, no loader processes.")
    output_dir: Annotated[
        Text | None,
        Key(
            (Effect.PLACEMENT,),
            "another output folder; the run starts from the beginning there",
            memory="apart",
            job=True,
            option="output-dir",
            order=2,
            path="folder",
        ),
    ] = Field(
        None,
        description="Folder of the run's results, relative to the spec's folder; if absent, "
        "`outputs/<experiment_name>`.",
    )
    model: Annotated[Model, Key((*LEARNT, Effect.MEMORY), "another model", memory="depends", rate=True)] = Field(
        Model(), description="The network."
    )
    training: Annotated[Training, Key(LEARNT, "other training")] = Field(Training(), description="The training.")
    data: Annotated[Data, Key(LEARNT, "other data", rate=True)] = Field(Data(), description="The data.")
    entrypoint: Annotated[
        Entrypoint | None,
        Key(LEARNT, "another program trains, or the same program with other arguments", memory="apart"),
    ] = Field(None, description="A training program of your own, instead of the built-in loop.")
    evaluation: Annotated[Evaluation, Key((Effect.COST,), "other scores are computed of the same model")] = Field(
        Evaluation(), description="The scores."
    )
    detection: Annotated[Detection, Key((*LEARNT, Effect.MEMORY), "another head", memory="depends", rate=True)] = Field(
        Detection(), description="Head of the model with `task_type: detection`."
    )
    tasks: Annotated[
        Annotated[dict[TaskName, Part], Field(min_length=2, max_length=16)] | None,
        Key((*LEARNT, Effect.MEMORY), "another task", memory="depends", rate=True),
    ] = Field(
        None,
        description="Tasks of `task_type: multi`, by names of your choice. They share the model; each has its own "
        "head, loss and data.",
        examples=[
            {
                "lesions": {"task_type": "segmentation", "data": {"folder": "isic"}},
                "cells": {"task_type": "detection", "weight": 0.5, "data": {"folder": "cells", "num_classes": 3}},
            }
        ],
    )
    logging: Annotated[Logging, Key((Effect.COSMETIC,), "the run is recorded in another way", job=True)] = Field(
        Logging(), description="Tracking."
    )
    parallel: Parallel = Field(Parallel(), description="Sharding.")
    distributed: Distributed = Field(Distributed(), description="Communication.")
    launcher: Annotated[
        Literal["accelerate", "torchrun", "srun", "none"] | None,
        Key((Effect.PLACEMENT,), "the processes are started in another way", script=True),
    ] = Field(
        None,
        description="Command that starts the processes of a node. If absent, `accelerate`, or `torchrun` with "
        "`use_accelerate: false`. With `entrypoint`, also `srun` (Slurm starts one process per GPU) and `none` (one "
        "process per node); if absent there, `torchrun`, or `none` with `entrypoint.command`.",
    )
    resources: Annotated[
        Resources, Key((Effect.PLACEMENT,), "the job asks for other hardware or other limits", script=True)
    ] = Field(Resources(), description="Hardware and time limit that the job asks for.")
    environment: Annotated[
        Environment, Key((Effect.PLACEMENT,), "the script sets up another environment", script=True)
    ] = Field(Environment(), description="Environment that the job's script sets up: modules, Python, variables.")
    checkpoint: Annotated[Checkpoint, Key((Effect.PLACEMENT,), "the run writes or keeps other checkpoints")] = Field(
        Checkpoint(), description="Checkpoints."
    )
    sweep: Annotated[Sweep | None, Key((Effect.TRAINING, Effect.COST), "the array has other points", script=True)] = (
        Field(None, description="Array of runs that differ in a few values.")
    )
    compression: Annotated[Compression | None, Key(LEARNT, "other weights are set to zero or rounded in training")] = (
        Field(None, description="Make the model smaller, in training or after it.")
    )
    tuning: Annotated[Tuning | None, Key((Effect.TRAINING, Effect.COST), "another study", script=True)] = Field(
        None, description="Study: trials with different values, to find the best ones."
    )
