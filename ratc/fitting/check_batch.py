"""Checks micro-batches that a spec gives against their card.

The outcome is printed and never enters a file: a spec that gives its micro-batch, and leaves nothing else to a
prediction, compiles to the same bytes on a machine that cannot trace its model.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ratc.console import say
from ratc.diagnostics import Diagnostic, Severity
from ratc.fitting.open_batch import is_given, predicted_from
from ratc.plan import Plan

#: If this variable is set, no given micro-batch is checked. No file depends on it.
SKIP = "RATC_SKIP_BATCH_CHECK"
#: Steps of one sweep or study that are checked: each that differs may take a trace of some seconds.
MOST = 8


class Checks:
    """The checks of one command. Plans with equal values for all that memory depends on share one."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[Diagnostic, ...]] = {}
        self._said: set[str] = set()
        #: Whether a micro-batch could not be checked: its step cannot be traced.
        self.untraceable = False

    def check(self, plan: Plan, folder: str, is_last: bool = True) -> tuple[Diagnostic, ...]:
        """Check the plan's micro-batch, if the spec gives it and its card is known.

        Codes: R316 (a warning), R237, R318, R366, R574, R575.

        If it cannot be checked, a line on standard error says so. Of the plans of a sweep, the first MOST different
        ones are checked, and the last.
        """
        if os.environ.get(SKIP) or not is_given(plan):
            return ()
        key = predicted_from(plan, folder)
        if key not in self._known:
            if len(self._known) >= MOST and not is_last:
                self._say(f"the micro-batches of {MOST} different points and of the last point are checked")
                return ()
            self._known[key] = self._checked(plan, folder)
        return self._known[key]

    def _checked(self, plan: Plan, folder: str) -> tuple[Diagnostic, ...]:
        # Imported here: only a known card needs it.
        from ratc.fitting import given_batch
        from ratc.fitting.traces import NoTrace

        try:
            verdict, why = given_batch.judge(plan, folder)
        except NoTrace as stopped:
            self.untraceable = True
            return tuple(map(_of_this_machine, stopped.found))
        if verdict is None:
            self.untraceable = True
            self._say(f"the micro-batch is not checked against {plan.values['hardware.card'].value}: {why}")
            return ()
        return given_batch.findings(verdict, plan, folder)

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            say(f"ratc: {line}")


def _of_this_machine(item: Diagnostic) -> Diagnostic:
    """Return a finding; as a warning if the model could not be built or called, which may work where the job runs."""
    if item.code != "R316":
        return item
    return replace(item, message=f"the micro-batch is not checked: {item.message}", severity=Severity.WARNING)
