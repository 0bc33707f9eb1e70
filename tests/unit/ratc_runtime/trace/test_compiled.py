"""Compiled models: values that their steps save, allocate and overwrite, against those expected by definition."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tracing import request, trace, zoo

pytestmark = [
    pytest.mark.slow,  # each traces in processes of its own
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the runtime extra"),
]

#: Bytes for each sample of `zoo.Chain` in bf16: the image, what its layers take and give.
IMAGE, WIDE, NARROW = 768 * 2, 4096 * 2, 64 * 2


def chain(compiled: bool = True, **changes: Any) -> dict[str, Any]:
    changes = {"data__image_size": [16, 16], "compute_capability": "9.0", "training__precision": "bf16", **changes}
    return zoo("Chain", training__compile=compiled, **changes)


def made(found: dict[str, Any], phase: str) -> list[float]:
    """Return the bytes for each sample of what the second step allocates in a phase, in its order."""
    second = found["steps"][1]
    events = [event for event in found["events"][second:] if len(event) > 1]
    return [event[2] for event in events if found["phases"][event[3]] == phase and event[2]]


def test_a_compiled_step_allocates_only_operands_and_results_of_products(tmp_path: Path) -> None:
    """Between the layers lies one kernel; backward writes over the gradient of the wide layer's result."""
    found = trace(chain(), tmp_path)
    assert found["estimates"] == ["compiled"]
    assert found["batch_sizes"] == [16, 32]
    assert made(found, "forward") == [IMAGE, WIDE, WIDE, NARROW]
    assert made(found, "backward") == [NARROW * 2, NARROW, WIDE]


def test_an_uncompiled_step_saves_every_intermediate_value(tmp_path: Path) -> None:
    found = trace(chain(compiled=False), tmp_path)
    assert found["estimates"] == []
    # In float32: the wide values themselves, sine, cosine, their product and its tanh.
    assert made(found, "forward") == [IMAGE, WIDE, *[WIDE * 2] * 5, WIDE, NARROW]


def test_a_graph_break_adds_a_buffer(tmp_path: Path) -> None:
    """The graph after the break gets the wide values in float32, and saves them for backward."""
    found = trace(chain(args={"broken": True}), tmp_path)
    assert found["estimates"] == ["compiled"]
    assert made(found, "forward") == [IMAGE, WIDE, WIDE * 2, WIDE, NARROW]


def test_weights_gradients_and_state_equal_those_of_the_uncompiled_step(tmp_path: Path) -> None:
    compiled, plain = (trace(chain(compiled=one), tmp_path) for one in (True, False))
    assert compiled["parameters"] == plain["parameters"]
    for kind in ("parameter", "optimizer", "gradient"):
        sizes = [
            sorted(event[1] for event in found["events"] if len(event) > 1 and found["kinds"][event[5]] == kind)
            for found in (compiled, plain)
        ]
        assert sizes[0] == sizes[1], kind


def test_a_model_that_cannot_be_compiled_is_traced_uncompiled(tmp_path: Path) -> None:
    content = zoo("Uncompilable", training__compile=True)
    found = trace(content, tmp_path)
    assert found["estimates"] == ["uncompiled"]
    assert found["batch_sizes"] == [2, 4]
    plain = trace(zoo("Uncompilable"), tmp_path)
    assert found["events"] == plain["events"]


@pytest.mark.parametrize(
    "content",
    [{**chain(), "engine": "deepspeed"}, {**chain(), "semantics": "cpu"}, request(training__compile=True)],
    ids=["deepspeed", "cpu", "rat"],
)
def test_unsupported_compiled_models_are_marked_as_uncompiled(tmp_path: Path, content: dict[str, Any]) -> None:
    found = trace(content, tmp_path)
    assert "uncompiled" in found["estimates"]
    assert found["batch_sizes"] == [2, 4]
