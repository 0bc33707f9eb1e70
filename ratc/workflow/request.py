"""The request to the compiler."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """A spec, and the layers over it.

    ``spec`` is the path of the YAML file; if ``text`` is given, that is the spec and the path only says where it would
    lie. ``target`` is ``local``, ``slurm`` or ``lsf``; ``facts`` the path of a file of hardware facts, without which
    this machine's are taken. ``sets`` are assignments ``path=value``, ``short`` the values of short options by their
    name (``batch-size``). Without ``predict`` no model is traced. ``output`` is the folder of the artifacts, by default
    ``compiled/EXPERIMENT/TARGET`` beside the spec. Those of ``variables`` that begin with ``RAT_`` lie over the spec.
    ``samples`` are those of an epoch, for the predicted times only.
    """

    spec: str
    target: str = "local"
    facts: str | None = None
    sets: tuple[str, ...] = ()
    short: Mapping[str, str] = field(default_factory=dict)
    predict: bool = True
    output: str | None = None
    text: bytes | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    samples: int | None = None

    @property
    def folder(self) -> str:
        """The spec's folder, as it was written."""
        return os.path.dirname(self.spec) or "."
