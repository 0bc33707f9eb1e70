"""R205: a secret is named in a spec, never written into it: specs and scripts are committed and reviewed."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.plan import Values
from ratc.redact import looks_secret


def check(settings: Values) -> Iterator[Diagnostic]:
    """No variable of the environment section holds what looks like a secret."""
    variables = settings["environment.variables"]
    for name, value in (variables.value or {}).items():
        if looks_secret(name, str(value)):
            helps = (f"name it instead, and set it in the shell that submits: `secrets: [{name}]`",)
            message = f"the variable `{name}` holds what looks like a secret"
            yield Diagnostic("R205", message, variables.span, helps=helps)
