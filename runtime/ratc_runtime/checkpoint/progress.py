"""The progress in a checkpoint, checked before a run continues from it.

A checkpoint that is whole by its digest may still be anybody's: numbers that no run can have would end in a traceback,
or in epochs that are counted and were never trained.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ratc_runtime.config import optimizers
from ratc_runtime.output.run_history import RUN_ID

_Count = Annotated[int, Field(ge=0)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Epoch(BaseModel):
    """The record of an epoch: its scores are among the other keys, and null if they mean nothing."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, float | None]

    epoch: _Count
    train_loss: float | None
    val_loss: float | None
    learning_rate: float
    seconds: float


class _Progress(BaseModel):
    """`training.run.Progress` as a checkpoint holds it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    epoch: _Count
    step: _Count
    loss_sum: _Number = 0.0
    epoch_seconds: _Seconds = 0.0
    train_seconds: _Seconds = 0.0
    total_seconds: _Seconds = 0.0
    history: list[_Epoch] = []
    best_epoch: _Count | None = None
    lost: list[_Count] = []
    tracking_id: Annotated[str, Field(pattern=RUN_ID)] | None = None
    skipped: list[str] = []
    data_changes: list[dict[str, Any]] = []
    account: dict[str, _Number] = {}
    class_names: dict[str, list[str]] = {}


def checked(progress: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Return the progress of a run of `epochs` epochs. Raises ValueError with a message if no run can have it."""
    try:
        found = _Progress.model_validate(progress)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"its progress is wrong at {at!r:.100}: {first['msg']}") from None
    if found.epoch > epochs:
        raise ValueError(f"it says that {found.epoch} epochs of {epochs} are done")
    if [record.epoch for record in found.history] != list(range(1, found.epoch + 1)):
        raise ValueError(f"its history is not that of {found.epoch} epochs")
    named = (*found.lost, *([] if found.best_epoch is None else [found.best_epoch]))
    if any(not 1 <= epoch <= found.epoch for epoch in named):
        raise ValueError("it names epochs that were not done")
    return dict(progress)


def check_optimizer(content: dict[str, Any], optimizer: str) -> None:
    """Raise ValueError, in words, if steps are done and the optimizer of that name has no states of them."""
    progress, state = content["progress"], content["optimizer"]
    done = progress["epoch"] or progress["step"]
    if optimizers.of(optimizer).stateful and done and not content.get("skipped_steps") and not state["state"]:
        raise ValueError("its optimizer has no states, although steps were done")
