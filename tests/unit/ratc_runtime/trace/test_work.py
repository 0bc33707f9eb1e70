"""The work of a traced step: floating-point operations and bytes, by operator and type."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tracing import request, trace, zoo

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the runtime extra")


def products(made: dict[str, Any], *operators: str, phase: str = "") -> list[list[Any]]:
    """Return the rows of operators, in a phase if one is named."""
    phases = made["phases"]
    return [row for row in made["work"] if row[0] in operators and phase in ("", phases[row[3]])]


def operations(rows: list[list[Any]], batch: int) -> float:
    return sum(row[4] * (row[5] + batch * row[6]) for row in rows)


@pytest.mark.slow
def test_a_linear_layer_has_six_operations_per_weight_and_row(tmp_path: Path) -> None:
    """2 forward and 4 backward, 2 less in the first layer, whose input needs no gradient. AdamW moves 8 numbers."""
    width, pixels = 36, 32 * 32
    made = trace(zoo("Mlp", args={"width": width, "depth": 2}, training__precision="bf16"), tmp_path)
    stem, blocks = 3 * width, 2 * 2 * 4 * width * width
    forward = operations(products(made, "mm", "addmm", phase="forward"), 3)
    rest = forward - 2 * 3 * pixels * (stem + blocks)  # the head's
    assert 0 <= rest <= 2 * 3 * pixels * 16 * width
    assert operations(products(made, "mm", "addmm"), 3) == 3 * forward - 2 * 3 * pixels * stem
    assert {row[1] for row in products(made, "mm", "addmm")} == {"bf16"}
    moved = sum(row[4] * row[7] for row in products(made, "_fused_adamw_", phase="optimizer"))
    assert moved == pytest.approx(8 * 4 * made["parameters"]["count"], rel=0.02)
    # 36 numbers of 2 bytes are no multiple of 16, the 144 of the hidden layers are.
    assert {row[2] for row in products(made, "addmm")} == {0, 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tf32", "capability", "kind"), [(True, "8.0", "tf32"), (False, "8.0", "fp32"), (True, "7.0", "fp32")]
)
def test_fp32_products_use_tf32_if_allowed_and_supported(
    tf32: bool, capability: str, kind: str, tmp_path: Path
) -> None:
    content = zoo("Mlp", args={"width": 32}, training__tf32=tf32, compute_capability=capability)
    rows = products(trace(content, tmp_path), "mm", "addmm")
    assert rows
    assert {row[1] for row in rows} == {kind}


@pytest.mark.slow
def test_chunked_attention_counts_the_iterations_left_out_of_the_trace(tmp_path: Path) -> None:
    """Full attention makes two products with each map; chunked, which makes the maps again, at least as many."""
    rat = {"feature_dims": 32, "num_blocks": 1, "num_heads": 16, "iters": 1}
    size = {"data__image_size": [256, 256], "training__precision": "bf16"}
    work = {}
    for attention in ("full", "chunked"):
        model = {"name": "rat", "multi_scale": False, "args": rat, "attention_memory": attention}
        made = trace(request(model=model, **size), tmp_path)
        work[attention] = operations(products(made, "bmm"), 1)
        assert made["work"]
    assert work["full"] <= work["chunked"] < 4 * work["full"]


@pytest.mark.slow
def test_work_of_a_recurrent_layer_is_weights_times_rows(tmp_path: Path) -> None:
    content = zoo("Lstm", args={"width": 32, "hidden": 64, "layers": 1}, data__image_size=[16, 32])
    made = trace(content, tmp_path)
    rows = {row[0]: row for row in made["work"] if row[0].startswith("_cudnn_rnn")}
    assert set(rows) == {"_cudnn_rnn", "_cudnn_rnn_backward", "_cudnn_rnn_weights"}
    assert rows["_cudnn_rnn"][4] == 48  # the rows of three channels, one after the other
    for row in rows.values():
        assert operations([row], 5) == pytest.approx(2 * 5 * 48 * 4 * 64 * (32 + 64))


def test_a_shortened_loop_records_the_weight_of_each_iteration() -> None:
    from ratc_runtime.models import chunked_maps

    with chunked_maps.only_enough_for_memory():
        slices = chunked_maps._slices(10, 1)
        outer = [(one.start, chunked_maps.rounds()) for one in slices]
        both = sum(chunked_maps.rounds() for _ in slices for _ in slices)
    assert outer == [(0, 1), (1, 8), (9, 1)]
    assert both == 100
    assert chunked_maps.rounds() == 1


def test_moved_bytes_and_memory_order_of_tensors() -> None:
    import torch
    from ratc_runtime.trace.work import Work, aligned, moved, ordered

    row = torch.empty(1, 8)
    assert moved(row.expand(1000, 8)) == 32
    image = torch.empty(2, 8, 4, 4)
    last = image.contiguous(memory_format=torch.channels_last)
    assert ordered([last, last])
    assert ordered([image, row])
    assert not ordered([image, last])
    assert aligned([torch.empty(6, 8)])
    assert not aligned([torch.empty(6, 7)])
    work = Work(tf32=False)
    work.add(torch.ops.aten.copy_.default, (image, last), [image, last], image, "forward")
    work.add(torch.ops.aten.view.default, (image, [-1]), [image], image, "forward")
    work.add(torch.ops.aten.add.Tensor, (image, image), [image, image], image, "forward", 3)
    flash = torch.ops.aten._scaled_dot_product_flash_attention.default
    query = torch.empty(2, 3, 64, 32, dtype=torch.bfloat16, device="meta")
    for causal in (False, True):
        work.add(flash, (query, query, query, 0.0, causal), [query] * 3, query, "forward")
    assert [one.operations for one in work.kernels[-2:]] == [4 * 6 * 64 * 64 * 32, 2 * 6 * 64 * 64 * 32]
    del work.kernels[-2:]
    size = image.numel() * 4
    assert [tuple(one) for one in work.kernels] == [
        ("copy_", "fp32", False, "forward", 1, 0, 2 * size),
        ("add", "fp32", True, "forward", 3, 0, 9 * size),
    ]
