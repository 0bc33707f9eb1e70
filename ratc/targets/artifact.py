"""The output of a target, and the input on the location of its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from ratc.diagnostics import Span
from ratc.shell import quote


@dataclass(frozen=True, slots=True)
class Artifact:
    """One emitted file. ``consumer`` names the program that must be able to read it before it is written."""

    path: str
    text: str
    consumer: str
    executable: bool = False

    @property
    def digest(self) -> str:
        """``sha256:…`` of the file's bytes."""
        return digest(self.text.encode())


@dataclass(frozen=True, slots=True)
class Place:
    """The location of the artifacts, relative to the files around them; no path is absolute.

    ``up`` leads from the artifacts' folder to the spec's, ``down`` back. ``again`` is the command that makes the files
    again from within their folder, ``sets`` those of its words that lie over the spec. ``inputs`` are digests by path
    from the spec's folder, ``own_code`` digests of the user's own modules in the same way. ``remark`` is one more line
    at the head of every file.
    """

    up: str
    down: str
    spec_name: str
    again: str
    inputs: Mapping[str, str]
    sets: str = ""
    remark: str | None = None
    own_code: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def header(self) -> tuple[str, ...]:
        """The first lines of every artifact that may hold comments."""
        head = (
            f"Compiled by ratc from {_one_line(f'{self.up}/{self.spec_name}')}: review it, do not edit it.",
            f"Again, from this folder: {self.again}",
        )
        return head if self.remark is None else (*head, self.remark)


@dataclass(frozen=True, slots=True)
class Shape:
    """The array of a job script: its number of points, how many may run at once, and the paths of the values that are
    not the same in all of them. ``span`` is the sweep's.
    """

    points: int
    max_parallel: int | None
    span: Span | None
    varied: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Pool:
    """The study that Ray runs in a job script: its number of trials, the GPUs and cores of each, and those of the study
    on each node. ``sets`` are the words of ``ratc tune`` that lie over the spec.
    """

    trials: int
    gpus: int
    cpus: int
    node_gpus: int
    node_cpus: int
    sets: str


def _one_line(path: str) -> str:
    return path if path.isprintable() else quote(path)


def digest(data: bytes) -> str:
    """``sha256:…`` of some bytes."""
    return "sha256:" + sha256(data).hexdigest()
