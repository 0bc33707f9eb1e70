"""A cluster's facts that predicted times and costs need: bandwidths between GPUs, prices and watts."""

from __future__ import annotations

from ratc.plan import Plan
from ratc.timing.run import Links, Prices


def links(plan: Plan) -> Links:
    """Return the bandwidths between GPUs that the facts give, in bytes a second."""
    within, between = (_fact(plan, key) for key in ("gpu_link_gb_s", "network_gb_s"))
    return Links(within and 1e9 * within, between and 1e9 * between)


def prices(plan: Plan) -> Prices:
    """Return the price of a GPU hour and the watts of a GPU by the facts."""
    currency = plan.facts.get("cluster.currency")
    name = str(currency.value) if currency is not None and currency.value is not None else None
    return Prices(_fact(plan, "price_per_gpu_hour"), name, _fact(plan, "watts_per_gpu"))


def _fact(plan: Plan, key: str) -> float | None:
    found = plan.facts.get(f"cluster.{key}")
    return None if found is None or found.value is None else float(found.value)
