"""Compares two resolved plans: changes, causes and consequences. See :mod:`ratc.comparison.compare`."""
