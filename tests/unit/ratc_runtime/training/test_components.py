"""The components of a run that a lock names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.training.components import Own, make_parts

from tests.helpers.lockfile import lock_with

HOOKS = """
from ratc_runtime.callbacks import Callback


class Average(Callback):
    def __init__(self, decay=0.9):
        self.decay = decay

    def step(self, run, loss):
        pass
"""


def callbacks(folder: Path, arguments: list[dict[str, Any]]) -> list[Any]:
    lock = lock_with(folder / "compiled")
    training = lock.training.replace(callbacks=["hooks_of_mine:Average"], callback_args=arguments)
    return list(make_parts(lock.replace(training=training), {}, Own()).callbacks)


def test_callbacks_get_their_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hooks_of_mine.py").write_text(HOOKS)
    monkeypatch.chdir(tmp_path)
    assert [made.decay for made in callbacks(tmp_path, [])] == [0.9]
    assert [made.decay for made in callbacks(tmp_path, [{"decay": 0.5}])] == [0.5]
    with pytest.raises(RuntimeFinding, match="unexpected keyword argument 'rate'") as raised:
        callbacks(tmp_path, [{"rate": 0.5}])
    assert raised.value.code == "R509"
