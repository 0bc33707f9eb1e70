"""The codes of settings that are valid one by one and cannot be trained together, or do not fit on the hardware."""

from __future__ import annotations

from collections.abc import Iterable

from ratc.diagnostics import Diagnostic, Severity

#: By the code: whether another number of nodes can help. R318 is of the fit of a given micro-batch, after resolution.
_CODES = {"R303": False, "R304": True, "R310": False, "R313": False, "R317": True, "R318": True, "R364": True}


def infeasible(found: Iterable[Diagnostic], by_nodes: bool = False) -> Diagnostic | None:
    """Return the first error if every error says that the values cannot be trained together; None if there is another
    one, or none at all. With ``by_nodes`` only codes count that another number of nodes can help.
    """
    errors = [one for one in found if one.severity is Severity.ERROR]
    codes = {code for code, of_nodes in _CODES.items() if of_nodes or not by_nodes}
    return errors[0] if errors and all(one.code in codes for one in errors) else None
