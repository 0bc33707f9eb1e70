"""Marks of tests that need a package that only an extra of ratc brings."""

import importlib.util

import pytest

EIGHT_BITS = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes: pip install 'ratc[8bit]'"
)
