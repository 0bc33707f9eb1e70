"""Errors that exclude one trial or node count, and errors that stop the compilation."""

import pytest

from ratc.diagnostics import Diagnostic, Severity
from ratc.resolve.infeasible import infeasible

BATCH, RATE, OTHER = (Diagnostic(code, "of a test") for code in ("R304", "R313", "R201"))
WARNING = Diagnostic("R318", "of a test", severity=Severity.WARNING)


@pytest.mark.parametrize(
    ("found", "by_nodes", "reason"),
    [
        ((BATCH,), False, BATCH),
        ((WARNING, RATE, BATCH), False, RATE),
        ((RATE, BATCH), True, None),
        ((BATCH, WARNING), True, BATCH),
        ((BATCH, OTHER), False, None),
        ((WARNING,), False, None),
        ((), False, None),
    ],
)
def test_first_error_is_the_reason_if_all_errors_are_of_infeasible_values(found, by_nodes, reason):
    assert infeasible(found, by_nodes) is reason
