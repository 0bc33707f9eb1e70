"""What a tracking backend is: the one interface between a run and the places that its curves go to.

A backend gets records, in order, on a thread of its own (`delivery_thread.py`), so it may wait for a network as long as
it likes. It raises if something could not be sent; the delivery decides what becomes of that.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ratc_runtime.config.yaml_file import open_regular

#: A record is JSON, so that it can wait on the disk. By `kind`: metrics {step, time (ms since 1970), values},
#: params {values}, tags {values}, artifact {path}, from the output folder, status {status, time}.
Record = dict[str, Any]

#: Statuses of a run: going on, done, stopped and to be continued, ended by an error.
STATUSES = ("RUNNING", "FINISHED", "KILLED", "FAILED")


@dataclass(frozen=True)
class About:
    """What a backend is told of a run. `id` is ours, made at the first start and the same at all that continue it.

    `first_step` counts the optimizer steps that were done when this start began.
    """

    id: str
    name: str
    experiment: str
    description: str
    params: dict[str, str]
    config: dict[str, Any]
    output_dir: Path
    first_step: int = 0
    options: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Keep what a later `ratc_runtime sync` needs of it."""
        content = {key: value for key, value in dataclasses.asdict(self).items() if key != "output_dir"}
        path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path, output_dir: Path) -> About:
        """Read it back; raise OSError, ValueError or TypeError if that is not possible."""
        with open_regular(path) as file:
            return cls(**json.load(file), output_dir=output_dir)


class Backend:
    """One place that a run is recorded in. Subclasses override what they can do; all but `describe` may block."""

    name: ClassVar[str]
    #: The switch of the lock's section `logging` that asks for it.
    switch: ClassVar[str]
    #: Whether records wait on the disk until they are sent: for a server that may be away.
    journal: ClassVar[bool] = False
    #: Whether what `send` took is safe only after `close`. Until then the journal keeps it.
    safe_after_close: ClassVar[bool] = False
    #: Seconds that the end of a run waits for the rest to be sent, and where the last attempt had failed.
    patience: float = 15.0
    patience_after_failure: float = 5.0

    def __init__(self, about: About, state: dict[str, Any], save: Callable[[], None] = lambda: None) -> None:
        """`state` holds small JSON values between starts, if `journal` is true; `save` writes it."""
        self.about, self.state, self.save = about, state, save

    def load(self) -> None:
        """Import what is needed: on the main thread, because libraries that several threads import can break."""

    def open(self) -> None:
        """Connect. Called again after a failure if `journal` is true."""

    def send(self, records: list[Record]) -> None:
        """Send records; a backend with a journal gets them again after a failure, and must not double them."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go, after the last record."""

    def describe(self) -> str:
        """Return where the run is found, for the final table."""
        return self.name


def reason(error: BaseException) -> str:
    """Return an error in one line: of a request that failed, what the system said, below all that wraps it."""
    told = found = error
    while found.__cause__ or found.__context__:
        found = found.__cause__ or found.__context__  # type: ignore[assignment]
        if isinstance(found, OSError):
            told = found
    return f"{type(told).__name__}: {' '.join(str(told).split()):.300}"


def finite_only(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the values that a curve can show: None, NaN and infinities are left out."""
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
