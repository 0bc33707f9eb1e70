"""Sample data sets: small, made from installed packages, one module each.

Run as `python -m ratc_runtime.data.sample NAME DIR`, as `ratc sample-data NAME DIR` does.
"""

from __future__ import annotations

import importlib

from ratc_runtime.data.sample.folder import SampleData, SampleDataError

__all__ = ["NAMES", "SampleData", "SampleDataError", "find"]

#: Modules of this package by the name of the data set; each has a `SAMPLE`.
_MODULES = {"brain": "brain", "brain3d": "brain3d", "shapes": "shapes", "digits": "digits"}
NAMES = tuple(_MODULES)


def find(name: str) -> SampleData:
    """Return the data set of that name, one of `NAMES`."""
    module = importlib.import_module(f"ratc_runtime.data.sample.{_MODULES[name]}")
    found: SampleData = module.SAMPLE
    return found
