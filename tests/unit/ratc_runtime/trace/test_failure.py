"""Models that cannot be traced give findings at the responsible key."""

from __future__ import annotations

import importlib.util
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tracing import failure, run, zoo

pytestmark = [
    pytest.mark.slow,  # nearly every test traces in processes of its own
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the runtime extra"),
]


@pytest.mark.parametrize(
    ("name", "code", "message", "place"),
    [
        ("DataDependent", "R315", "reads a value", "in forward"),
        ("BooleanMask", "R315", "reads a value", "in forward"),
        ("Numpy", "R315", "numpy", "in forward"),
        ("BatchDependent", "R315", "micro-batches 2 and 4", ""),
        (
            "Triangle",
            "R315",
            "by a rule that ratc knows: 404 at 2, 424 at 4, 2,384 at 32",
            "",
        ),
        ("Padded", "R315", "do not follow the micro-batch by a rule that ratc knows: ", ""),
        ("Branching", "R315", "micro-batches 2 and 32: they part at ", ""),
        ("Triples", "R315", "what a kernel takes for itself does not follow the micro-batch", ""),
        ("Shrinking", "R315", "do not follow the micro-batch by a rule that ratc knows: 392 at 2, 384 at 4", ""),
        ("Overwritten", "R315", "reads a value", "in forward"),
        ("OverwrittenView", "R315", "reads a value", "in forward"),
        ("Randomised", "R315", "reads a value", "in forward"),
        ("Drawn", "R315", "reads a value", "in forward"),
        ("FromWeights", "R315", "reads a value", "in forward"),
        ("RunningMean", "R315", "reads a value", "in forward"),
        ("Empty", "R315", "reads a value", "in forward"),
        ("FromTarget", "R315", "reads a value", "in forward"),
        ("Raising", "R316", "KeyError: 'no such scale'", "in forward"),
        ("Shapes", "R316", "RuntimeError", "in forward"),
        ("exits", "R316", "exit status 3", "in exits"),
        ("exits_hard", "R316", "status 4", ""),
        ("raises", "R316", "width must be even", "in raises"),
        ("Crashing", "R316", "SIGABRT", ""),
        ("Greedy", "R316", "host memory", "in <listcomp>"),
        ("nothing_of_that_name", "R316", "cannot be imported", ""),
    ],
)
def test_a_model_that_cannot_be_traced_gives_a_finding(
    tmp_path: Path, name: str, code: str, message: str, place: str
) -> None:
    found = failure(zoo(f"hostile:{name}"), tmp_path)
    assert found["code"] == code
    assert message in found["message"]
    assert place in found["where"]


GROUP = {"learning_rate_factor": 0.1, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer", "torch.optim:LBFGS", "needs 'closure' in each step"),
        ("optimizer", "hostile:Stepping", "a step of the optimizer failed: ValueError: no step"),
        ("loss", {"name": "hostile:Scoring", "args": {}}, "calling the loss failed: ValueError: no score"),
        ("frozen", ["nothing"], "no parameter of the model matches 'nothing'"),
        ("parameter_groups", [{**GROUP, "match": ["none"]}], "no parameter of the model matches 'none'"),
    ],
)
def test_the_finding_of_a_failed_trace_names_the_key(tmp_path: Path, key: str, value: Any, message: str) -> None:
    content = zoo("Mlp", args={"width": 64, "depth": 1})
    content["training"][key] = value
    found = failure(content, tmp_path)
    assert (found["code"], found["key"]) == ("R316", f"training.{key}")
    assert message in found["message"]


def test_the_last_output_of_a_crashed_tracer_is_kept(tmp_path: Path) -> None:
    found = failure(zoo("hostile:Crashing"), tmp_path)
    assert "last words" in found["traceback"]


@pytest.mark.parametrize("name", ["Chatty", "HostValues", "KnownMask", "large", "numbers"])
def test_unusual_models_are_traced(tmp_path: Path, name: str) -> None:
    output = tmp_path / "trace.json"
    done = run(["-m", "ratc_runtime.trace", str(output)], zoo(f"hostile:{name}"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert output.exists()


def test_children_of_a_hanging_tracer_end_when_it_is_killed(tmp_path: Path) -> None:
    output, note = tmp_path / "trace.json", tmp_path / "pid"
    with pytest.raises(subprocess.TimeoutExpired):
        run(["-m", "ratc_runtime.trace", str(output)], zoo("hostile:sleeps", args={"note": str(note)}), timeout=20)
    assert not output.exists()
    # Its children end with it, though it was killed and could not tell them.
    for _ in range(100):
        if not Path("/proc", note.read_text()).exists():
            return
        time.sleep(0.1)
    pytest.fail("a child outlived the tracer")
