"""A study's shape: the section `tuning` of a spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ratc.spec.base import Count, KeyPath, Positive, PositiveInt, Section, Text


class Draw(Section):
    """What a value is drawn from: either `choices` or a `range`."""

    choices: list[Any] | None = Field(None, description="Values to choose from.", examples=[[16, 32, 64]])
    range: list[float | int] | None = Field(
        None, description="`[low, high]`: two numbers; both belong to the range.", examples=[[1e-5, 1e-3]]
    )
    scale: Literal["linear", "log"] = Field(
        "linear", description="Scale on which the numbers of `range` are spread evenly."
    )


class Tuning(Section):
    """A study: trials that differ in some values, and the best of them."""

    backend: Literal["ray", "array"] = Field(
        "ray",
        description="How trials are run: `ray`, by Ray Tune in one job or on this machine (needs the extra `tune`); "
        "`array`, as an array job, or by `ratc tune` without Ray.",
    )
    search_space: dict[KeyPath, list[Any] | Draw] = Field(
        {},
        description="Values to try, by key (short names work, too): `{range: [low, high], scale: log}`, "
        "`{choices: […]}`, or a list. A list of two ascending numbers is a range if the key takes real numbers; its "
        "scale is logarithmic if both are above 0 and 10 times apart. Any other list holds choices.",
        examples=[{"learning_rate": [1e-5, 1e-3], "batch_size": [4, 8, 16]}],
    )
    search: Literal["spread", "tpe"] = Field(
        "spread",
        description="How the values of trials are chosen: `spread`, evenly, and all before the first trial starts; "
        "`tpe`, each from the results so far (needs `backend: ray` and Optuna).",
    )
    metric: Text | None = Field(
        None,
        description="Validation metric by which trials are compared, at the best epoch of each; if absent, "
        "`checkpoint.best_metric`.",
        examples=["dice", "loss"],
    )
    mode: Literal["min", "max"] | None = Field(None, description="Direction in which `metric` is better.")
    trials: PositiveInt | None = Field(
        None,
        description="Number of trials; if absent, one for every combination of choices, or 16 if there is a range.",
        examples=[32],
    )
    max_parallel: PositiveInt | None = Field(
        None, description="Largest number of trials that run at the same time.", examples=[4]
    )
    early_stopping: Literal["asha", "none"] | None = Field(
        None,
        description="`asha` (asynchronous successive halving) ends a trial early if others were better at the same "
        "epoch. If absent, `asha` with `backend: ray`.",
    )
    grace_epochs: PositiveInt = Field(
        1, description="Number of epochs that every trial trains before `asha` may end it."
    )
    reduction_factor: Annotated[int, Field(ge=2, le=100)] = Field(
        4,
        description="Of this many trials, `asha` lets one go on: after `grace_epochs` epochs, and again each time "
        "that the number of epochs has grown by this factor.",
    )
    gpus_per_trial: Count | None = Field(
        None,
        description="GPUs for each trial with `backend: ray`, all on one node; if absent, 1, or 0 if there are "
        "no GPUs.",
        examples=[1],
    )
    cpus_per_trial: PositiveInt | None = Field(
        None,
        description="CPU cores for each trial with `backend: ray`; if absent, the share of its GPUs in the node, or "
        "an even share for `max_parallel` trials.",
        examples=[4],
    )
    budget_hours: Positive | None = Field(
        None,
        description="Hours after which `ratc tune` asks running trials to save a checkpoint, and starts no further "
        "trial.",
        examples=[24],
    )
    seed: Count | None = Field(
        None, description="Seed for the values in ranges and for `tpe`; if absent, the spec's `seed`."
    )
