"""The tests of a node in real processes on the CPU, and processes that hang or fail."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ratc_runtime.health import measure
from ratc_runtime.health.node import Child, Node


@pytest.mark.slow
def test_a_single_node_passes_its_tests_and_its_all_reduce() -> None:
    node, end = Node("here", "cpu", 1, "fp32"), time.monotonic() + 60
    with Child("store") as store:
        port = next(word["port"] for word in store.words(end))
        try:
            node.ready(end)
            report = node.alone(end)
        finally:
            node.close()
        assert report.problems == []
        (device,) = report.devices
        assert device.problems == []
        assert device.matrix_tflops
        assert device.memory_gb_s
        found = node.together(0, 1, f"localhost:{port}/1", end)
        assert (found.problem, found.link_gb_s, found.network_gb_s) == (None, None, None)


@pytest.mark.slow
def test_two_nodes_pass_all_reduce_within_and_between_nodes() -> None:
    nodes, end = [Node("here", "cpu", 2, "fp32") for _ in range(2)], time.monotonic() + 120
    try:
        with Child("store") as store, ThreadPoolExecutor(2) as pool:
            port = next(word["port"] for word in store.words(end) if "port" in word)
            asked = [
                pool.submit(node.together, place, 2, f"localhost:{port}/1", end) for place, node in enumerate(nodes)
            ]
            found = [one.result() for one in asked]
    finally:
        for node in nodes:
            node.close()
    assert [one.problem for one in found] == [None, None]
    assert all(one.link_gb_s and one.network_gb_s for one in found)


@pytest.mark.slow
def test_a_partner_that_never_connects_is_a_problem() -> None:
    node, end = Node("here", "cpu", 1, "fp32"), time.monotonic() + 60
    try:
        with Child("store") as store:
            port = next(word["port"] for word in store.words(end) if "port" in word)
            found = node.together(0, 2, f"localhost:{port}/1", time.monotonic() + 12)
    finally:
        node.close()
    assert found.problem
    assert "joining the others" in found.problem


SPOILT = "import time\nfrom ratc_runtime.health import measure\n{what}\n"


def spoilt(folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> Node:
    """A node whose Python does something at its start."""
    (folder / "sitecustomize.py").write_text(SPOILT.format(what=what))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{':'.join(sys.path)}")
    return Node("here", "cpu", 1, "fp32")


HANGS = "def memory(device): time.sleep(600)\nmeasure.memory = memory"
RAISES = "def memory(device): raise RuntimeError('CUDA error: uncorrectable ECC error')\nmeasure.memory = memory"
DIES = "def memory(device): import os; os.abort()\nmeasure.memory = memory"


@pytest.mark.slow
def test_a_hanging_health_test_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = spoilt(tmp_path, monkeypatch, HANGS)
    try:
        node.ready(time.monotonic() + 60)
        report = node.alone(time.monotonic() + 4)
    finally:
        node.close()
    assert report.problems == ["a test hangs: memory"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "told"),
    [
        (RAISES, "the test failed: RuntimeError: CUDA error: uncorrectable ECC error"),
        (DIES, "a test failed: memory: status -6"),
    ],
)
def test_a_failing_health_test_is_a_problem(
    what: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = spoilt(tmp_path, monkeypatch, what)
    try:
        node.ready(time.monotonic() + 60)
        report = node.alone(time.monotonic() + 60)
    finally:
        node.close()
    problems = [*report.problems, *(one for device in report.devices for one in device.problems)]
    assert [one for one in problems if one.startswith(told)], problems


def test_memory_that_returns_other_values_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(measure, "COPIED", {"cpu": 2**16})
    monkeypatch.setattr(measure, "FILLED_CPU", 2**17)
    assert measure.memory(torch.device("cpu"))[1] == []
    real = torch.Tensor.fill_

    def fill(self: torch.Tensor, value: int) -> torch.Tensor:
        real(self, value)
        self[7] = 0
        return self

    monkeypatch.setattr(torch.Tensor, "fill_", fill)
    assert measure.memory(torch.device("cpu"))[1] == ["4 of 262144 bytes of its memory keep another value"]


def test_a_wrong_matrix_product_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(measure, "ROWS", {"cpu": 16})
    assert measure.matrix_product(torch.device("cpu"), torch.float32)[1] == []
    real, calls = torch.matmul, []

    def matmul(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        real(left, right, out=out)
        out[3, 3] += len(calls)
        return out

    monkeypatch.setattr(torch, "matmul", matmul)
    problems = measure.matrix_product(torch.device("cpu"), torch.float32)[1]
    assert problems == ["the same matrix product has other values the next time"]
