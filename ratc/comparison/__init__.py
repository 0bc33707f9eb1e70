"""Compare two resolved plans: what moves, why, and with what consequence. See :mod:`ratc.comparison.compare`."""
