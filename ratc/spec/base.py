"""Base types of the models of specs, clusters and facts: the frozen section, and types that several keys share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ratc.catalog.optimizers import OPTIMIZERS
from ratc.catalog.tasks import DATASETS, LOSSES

CALLABLE = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
#: A module as `python -m` takes it.
MODULE = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$"
#: Of any task; which of them are of a spec's own task, a rule says.
LOSS = f"^({'|'.join(dict.fromkeys(name for names in LOSSES.values() for name in names))})$|{CALLABLE}"
OPTIMIZER = f"^({'|'.join(OPTIMIZERS)})$|{CALLABLE}"
DATASET = f"^({'|'.join(dict.fromkeys(name for names in DATASETS.values() for name in names))})$|{CALLABLE}"
#: 1.0 to 19.9: the newest in 2026 is 12.1.
COMPUTE_CAPABILITY = r"^(?:[1-9]|1[0-9])\.[0-9]$"
#: A size above 0: schedulers read 0 as all or as none.
MEMORY = r"^(0{0,8}[1-9][0-9]{0,8}(\.[0-9]{1,9})?|0{1,9}\.0{0,8}[1-9][0-9]{0,8}) ?([KMGTkmgt]([iI]?[bB])?)?$"

PositiveInt = Annotated[int, Field(ge=1, le=1_000_000_000)]
#: Pixels or voxels along one side of an image.
Side = Annotated[int, Field(ge=1, le=65_536)]
#: Of a network: features or heads side by side.
Width = Annotated[int, Field(ge=1, le=65_536)]
#: Blocks or rounds, one after another.
Depth = Annotated[int, Field(ge=1, le=1024)]
#: Pixels or voxels along one side of a kernel.
Kernel = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Bytes = Annotated[int, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
#: Characters that end a line, move a cursor or turn text around: C0, C1, line and paragraph separators, bidi controls.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"
Text = Annotated[str, Field(min_length=1)]
#: One line that people read, such as a job's name.
Line = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        pattern=f"^[^{_CONTROL}]+$",
        json_schema_extra={"form": "use one line, without control characters"},
    ),
]
#: A name that a scheduler knows. It stands in directives, and so holds no space, quote or sign of a shell.
Word = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,:@+/=~-]*$",
        json_schema_extra={"form": "use letters, digits and `_.,:@+/=~-`, a letter, digit or `_` first"},
    ),
]
#: A selection of nodes: Slurm's features with their operators, or LSF's `select[]`. It is quoted in directives.
Expression = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1000,
        pattern=r"^[A-Za-z0-9_(\[!][A-Za-z0-9_.,:@+/=~&|!*()\[\]<> -]*$",
        json_schema_extra={"form": "use names and the operators `&|!*()[]<>=`, without quotes"},
    ),
]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
TaskName = Annotated[str, Field(max_length=30, pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
ClassName = Annotated[str, Field(max_length=50, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")]
KeyPath = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")]
#: Of names of parameters, as Python's `fnmatch` reads it.
Pattern = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        pattern=r"^[A-Za-z0-9_.*?\[\]!-]+$",
        json_schema_extra={"form": "use letters, digits, `_`, `.` and the pattern characters `*?[]!-`"},
    ),
]
Arguments = dict[Variable, Any]


class Section(BaseModel):
    """A mapping of known keys. Unknown ones are errors, and a spec does not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())
