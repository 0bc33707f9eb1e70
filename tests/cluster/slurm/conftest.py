"""Starts the Slurm that a test wants.

RATC_TEST_SLURM=always makes a missing Slurm a failure, `never` leaves these tests out. Without it they run where they
can: as root on Debian, which is how CI runs. One of the two clusters runs at a time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from tests.cluster.slurm.cluster import HERE, Slurm, debian_packages, running
from tests.effort import NO_SLURM
from tests.places import ROOT

WISH = os.environ.get("RATC_TEST_SLURM", "")
#: By cluster: why it does not run.
_missing: dict[str, str] = {}


def _start(kind: str) -> str | None:
    """Start a cluster unless it runs; returns why that is impossible, or None."""
    reason = "RATC_TEST_SLURM=never" if WISH == "never" else debian_packages(kind)
    if reason is not None:
        return reason
    if kind == "site" and any(str(place).startswith("/tmp/") for place in (ROOT, sys.prefix)):
        return "the checkout or its Python lies in /tmp, and each node has a /tmp of its own"
    # The user of `site` needs this Python and this project, in whoever's home they are.
    shown = "".join(f"{folder}\n" for folder in (sys.base_prefix, sys.prefix, ROOT))
    # Not a pipe: the daemons would keep it open.
    with tempfile.TemporaryFile("w+") as said:
        command, environment = [HERE / "up", kind], {**os.environ, "RATC_TEST_SHOWN": shown}
        if subprocess.run(command, stdout=said, stderr=said, env=environment, check=False).returncode:
            said.seek(0)
            return said.read().strip() or f"tests/cluster/slurm/up {kind} failed"
    return None


def _run(kind: str) -> None:
    """Have a cluster run, or skip the test, or fail it."""
    if kind not in _missing:
        reason = _start(kind)
        if reason is None:
            return
        _missing[kind] = reason
    reason = f"{NO_SLURM} `{kind}` does not run: {_missing[kind]}"
    if WISH == "always":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def _as_before() -> Iterator[None]:
    """What ran before the tests runs on after them, and nothing else."""
    before = running()
    yield
    if running() != before:
        subprocess.run([HERE / "up", before] if before else [HERE / "down"], check=True)


@pytest.fixture(scope="module")
def _daemons(_as_before: None) -> None:
    """The cluster `plain`."""
    _run("plain")


@pytest.fixture(scope="module")
def _site(_as_before: None) -> None:
    """The cluster `site`."""
    _run("site")


@pytest.fixture
def slurm(_daemons: None) -> Iterator[Slurm]:
    """A Slurm of four nodes; what a test submits is cancelled after it."""
    slurm = Slurm()
    yield slurm
    slurm.cancel_all()


@pytest.fixture
def site(_site: None) -> Iterator[Slurm]:
    """A Slurm of three nodes with accounts, QOS and a site's script, as a user who is not root."""
    slurm = Slurm(user=(str(HERE / "user"),))
    yield slurm
    slurm.cancel_all()
