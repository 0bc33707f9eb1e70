"""How to train: settings and facts -> plan, by an ordered tuple of derivations.

A derivation is ``derive(context) -> Iterator[Diagnostic]``: it reads settings, facts and what was derived before it,
and puts values with their reasons into the context. It touches nothing else.
"""

from __future__ import annotations

from ratc.diagnostics import Diagnostic, has_errors
from ratc.plan import Plan, Values
from ratc.resolve import batch, engine, experiment, loader, model, parallelism, precision, training
from ratc.resolve.context import Context

#: In the order in which they run: each may read what stands before it.
DERIVATIONS = (experiment, parallelism, precision, batch, engine, model, training, loader)


def resolve(settings: Values, facts: Values) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
    """Work out every value of the run. Codes: R3xx."""
    context = Context(settings, facts)
    found: list[Diagnostic] = []
    for derivation in DERIVATIONS:
        found += derivation.derive(context)
        if has_errors(found):
            return None, tuple(found)
    return Plan(Values(context.values), settings, facts), tuple(found)
