"""Attention with the semantics of CUDA: the kernel that is chosen, and the tensors that it saves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tracing import allocations, trace, zoo

pytestmark = [
    pytest.mark.slow,  # nearly every test traces in processes of its own
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the runtime extra"),
]


@pytest.mark.parametrize(
    ("capability", "precision", "keeps_matrix"),
    [
        ("7.5", "bf16", True),
        ("7.5", "fp16", False),
        ("8.0", "bf16", False),
        ("9.0", "bf16", False),
        ("8.0", "fp32", False),
    ],
)
def test_attention_saves_the_tensors_of_its_kernel(
    tmp_path: Path, capability: str, precision: str, keeps_matrix: bool
) -> None:
    small = {
        "n_embd": 64,
        "n_layer": 1,
        "n_head": 4,
        "n_positions": 256,
        "n_inner": 64,
        "vocab_size": 64,
        "attn_pdrop": 0.0,
    }
    content = zoo(
        "LanguageModel", args={"kind": "gpt2", "tokens": 256, **small}, training__precision=precision,
        compute_capability=capability,
    )  # fmt: skip
    made = trace(content, tmp_path)
    largest = max(event[2] for event in allocations(made, phase="forward", kind="activation"))
    # For every head; transformers keeps a mask of one head's size too.
    assert (largest >= 4 * 256 * 256 * 2) == keeps_matrix


def test_the_attention_kernel_follows_dtype_mask_and_capability() -> None:
    import torch
    from ratc_runtime.trace.attention import kernel

    def pick(capability: tuple[int, int], size: int, dtype: Any, mask: bool = False, causal: bool = False) -> str:
        q = torch.zeros(1, 2, 16, size, dtype=dtype, requires_grad=True)
        return kernel(capability, q, q, q, torch.zeros(16, 16, dtype=dtype) if mask else None, causal)

    half, brain, single = torch.float16, torch.bfloat16, torch.float32
    assert pick((8, 0), 64, brain) == "flash"
    assert pick((8, 0), 64, brain, mask=True) == "efficient"
    assert pick((8, 0), 64, single) == "efficient"
    assert pick((8, 0), 6, single) == "math"  # rows of 24 bytes
    assert pick((8, 0), 12, brain, mask=True) == "math"
    assert pick((8, 0), 12, brain) == "flash"  # padded
    assert pick((8, 0), 264, brain) == "efficient"
    assert pick((8, 6), 200, brain) == "efficient"
    assert pick((9, 0), 64, brain) == "cudnn"
    assert pick((9, 0), 64, brain, mask=True) == "cudnn"
    assert pick((9, 0), 64, single) == "efficient"
    assert pick((7, 5), 64, half) == "efficient"
    assert pick((7, 5), 64, brain) == "math"
    assert pick((8, 0), 64, torch.float64) == "math"
