"""Refuses to run a spec's own code unless the user trusts the spec's folder."""

from __future__ import annotations

from collections.abc import Sequence

from ratc import program
from ratc.diagnostics import Diagnostic
from ratc.own_code import callables, trust
from ratc.targets.artifact import Artifact
from ratc.workflow.inputs import Loaded


def refused(loaded: Loaded) -> tuple[Diagnostic, ...]:
    """Return a finding if the spec names code of its own and its folder is not trusted. Code: R447."""
    assert loaded.settings is not None
    names = callables.of_all_points(loaded.settings)
    if not names or trust.allows(loaded.folder, ", ".join(names)):
        return ()
    own = program.span(loaded.settings) if program.is_program(loaded.settings) else None
    span = own or next((value.span for _, value in callables.named(loaded.settings)), None)
    message = f"nothing was run: the spec names Python code of your own, {', '.join(f'`{name}`' for name in names)}"
    helps = ("if you trust the code, add `--trust`, or trust the folder: `ratc trust FOLDER`",)
    return (Diagnostic("R447", message, span, ("the spec's folder is not trusted",), helps),)


def before(loaded: Loaded, folder: str, artifacts: Sequence[Artifact]) -> tuple[Diagnostic, ...]:
    """Call `refused`, with the arguments that `compile_spec` passes before it writes anything."""
    return refused(loaded)
