"""A study's shape: the section `tuning` of a spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ratc.spec.base import Count, KeyPath, Positive, PositiveInt, Section, Text


class Draw(Section):
    """What a value is drawn from: either `choices` or a `range`."""

    choices: list[Any] | None = Field(None, description="Values to choose from.", examples=[[16, 32, 64]])
    range: list[float | int] | None = Field(
        None, description="`[low, high]`, two numbers, both in it.", examples=[[1e-5, 1e-3]]
    )
    scale: Literal["linear", "log"] = Field("linear", description="Scale on which the numbers of a range are even.")


class Tuning(Section):
    """A study: trials that differ in some values, and the best of them."""

    backend: Literal["ray", "array"] = Field(
        "ray",
        description="Runs the trials: `ray`, Ray Tune in one job or on this machine (extra `tune`); `array`, an "
        "array job, or `ratc tune` without Ray.",
    )
    search_space: dict[KeyPath, list[Any] | Draw] = Field(
        {},
        description="Values to try, by key (short names are taken): `{range: [low, high], scale: log}`, "
        "`{choices: […]}`, or a list. A list of two ascending numbers, for a key that takes real numbers, is a range, "
        "logarithmic if its ends are above 0 and 10 times apart; any other is of choices.",
        examples=[{"learning_rate": [1e-5, 1e-3], "batch_size": [4, 8, 16]}],
    )
    search: Literal["spread", "tpe"] = Field(
        "spread",
        description="How trials are chosen: `spread`, evenly and all before the first one starts; `tpe`, each from "
        "the results so far (backend `ray`, with Optuna).",
    )
    metric: Text | None = Field(
        None,
        description="Validation metric that trials are judged by, at their best epoch; `checkpoint.best_metric` if "
        "absent.",
        examples=["dice", "loss"],
    )
    mode: Literal["min", "max"] | None = Field(None, description="Direction in which `metric` is better.")
    trials: PositiveInt | None = Field(
        None,
        description="Trials; if absent every combination of choices, or 16 if there is a range.",
        examples=[32],
    )
    max_parallel: PositiveInt | None = Field(None, description="Trials that may run at the same time.", examples=[4])
    early_stopping: Literal["asha", "none"] | None = Field(
        None,
        description="`asha`: a trial ends if others were better by the same epoch (asynchronous successive "
        "halving); if absent, `asha` with `ray`.",
    )
    grace_epochs: PositiveInt = Field(1, description="Epochs that every trial may train before it can end early.")
    reduction_factor: Annotated[int, Field(ge=2, le=100)] = Field(
        4,
        description="One trial of so many goes on: at `grace_epochs`, and each time the epochs are so many times more.",
    )
    gpus_per_trial: Count | None = Field(
        None, description="GPUs of a trial of `ray`, all on one node; 1 if absent and there are any.", examples=[1]
    )
    cpus_per_trial: PositiveInt | None = Field(
        None,
        description="CPU cores of a trial of `ray`; its GPUs' share of the node if absent, or an even share for "
        "`max_parallel` trials.",
        examples=[4],
    )
    budget_hours: Positive | None = Field(
        None,
        description="Hours after which `ratc tune` asks the trials that run to save, and begins no other.",
        examples=[24],
    )
    seed: Count | None = Field(
        None, description="Seed of the values in ranges, and of `tpe`; the spec's `seed` if absent."
    )
