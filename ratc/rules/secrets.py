"""R205: a secret is named in a spec, never written into it: specs and scripts are committed and reviewed."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.plan import GIVEN, Values
from ratc.secrets.redact import found, redact

_VARIABLES = "environment.variables"


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that no value of the spec looks like a secret, by its name or by its form."""
    told = set()
    for path, value in settings.items():
        if value.origin not in GIVEN:
            continue
        for place in found(path, value.value, strict=path.endswith("variables")):
            if place in told:
                continue
            told.add(place)
            name = place.removeprefix(f"{_VARIABLES}.")
            if name != place:
                message = f"the variable `{redact(name)}` looks like it holds a secret"
                helps = (
                    "remove it, set the variable in the shell that submits, and name it in the spec: "
                    f"`environment: {{secrets: [{redact(name)}]}}`",
                )
            else:
                message = f"`{redact(place)}` looks like it holds a secret"
                helps = (
                    "set a variable in the shell that submits, name it under `environment.secrets`, and read it in "
                    "your code with `os.environ`",
                )
            yield Diagnostic("R205", message, value.span, helps=helps)
