"""ratc from Python: the work of the commands, with typed results and without output.

`import ratc` gives these functions, and imports their dependencies when one is called::

    found = ratc.compile(ratc.CompileRequest("spec.yaml", target="slurm"))
    print(found.plan.values["training.micro_batch_size"].value)
    found.write()

Nothing is kept between calls, so they may run in several threads. A spec's own code is run for a prediction only if its
folder is trusted, as for the commands (docs/guides/own-code.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ratc.console import silence
from ratc.diagnostics import Diagnostic, has_errors
from ratc.plan import Plan
from ratc.targets.artifact import Artifact
from ratc.workflow.request import CompileRequest

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
    """Compile a spec; nothing is written."""
    from ratc.fitting.check_batch import Checks
    from ratc.workflow import compile as compiling
    from ratc.workflow import inputs, lookups

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


def load_config_with_auto_optimization(path: str) -> dict[str, Any]:
    """Return the resolved configuration of a spec for this machine, as nested mappings.

    The original training framework has a function of this name. Raises ValueError with the findings on the spec.
    """
    from ratc.render import text

    found = compile(CompileRequest(path))
    if found.plan is None:
        raise ValueError(text.diagnostics(found.diagnostics, False))
    nested: dict[str, Any] = {}
    for name in found.plan.values:
        *sections, last = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = found.plan.values[name].value
    return nested


@silence()
def diff(old: str, new: str, target: str | None = None, facts: str | None = None) -> Difference:
    """Compare two specs, compiled folders or locks, each a path or ``REVISION:path`` of git."""
    from ratc.comparison.compare import compare
    from ratc.workflow import diff_inputs
    from ratc.workflow.diff_inputs import Asked

    with ExitStack() as stack:
        both, found = diff_inputs.pair(Asked(old, target, facts), Asked(new, target, facts), stack)
        return Difference(compare(*both) if both is not None else None, found)


@silence()
def fit(request: CompileRequest, cards: Sequence[str] = (), precisions: Sequence[str] = ()) -> Fit:
    """Predict the largest micro-batch of a spec for cards by name; without names for the spec's own card."""
    from ratc.fitting.question import Question
    from ratc.workflow import fit as workflow

    fitted = workflow.fit(request, Question(tuple(cards), precisions=tuple(precisions)))
    return Fit(fitted.rows, fitted.found)


@silence()
def check(path: str = ".", this_machine: bool = False) -> tuple[Diagnostic, ...]:
    """Return the findings on compiled folders below a path that differ from the output of their inputs.

    Raises FileNotFoundError if there is no such path: nothing would be found there.
    """
    from ratc.compiled import find
    from ratc.sweep import without_repeats
    from ratc.workflow.check import checked
    from ratc.workflow.inputs import Known

    known: Known = {}
    found: list[Diagnostic] = []
    for folder in find.compiled([path]):
        found += checked(folder, this_machine, known, [])
    return tuple(without_repeats(found))
