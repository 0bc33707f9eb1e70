"""The memory that is predicted for the step which a spec describes, against the steps that other trainers make.

The CPU's allocator counts them. `python test_memory_trainers.py` prints the table of `docs/guides/own-program.md`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tracing import replay, request, run, trace
from tests.places import ROOT

GPT = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": 4000}
BATCH = 3  # neither of the two that are traced
#: The trainer, the precision, and the micro-batches of a step.
CASES = [
    ("transformers", "fp32", 1),
    ("transformers", "bf16", 2),
    ("accelerate", "bf16", 2),
    ("lightning", "bf16", 2),
]

pytestmark = [
    pytest.mark.slow(every=True),
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the runtime extra"),
]


def compare(trainer: str, precision: str, accumulation: int, folder: Path) -> tuple[float, float]:
    """Return the predicted and the counted peak of live memory, in bytes."""
    own = trainer == "transformers"  # whose Trainer takes the loss that the model computes
    content: dict[str, Any] = request(
        task_type="custom",
        model={"name": "transformers:GPT2Config", "args": GPT, **({} if own else {"output": "logits"})},
        data__dataset="text_step:Pieces",
        data__args={"length": 128, "vocabulary": 4000, "labels": own},
        training__precision=precision,
        training__loss={"name": f"text_step:{'own_loss' if own else 'next_token'}", "args": {}},
        # Lightning refuses to clip what a fused optimizer updates, and ratc counts the fused one.
        training__gradient_clipping=None if trainer == "lightning" else 1.0,
        accumulation=accumulation,
        semantics="cpu",
    )
    predicted, _, _ = replay(trace(content, folder), BATCH)
    helper = ROOT / "tests/helpers/counting_trainers.py"
    done = run([str(helper), trainer, str(BATCH), str(folder)], content)
    assert done.returncode == 0, done.stderr
    return predicted, json.loads(done.stdout.splitlines()[-1])[0]


@pytest.mark.parametrize(("trainer", "precision", "accumulation"), CASES)
def test_the_predicted_peak_equals_that_of_the_trainer(
    trainer: str, precision: str, accumulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(trainer)
    monkeypatch.setenv("RATC_TESTS", str(ROOT))
    predicted, counted = compare(trainer, precision, accumulation, tmp_path)
    assert predicted == pytest.approx(counted, rel=0.01)


if __name__ == "__main__":
    os.environ["RATC_TESTS"] = str(ROOT)
    for case in CASES:
        with tempfile.TemporaryDirectory() as made:
            guess, truth = compare(*case, Path(made))
        print(f"{case[0]:14}{case[1]:6}{case[2]:3}{guess / 2**20:10.2f}{truth / 2**20:10.2f} MiB "
              f"{100 * (guess / truth - 1):+7.2f} %", flush=True)  # fmt: skip
