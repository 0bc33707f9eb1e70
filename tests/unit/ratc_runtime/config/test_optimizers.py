"""The runtime's facts about optimizers equal those of the compiler; a missing package is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ratc_runtime import preflight
from ratc_runtime.config import optimizers
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.trace.failure import TraceError
from ratc_runtime.trace.record import record
from ratc_runtime.trace.request import read

from ratc.catalog import optimizers as compiled
from tests.helpers.lockfile import BASE, write_lock
from tests.helpers.tracing import request


def test_compiler_and_runtime_know_the_same_optimizers() -> None:
    assert list(optimizers.OPTIMIZERS) == list(compiled.OPTIMIZERS)
    for name, facts in optimizers.OPTIMIZERS.items():
        known = compiled.OPTIMIZERS[name]
        assert ("betas" in facts.arguments) == (known.betas is not None), name
        assert ("momentum" in facts.arguments) == (known.momentum is not None), name
        assert facts.zero == known.zero, name
        assert facts.sharded == (not known.unsharded), name
        assert (facts.package is not None and facts.package[1] != "runtime") == name.endswith("_8bit"), name


def lock_of(folder: Path, **training: Any) -> Path:
    return write_lock(folder, training={**BASE["training"], **training})


def test_a_missing_package_is_named_before_torch_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizers.OPTIMIZERS, "lion", optimizers.Optimizer(("betas",), package=("none_such", "8bit")))
    (tmp_path / "none_such").mkdir()  # a folder of that name is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeFinding, match="optimizer lion needs none_such") as raised:
        preflight.check(lock_of(tmp_path, optimizer="lion"), {}, launched=False)
    assert (raised.value.code, raised.value.help.partition(",")[0]) == ("R598", "pip install 'ratc[8bit]'")
    assert preflight.check(lock_of(tmp_path, optimizer="adamw"), {}, launched=False)


def test_a_prediction_names_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(optimizers.OPTIMIZERS, "lion", optimizers.Optimizer(("betas",), package=("none_such", "8bit")))
    with pytest.raises(TraceError) as raised:
        record(read(request(training__optimizer="lion", semantics="cpu")), 1)
    found = json.loads(raised.value.failure.line())
    assert (found["code"], found["key"]) == ("R598", "training.optimizer")
    assert "finds no package none_such" in found["message"]


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As bitsandbytes if its libraries do not fit the CUDA of torch."""
    (tmp_path / "broken_optim.py").write_text("raise OSError('libcudart is not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = optimizers.Optimizer(("betas",), package=("broken_optim", "8bit"))
    monkeypatch.setitem(optimizers.OPTIMIZERS, "lion", broken)
    with pytest.raises(RuntimeFinding, match="importing broken_optim: OSError: libcudart is not found") as raised:
        optimizers.load("broken_optim", "lion")
    assert raised.value.code == "R598"
