"""ratc from Python: the work of the commands, with typed results and without output.

`import ratc` gives these functions, and imports their dependencies when one is called::

    found = ratc.compile(ratc.CompileRequest("spec.yaml", target="slurm"))
    print(found.plan.values["training.micro_batch_size"].value)
    found.write()

Nothing is kept between calls, so they may run in several threads. A spec's own code is run for a prediction only if its
folder is trusted, as for the commands (docs/guides/own-code.md).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ratc.console import silence
from ratc.diagnostics import Diagnostic, has_errors
from ratc.plan import Plan
from ratc.targets.artifact import Artifact
from ratc.workflow.request import AnyPath, CompileRequest, as_path, of_type, strings

__all__ = ["Compilation", "CompileRequest", "Difference", "Fit", "check", "compile", "diff", "fit"]
__all__ += ["load_config_with_auto_optimization"]

if TYPE_CHECKING:
    from ratc.comparison.model import Comparison
    from ratc.render.fit import Row


@dataclass(frozen=True, slots=True)
class Compilation:
    """The result of compiling a spec. If there are errors among the diagnostics, it has no plan and no artifacts."""

    plan: Plan | None
    artifacts: tuple[Artifact, ...]
    diagnostics: tuple[Diagnostic, ...]
    folder: str

    @property
    def ok(self) -> bool:
        """Whether it may be written and run."""
        return self.plan is not None and not has_errors(self.diagnostics)

    def write(self) -> list[str]:
        """Write changed files into the folder, the lock last; return names. Raises OSError; ValueError if not ok."""
        from ratc import emit
        from ratc.workflow.compile import former

        if not self.ok:
            raise ValueError("the spec has errors: nothing is written")
        written, problems = emit.write(self.folder, self.artifacts, lambda: former(self.folder))
        if problems:
            raise OSError("; ".join(item.message for item in problems))
        return written


@dataclass(frozen=True, slots=True)
class Difference:
    """The differences of two sides, with their consequences; None if a side cannot be read."""

    comparison: Comparison | None
    diagnostics: tuple[Diagnostic, ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """The micro-batches that fit: a row for each card, precision and ZeRO stage."""

    rows: tuple[Row, ...]
    diagnostics: tuple[Diagnostic, ...]


@silence()
def compile(request: CompileRequest) -> Compilation:
    """Compile a spec; nothing is written. Raises TypeError if the request is not a CompileRequest."""
    from ratc.fitting.check_batch import Checks
    from ratc.workflow import compile as compiling
    from ratc.workflow import inputs, lookups

    of_type("request", request, CompileRequest)
    refused = inputs.known_target(request.target)
    loaded = inputs.load(request) if not refused else None
    if loaded is None or loaded.settings is None:
        return Compilation(None, (), refused if loaded is None else loaded.diagnostics, request.output or "")
    folder = compiling.folder_of(request, loaded.settings)
    misfits = lookups.refused(loaded)
    asked = replace(request, predict=False) if misfits else request
    made, found = compiling.make(asked, loaded, folder, checks=Checks())
    diagnostics = (*loaded.diagnostics, *misfits, *found)
    if made is None or misfits or compiling.is_untrusted(found):
        return Compilation(None, (), diagnostics, folder)
    return Compilation(made.plan, made.artifacts, diagnostics, folder)


def load_config_with_auto_optimization(path: AnyPath) -> dict[str, Any]:
    """Return the resolved configuration of a spec for this machine, as nested mappings.

    The original training framework has a function of this name. Raises ValueError with the findings on the spec, and
    TypeError if the path is not one.
    """
    from ratc.render import text

    found = compile(CompileRequest(as_path("path", path)))
    if found.plan is None:
        raise ValueError(text.diagnostics(found.diagnostics, False))
    nested: dict[str, Any] = {}
    for name in found.plan.values:
        *sections, last = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = deepcopy(found.plan.values[name].value)  # the caller may change it
    return nested


@silence()
def diff(old: AnyPath, new: AnyPath, target: str | None = None, facts: AnyPath | None = None) -> Difference:
    """Compare two specs, compiled folders or locks, each a path or ``REVISION:path`` of git.

    Raises TypeError for an argument of another type.
    """
    from ratc.comparison.compare import compare
    from ratc.workflow import diff_inputs
    from ratc.workflow.diff_inputs import Asked

    sides = as_path("old", old), as_path("new", new)
    target = None if target is None else of_type("target", target, str)
    facts = None if facts is None else as_path("facts", facts)
    with ExitStack() as stack:
        first, second = (Asked(side, target, facts) for side in sides)
        both, found = diff_inputs.pair(first, second, stack)
        return Difference(compare(*both) if both is not None else None, found)


@silence()
def fit(request: CompileRequest, cards: Sequence[str] = (), precisions: Sequence[str] = ()) -> Fit:
    """Predict the largest micro-batch of a spec for cards by name; without names for the spec's own card.

    ``precisions`` are some of bf16, fp16 and fp32. Raises ValueError for another one, and TypeError for an argument of
    another type. A card that is not in the catalogue is a diagnostic.
    """
    from ratc.fitting.question import PRECISIONS, Question
    from ratc.workflow import fit as workflow

    of_type("request", request, CompileRequest)
    question = Question(strings("cards", cards), precisions=strings("precisions", precisions))
    unknown = [name for name in question.precisions if name not in PRECISIONS]
    if unknown:
        raise ValueError(f"`precisions` has no `{unknown[0]}`; it has {', '.join(PRECISIONS)}")
    fitted = workflow.fit(request, question)
    return Fit(fitted.rows, fitted.found)


@silence()
def check(path: AnyPath = ".", this_machine: bool = False) -> tuple[Diagnostic, ...]:
    """Return the findings on compiled folders below a path that differ from the output of their inputs.

    Raises OSError if there is no such path, if it cannot be listed, or if it holds no compiled folder: then nothing was
    checked. Raises TypeError if it is not a path.
    """
    from ratc.compiled import find
    from ratc.sweep import without_repeats
    from ratc.workflow.check import checked
    from ratc.workflow.inputs import Known

    known: Known = {}
    found: list[Diagnostic] = []
    folders = list(find.compiled([as_path("path", path)]))
    if not folders:
        raise FileNotFoundError(errno.ENOENT, "there is no compiled folder in it", str(path))
    for folder in folders:
        found += checked(folder, this_machine, known, [])
    return tuple(without_repeats(found))
