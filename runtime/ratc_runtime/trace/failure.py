"""The reason of a failed trace, as the one line of JSON that the compiler reads."""

from __future__ import annotations

import json
import os
import sysconfig
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

NOT_TRACEABLE, FAILED, OUTPUT, ONE_VALUE, PACKAGE, VALUE = "R315", "R316", "R574", "R575", "R598", "R237"
#: The key of the spec whose code a piece of work runs, if it is not `model.name`.
_KEYS = {
    "asking the data set for an example": "data.dataset",
    "building the loss": "training.loss",
    "calling the loss": "training.loss",
    "making the optimizer": "training.optimizer",
    "a step of the optimizer": "training.optimizer",
}
#: Their frames are ours or torch's: whoever reads the finding looks for a line of the model.
_MACHINERY = (str(Path(__file__).parents[1]) + os.sep, sysconfig.get_path("stdlib") + os.sep)


@dataclass(frozen=True)
class Failure:
    """A finding: R315 (cannot be traced), R316 (building or calling the model failed), R574 (its output), R575 (a
    normalisation of one value), R598 (the optimizer's package) or R237 (a value that a config does not have).
    """

    code: str
    message: str
    where: str = ""
    traceback: str = ""
    help: str = ""
    key: str = ""  # the key of the spec at fault, if it is not `model.name`

    def line(self) -> str:
        """Return the finding as one line of JSON."""
        return json.dumps(asdict(self))


class TraceError(Exception):
    """A failure, raised to the caller that asked for the trace."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def _is_ours(file: str) -> bool:
    import torch

    torch_folder = str(Path(torch.__file__).parent) + os.sep
    if file.startswith((torch_folder, "<")):
        return True
    return file.startswith(_MACHINERY) and "site-packages" not in file


def _shown(file: str) -> str:
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        parts = Path(file).parts
        return str(Path(*parts[parts.index("site-packages") + 1 :])) if "site-packages" in parts else file


def where(error: BaseException) -> str:
    """Return the last frame of the model's own code, as "file:line in function"; "" if there is none."""
    found = ""
    causes: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in causes:
        causes.append(step)
        step = step.__cause__
    for cause in causes:
        trace: TracebackType | None = cause.__traceback__
        frames = [frame for frame in traceback.extract_tb(trace) if not _is_ours(frame.filename)]
        if frames:
            found = f"{_shown(frames[-1].filename)}:{frames[-1].lineno} in {frames[-1].name}"
    return found


def explain(error: BaseException, doing: str, model: nn.Module | None = None) -> Failure:
    """Return the finding for an error while `doing` (building the model, calling it)."""
    found = _explain(error, doing, model)
    key = "model.args" if found.code == VALUE else _KEYS.get(doing, "")
    if doing == "building the model" and getattr(error, "code", "") in ("R585", "R586"):
        key = "training.frozen"
    elif getattr(error, "code", "") == "R586":
        key = "training.parameter_groups"
    return replace(found, key=key)


def _explain(error: BaseException, doing: str, model: nn.Module | None) -> Failure:
    from torch._subclasses import fake_tensor

    from ratc_runtime.errors import RuntimeFinding
    from ratc_runtime.models import normalisation

    text = "".join(traceback.format_exception(error))[-8000:]
    place = where(error)
    data_dependent: tuple[Any, ...] = (
        fake_tensor.DataDependentOutputException,
        fake_tensor.DynamicOutputShapeException,
    )
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, data_dependent):
        operator = getattr(error, "func", first)
        return Failure(NOT_TRACEABLE, f"{doing} reads a value that only real data have ({operator})", place, text)
    if isinstance(error, fake_tensor.UnsupportedOperatorException):
        return Failure(NOT_TRACEABLE, f"{doing} uses an operator without a rule for shapes ({first})", place, text)
    if "numpy() is not supported for tensor subclasses" in str(error) or "tolist() is not supported" in str(error):
        return Failure(NOT_TRACEABLE, f"{doing} turns a tensor's values into Python or numpy objects", place, text)
    if model is not None and normalisation.is_of_each_sample(error):
        found = normalisation.explain(error, model)
        assert found is not None
        # As of an output that its task cannot use: training would end with it, whatever the micro-batch.
        return Failure(ONE_VALUE, found.message, place, text, found.help)
    if isinstance(error, RuntimeFinding):
        message = f"{error.message}: {error.note}" if error.note else error.message
        # An output that the task cannot use is not a failure of the prediction: training would end with it, too. Nor is
        # an optimizer without its package, or a value that a model's config does not have.
        code = error.code if error.code in (OUTPUT, PACKAGE, VALUE) else FAILED
        return Failure(code, message, place, text, error.help)
    if isinstance(error, SystemExit):
        return Failure(FAILED, f"{doing} ended the process (exit status {error.code})", place, text)
    if isinstance(error, MemoryError):
        return Failure(FAILED, f"{doing} allocated more host memory than tracing allows", place, text)
    if "has been modified by an inplace operation" in first:
        message = f"{doing} failed: a layer overwrites a tensor that the backward pass needs"
        help = "give the layer no `inplace=True`; with `activation_checkpointing`, it may overwrite a block's input"
        return Failure(FAILED, message, place, text, help)
    return Failure(FAILED, f"{doing} failed: {type(error).__name__}: {first}", place, text)
