"""The codes of settings that are valid one by one, but cannot be combined or do not fit on the hardware."""

from __future__ import annotations

from collections.abc import Iterable

from ratc.diagnostics import Diagnostic, Severity

#: Whether another number of nodes can help, by code. R318 (a given micro-batch does not fit) is found after resolution.
_CODES = {"R303": False, "R304": True, "R310": False, "R313": False, "R317": True, "R318": True, "R364": True}


def infeasible(found: Iterable[Diagnostic], by_nodes: bool = False) -> Diagnostic | None:
    """Return the first error if all errors have one of these codes; None if there is no error, or one of another code.

    With ``by_nodes`` the codes are those for which another number of nodes can help.
    """
    errors = [one for one in found if one.severity is Severity.ERROR]
    codes = {code for code, of_nodes in _CODES.items() if of_nodes or not by_nodes}
    return errors[0] if errors and all(one.code in codes for one in errors) else None
