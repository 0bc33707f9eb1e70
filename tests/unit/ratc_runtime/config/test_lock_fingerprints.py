"""The fingerprint of a lock never changes, so that a run can continue from an old checkpoint.

`fingerprints.json` was recorded once. A line of it changes only with what its lock says of training.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ratc_runtime.config.lock import read_lock

from tests.places import ROOT

RECORDED: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "fingerprints.json").read_text())


@pytest.mark.parametrize("folder", RECORDED)
def test_the_fingerprint_of_a_lock_stays_the_same(folder: str) -> None:
    lock = read_lock(ROOT / folder / "lock.yaml")
    assert {"fingerprint": lock.fingerprint(), "code": lock.code()} == {"code": None, **RECORDED[folder]}
