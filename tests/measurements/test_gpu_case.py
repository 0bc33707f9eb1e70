"""Cases of the GPU harness that need DeepSpeed's engine or a compiled model, on the CPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.effort import HANGS_S
from tests.places import BENCHMARKS

pytest.importorskip("torch")

sys.path[:0] = [str(BENCHMARKS / "memory")]

import gpu  # noqa: E402
import gpu_case  # noqa: E402

SMALL = {"layers": 1, "width": 32, "heads": 2, "tokens": 16, "words": 50}


def case(zero_stage: int | None = None, **more: Any) -> dict[str, Any]:
    request = gpu.zoo("gpt:Gpt", args=SMALL, **more)
    common = {"mode": "measure", "name": "small", "micro_batch": 2, "cap_bytes": None, "device": "cpu", "alone": True}
    return {**common, "request": request, "zero_stage": zero_stage, "needs": []}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_case_of_each_zero_stage_runs(stage: int) -> None:
    pytest.importorskip("deepspeed")
    found = gpu.run_case(case(stage, engine="deepspeed"), 300)
    assert found == dict.fromkeys(("peak_allocated_bytes", "peak_reserved_bytes", "device_used_bytes"))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_model_is_compiled_only_if_the_request_asks_for_it(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS / "memory"))
    small = case()
    small["request"]["training"] = {**small["request"]["training"], "compile": compiled}
    step = gpu_case.Step(small, 2)
    assert (step.engine.module._compiled_call_impl is not None) is compiled
    assert step.request.lock.training.compile is compiled


@pytest.mark.slow
def test_whole_steps_of_rat_are_timed_on_a_cpu() -> None:
    """What is left without a GPU: the table, and each attention that a CPU has."""
    script = BENCHMARKS / "rat_step.py"
    done = subprocess.run([sys.executable, script, "--sides", "32"], capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| 32 ")]
    assert [row[1].strip() for row in rows] == ["chunked", "full"]
    for row in rows:
        assert all(float(cell) > 0 for cell in row[2:5]), row
