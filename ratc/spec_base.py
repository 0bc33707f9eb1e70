"""What the shapes of specs, clusters and facts are made of: the frozen section, and types that several keys share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

CALLABLE = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
LOSS = f"^(bce|cross_entropy|dice|combined|set_prediction)$|{CALLABLE}"
WALLTIME = r"^([0-9]+-)?[0-9]{1,4}(:[0-9]{1,2}){0,2}$"
#: A size above 0: schedulers read 0 as all or as none.
MEMORY = r"^(0{0,8}[1-9][0-9]{0,8}(\.[0-9]{1,9})?|0{1,9}\.0{0,8}[1-9][0-9]{0,8}) ?([KMGTkmgt]([iI]?[bB])?)?$"

PositiveInt = Annotated[int, Field(ge=1, le=1_000_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Bytes = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
TaskName = Annotated[str, Field(max_length=30, pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
ClassName = Annotated[str, Field(max_length=50, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
KeyPath = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]
Arguments = dict[Variable, Any]


class Section(BaseModel):
    """A mapping of known keys. Unknown ones are errors, and a spec does not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
