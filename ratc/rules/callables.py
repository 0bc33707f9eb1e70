"""R356: a `package.module:callable` in a spec is not of a module of Python's standard library."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.own_code.callables import named
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that no model, data set, loss, optimizer or callback is of the standard library.

    Python finds that before the spec's folder.
    """
    for path, value in named(settings):
        top = str(value.value).partition(":")[0].partition(".")[0]
        if top in sys.stdlib_module_names:
            message = f"`{path}` is `{value.value}`, but `{top}` is a module of Python's standard library"
            helps = (f"name a callable of your own; if it is in a file `{top}.py`, give the file another name",)
            yield Diagnostic("R356", message, value.span, helps=helps)
