"""Scaled dot-product attention as CUDA runs it: which kernel, and so whether the S x S matrix is kept.

The rules are those of `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` of torch 2.13 (order, hardware,
types, head sizes, masks), the preparation of arguments that of `transformers/attention.cpp`. Flash,
memory-efficient and cuDNN attention keep the output and one logsumexp per row; "math" keeps the matrix.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

HALF = (torch.float16, torch.bfloat16)


def kernel(
    capability: tuple[int, int],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    dropout: float = 0.0,
    grouped: bool = False,
) -> str:
    """Return "cudnn", "flash", "efficient" or "math": what CUDA picks on a card of this compute capability."""
    if any(t.dim() != 4 or t.stride(-1) != 1 or 0 in t.shape for t in (query, key, value)):
        return "math"
    if not query.dtype == key.dtype == value.dtype:
        return "math"
    order = ("flash", "efficient")
    if capability in ((9, 0), (10, 0)):
        order = ("cudnn", "flash", "efficient")
    possible = {"cudnn": _cudnn, "flash": _flash, "efficient": _efficient}
    for name in order:
        if possible[name](capability, query, key, value, mask, causal, dropout, grouped):
            return name
    return "math"


def _flash(
    capability: tuple[int, int],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    dropout: float,
    grouped: bool,
) -> bool:
    size = query.shape[-1]
    if capability < (8, 0) or query.dtype not in HALF or mask is not None:
        return False
    if not size == key.shape[-1] == value.shape[-1] or size > 256:
        return False
    if causal and query.shape[-2] != key.shape[-2]:
        return False
    training = query.requires_grad or key.requires_grad or value.requires_grad
    small_shared_memory = capability in ((8, 6), (8, 9)) or capability[0] == 12
    return not (small_shared_memory and training and (192 < size <= 224 or (size > 224 and dropout > 0.0)))


def _cudnn(
    capability: tuple[int, int],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    dropout: float,
    grouped: bool,
) -> bool:
    sizes = (query.shape[-1], key.shape[-1], value.shape[-1])
    if query.dtype not in HALF or any(size % 8 or size > 128 for size in sizes):
        return False
    if mask is not None and mask.requires_grad:
        return False
    return query.shape[-2] > 1 and key.shape[-2] > 1


def _efficient(
    capability: tuple[int, int],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    dropout: float,
    grouped: bool,
) -> bool:
    if capability < (5, 0) or query.dtype not in (*HALF, torch.float32):
        return False
    if query.dtype == torch.bfloat16 and capability < (8, 0):
        return False
    half = query.dtype in HALF
    alignment = 4 if capability >= (8, 0) else 1
    if capability >= (8, 0) or (capability >= (7, 0) and half):  # tensor cores want 128 bits at once
        alignment = max(alignment, 8 if half else 4)
    return query.shape[-1] % alignment == 0 and value.shape[-1] % alignment == 0


def _additive(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """A boolean mask becomes one of zeros and minus infinities, in the query's type."""
    if mask.dtype != torch.bool:
        return mask
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.full((), float("-inf"), dtype=query.dtype, device=query.device))


def _aligned(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The memory-efficient kernel reads 16 columns at once: other masks are padded, then sliced."""
    last = mask.shape[-1]
    if last % 16:
        mask = F.pad(mask, (0, 16 - last % 16))[..., :last]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def attend(
    capability: tuple[int, int],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Do what `scaled_dot_product_attention` does on CUDA, with the operators that it calls there."""
    aten: Any = torch.ops.aten
    mask = None if attn_mask is None else _additive(attn_mask, query)
    name = kernel(capability, query, key, value, mask, is_causal, dropout_p, enable_gqa)
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if name == "flash":
        size = query.shape[-1]
        scale = size**-0.5 if scale is None else scale  # of the size before padding
        if size % 8:
            query, key, value = (F.pad(t, (0, 8 - size % 8)) for t in (query, key, value))
        out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return out[..., :size] if size % 8 else out  # type: ignore[no-any-return]
    if name == "cudnn":
        return aten._scaled_dot_product_cudnn_attention(  # type: ignore[no-any-return]
            query, key, value, mask, training, dropout_p, is_causal, False, scale=scale
        )[0]
    if name == "efficient":
        if enable_gqa:
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        bias = None if mask is None else _aligned(mask, query, key)
        return aten._scaled_dot_product_efficient_attention(  # type: ignore[no-any-return]
            query, key, value, bias, training, dropout_p, is_causal, scale=scale
        )[0]
    return aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return]
        query, key, value, mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def backward_scratch(operator: Any, args: tuple[Any, ...]) -> list[int]:
    """Return the bytes that an attention kernel's backward allocates for itself and frees at its end.

    Flash attention (`flash_attn/flash_api.cpp`, mha_bwd) sums the query's gradient in float32 and keeps one
    float32 a row; the memory-efficient one (`attention_backward.cu`) keeps the latter.
    """
    aten: Any = torch.ops.aten
    if operator is aten._scaled_dot_product_flash_attention_backward.default:
        batch, heads, rows, size = args[1].shape
        rows, size = _rounded(rows, 128), _rounded(size, 32) if size <= 192 else 256
        return [batch * heads * rows * 4, batch * rows * heads * size * 4]
    if operator is aten._scaled_dot_product_efficient_attention_backward.default:
        batch, heads, rows, _ = args[1].shape
        return [batch * heads * rows * 4]
    return []
