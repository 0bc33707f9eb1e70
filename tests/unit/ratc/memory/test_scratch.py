"""Scratch memory of kernels other than convolutions, compared with the committed survey of an H200."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.places import BENCHMARKS, RUNTIME, TESTS

sys.path[:0] = [str(BENCHMARKS / "memory")]
pytest.importorskip("torch")

import workspaces  # noqa: E402

from ratc.memory.scratch import PROCESSORS, processors, read, reduction, segments  # noqa: E402

SURVEY = BENCHMARKS / "memory" / "data" / "nvidia-h200-2026-11-26"
H200 = PROCESSORS["9.0"]


def rounded(size: int) -> int:
    return (size + 511) & -512


def test_product_scratch_memory_grows_with_each_side() -> None:
    """fp32 distances of the samples and 64 prototypes, 1,024 features each."""
    assert read(["product", [4, 0], [64, 1], [64, 1], [1024, 0]]).bytes_(100, H200) == 4 * 164 * 164 * 1024


def test_attention_kernels_and_memory_equal_the_survey() -> None:
    """45 rows: types, masks that learn, causal ones, lengths that are padded."""
    rows = workspaces.rows(SURVEY, "sdpa")
    done = subprocess.run(
        [sys.executable, str(TESTS / "helpers/attending.py")],
        input=json.dumps(rows),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(RUNTIME)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len(rows) == 45
    for row, (node, forward, backward) in zip(rows, found, strict=True):
        assert node == row["grad_fn"], row
        assert forward == pytest.approx(row["fwd"][0], rel=0.002), row
        assert backward == pytest.approx(row["bwd"][0], rel=0.003), row


@pytest.mark.parametrize("row", workspaces.rows(SURVEY, "sum"), ids=lambda row: str(row["n"]))
def test_full_reduction_takes_less_than_1_mebibyte(row: dict[str, list[int]]) -> None:
    """That is why sums along the densest dimension are not described."""
    assert row["fwd"][0] < 1 << 20


@pytest.mark.parametrize(
    ("outputs", "inputs", "measured"),
    [(768, 18912, 116_391_936), (3072, 18912, 138_412_032), (2304, 18912, 139_198_464), (768, 96, 0), (1, 1, 0)],
)
def test_partial_sums_of_a_reduction_equal_the_recorded_bytes(outputs: int, inputs: int, measured: int) -> None:
    """Gradients of biases of vit-b at 96 images, as recorded (events/vit-b-bf16.json.xz)."""
    assert reduction(H200, outputs, inputs, 4 if outputs % 4 == 0 else 1) == measured


@pytest.mark.parametrize("row", workspaces.rows(SURVEY, "embedding_dense_backward"), ids=lambda row: str(row["n"]))
def test_embedding_gradient_memory_is_a_tight_upper_bound(row: dict[str, list[int]]) -> None:
    """An upper bound: the number of segments depends on the indices, which were random here."""
    n, v, d = (int(row[key]) for key in ("n", "v", "d"))  # type: ignore[call-overload]
    measured = row["fwd"][0] - row["fwd"][2]  # the peak less what is left afterwards
    found = segments(H200, n, v, d)
    assert measured <= found + (16 << 10)
    assert found < 1.1 * measured + (1 << 20)


def test_multiprocessors_are_those_of_the_next_lower_capability() -> None:
    assert processors("9.0") == processors("9.9") == H200
    assert processors("7.5") == PROCESSORS["7.0"]
    assert processors("5.2") == PROCESSORS["6.0"]


@pytest.mark.parametrize("content", [["reduction"], ["other", [1, 0]], ["segments", [1, 0], [1, 0], [-5, 1]], []])
def test_malformed_scratch_description_is_refused(content: list[object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        read(content)
