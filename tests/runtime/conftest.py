"""What the tests of the runtime share: its path, a tiny data set, and operators that torchvision needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "runtime")]

from lockfile import write_data  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: starts several processes or compilers")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A spec's folder with tiny data in `data/`."""
    write_data(tmp_path / "data")
    return tmp_path
