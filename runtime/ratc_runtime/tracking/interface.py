"""The interface of a tracking backend, between a run and the places of its curves.

A backend gets records, in order, in its own thread (`delivery_thread.py`), so it may wait for a network. It raises an
exception if a record could not be sent; the delivery thread handles it.
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
#: params {values}, tags {values}, artifact {path}, from the output folder, status {status, time}. A status is RUNNING,
#: FINISHED, KILLED (stopped and to be continued) or FAILED.
Record = dict[str, Any]


@dataclass(frozen=True)
class About:
    """The description of a run for a backend. `id` is ratc's own, made at the first start and then kept.

    `first_step` is the number of optimizer steps done before this start.
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
        """Write the values that a later `ratc_runtime sync` needs."""
        content = {key: value for key, value in dataclasses.asdict(self).items() if key != "output_dir"}
        path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path, output_dir: Path) -> About:
        """Read them. Raises OSError, ValueError or TypeError if that fails."""
        with open_regular(path) as file:
            return cls(**json.load(file), output_dir=output_dir)


class Backend:
    """A place that records a run. Subclasses override the supported methods; all except `describe` may block."""

    name: ClassVar[str]
    #: The switch of the lock's section `logging` that asks for it.
    switch: ClassVar[str]
    #: Whether records wait on the disk until they are sent: for a server that may be away.
    journal: ClassVar[bool] = False
    #: Whether sent records are safe only after `close`. Until then the journal keeps them.
    safe_after_close: ClassVar[bool] = False
    #: Seconds that the end of a run waits for the rest to be sent, and the same after a failed attempt.
    patience: float = 15.0
    patience_after_failure: float = 5.0

    def __init__(self, about: About, state: dict[str, Any], save: Callable[[], None] = lambda: None) -> None:
        """`state` holds small JSON values between starts, if `journal` is true; `save` writes it."""
        self.about, self.state, self.save = about, state, save

    def load(self) -> None:
        """Import packages on the main thread, because libraries that several threads import can break."""

    def open(self) -> None:
        """Connect. Called again after a failure if `journal` is true."""

    def send(self, records: list[Record]) -> None:
        """Send records. A backend with a journal gets them again after a failure, and must not duplicate them."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the backend, after the last record."""

    def describe(self) -> str:
        """Return the place of the run, for the final table."""
        return self.name


def reason(error: BaseException) -> str:
    """Return an error in one line. If an OSError caused it, return that one, without its wrappers."""
    told = found = error
    while cause := found.__cause__ or found.__context__:
        found = cause
        if isinstance(found, OSError):
            told = found
    return f"{type(told).__name__}: {' '.join(str(told).split()):.300}"


def finite_only(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the finite values. None, NaN and infinities are left out."""
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
