"""Starts a real Slurm for the tests that want one, and says at the end of the session where it could not.

RATC_TEST_SLURM=always makes a missing Slurm a failure, `never` leaves these tests out. Without it they run where they
can: as root on Debian, which is how CI runs.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Slurm, ask, debian_packages

HERE = Path(__file__).parent
WISH = os.environ.get("RATC_TEST_SLURM", "")
_skipped: list[str] = []


@pytest.fixture(scope="session")
def _daemons() -> Iterator[None]:
    """The daemons, started once; those that ran before the tests run on after them."""
    reason = "RATC_TEST_SLURM=never" if WISH == "never" else debian_packages()
    ran_before = reason is None and "is UP" in ask("scontrol", "ping")
    if reason is None:
        # Not a pipe: the daemons would keep it open.
        with tempfile.TemporaryFile("w+") as said:
            if subprocess.run([HERE / "up"], stdout=said, stderr=said, check=False).returncode:
                said.seek(0)
                reason = said.read().strip()
    if reason is not None:
        if WISH == "always":
            pytest.fail(f"Slurm does not run: {reason}")
        _skipped.append(reason)
        pytest.skip(f"Slurm does not run: {reason}")
    yield
    if not ran_before:
        subprocess.run([HERE / "down"], check=True)


@pytest.fixture
def slurm(_daemons: None) -> Iterator[Slurm]:
    """A Slurm of four nodes; what a test submits is cancelled after it."""
    slurm = Slurm()
    yield slurm
    slurm.cancel_all()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped:
        terminalreporter.section("NOT TESTED ON SLURM", red=True, bold=True)
        terminalreporter.line(f"{_skipped[0]}. The emitted jobs were not run.")
