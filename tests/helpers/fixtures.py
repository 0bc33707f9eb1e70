"""Fixtures of tests that train, which a room's conftest.py imports: tiny data, and own modules that are forgotten."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.lockfile import write_data


@pytest.fixture(autouse=True)
def _own_modules_are_forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modules that a test has imported from a folder of its own are not those of the next one."""
    yield
    base = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(base):
            del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A spec's folder with tiny data in `data/`."""
    write_data(tmp_path / "data")
    return tmp_path
