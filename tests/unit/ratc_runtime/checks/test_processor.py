"""The processor of a node beside that of a lock."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import pytest
from ratc_runtime.checks.processor import check_processor
from ratc_runtime.errors import RuntimeFinding


@dataclass
class Hardware:
    cpu_architecture: str | None
    card: str | None = "gb200"


@dataclass
class Lock:
    hardware: Hardware


def test_a_lock_starts_on_its_own_processor_only() -> None:
    check_processor(Lock(Hardware(None)))
    check_processor(Lock(Hardware(platform.machine())))
    with pytest.raises(RuntimeFinding, match=f"this node is {platform.machine()}, that of the lock sparc64") as found:
        check_processor(Lock(Hardware("sparc64")))
    assert found.value.code == "R504"
