"""Environment variables with values that torch would refuse are refused before torch is imported; others pass."""

from __future__ import annotations

import os

import pytest
from ratc_runtime.config import torch_variables
from ratc_runtime.config.torch_variables import check_torch_variables
from ratc_runtime.errors import RuntimeFinding

from ratc.catalog import launch_variables

#: Torch is asked in the same way as for others, in two processes that import it.
ASKED = pytest.mark.slow


@pytest.fixture(autouse=True)
def _none_of_another_test_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that other tests import set some of these variables for their own process."""
    for name in os.environ:
        if name.startswith(torch_variables._READ):
            monkeypatch.delenv(name)


def refused(**variables: str) -> RuntimeFinding | None:
    try:
        check_torch_variables({**os.environ, **variables})
    except RuntimeFinding as finding:
        return finding
    return None


@pytest.mark.parametrize(
    "variables",
    [
        {"TORCH_LOGS": "bad"},
        {"TORCH_DISTRIBUTED_DEBUG": "BAD"},
        {"TORCH_DISTRIBUTED_DEBUG": ""},
        pytest.param({"PYTORCH_JIT": "BAD", "TORCH_SHOW_CPP_STACKTRACES": "1"}, marks=ASKED),
        pytest.param({"COMPILE_STROBELIGHT_SAMPLE_RATE": "BAD"}, marks=ASKED),
        pytest.param({"TORCHINDUCTOR_COMPILE_THREADS": "BAD"}, marks=ASKED),
        pytest.param({"AOTINDUCTOR_REPRO_LEVEL": "BAD"}, marks=ASKED),
        pytest.param({"NUMPY_MADVISE_HUGEPAGE": "BAD"}, marks=ASKED),
        {"TORCH_NCCL_BLOCKING_WAIT": "BAD"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_values_that_torch_refuses_are_named(variables: dict[str, str]) -> None:
    finding = refused(**variables)
    assert finding is not None
    assert finding.code == "R587"
    name = next(iter(variables))
    assert f"{name}=" in finding.message
    assert "TORCH_SHOW" not in finding.message
    assert finding.note


@pytest.mark.parametrize(
    "variables",
    [
        {"TORCH_LOGS": "recompiles", "TORCH_DISTRIBUTED_DEBUG": "detail", "TORCH_CPP_LOG_LEVEL": "BAD"},
        {"TORCH_LOGS": "", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/x"},
    ],
    ids=["words", "numbers"],
)
def test_values_that_torch_accepts_are_accepted(variables: dict[str, str]) -> None:
    assert refused(**variables) is None


def test_compiler_and_runtime_know_the_same_values() -> None:
    assert torch_variables.WORDS == launch_variables.WORDS


def test_paths_and_values_of_launchers_are_accepted_without_importing_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratc_runtime.config.torch_variables._failure", lambda _: pytest.fail("torch was asked"))
    names = ("TORCH_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "PYTORCH_ALLOC_CONF", "TORCHELASTIC_RUN_ID")
    assert refused(**dict.fromkeys(names, "x"), PYTORCH_NVML_BASED_CUDA_CHECK="1") is None
