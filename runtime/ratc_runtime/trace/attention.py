"""Scaled dot-product attention as on CUDA: the choice of the kernel, which decides whether the S x S matrix is kept.

The rules are those of `aten/src/ATen/native/transformers/cuda/sdp_utils.cpp` of torch 2.13 (order, hardware, types,
head sizes, masks), the preparation of arguments that of `transformers/attention.cpp`. Flash, memory-efficient and cuDNN
attention keep the output and one logsumexp per row; "math" keeps the matrix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

HALF = (torch.float16, torch.bfloat16)


class _Call(NamedTuple):
    """A call of attention: query, key and value are (N, heads, rows, size)."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    causal: bool
    dropout: float


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
    """Return CUDA's choice on a card of this compute capability: "cudnn", "flash", "efficient" or "math".

    `query`, `key` and `value` are (N, heads, rows, size), `mask` is (N, heads, query rows, key rows) or can be expanded
    to it; `dropout` is a probability. With `grouped` key and value may have fewer heads (`enable_gqa`).
    """
    if any(t.dim() != 4 or t.stride(-1) != 1 or 0 in t.shape for t in (query, key, value)):
        return "math"
    # `check_last_dim_stride_equals_1_dense` looks at the mask too: a bias that was permuted is no longer in rows.
    if mask is not None and mask.stride(-1) != 1:
        return "math"
    if not query.dtype == key.dtype == value.dtype or not query.shape[0] == key.shape[0] == value.shape[0]:
        return "math"
    if not _heads_fit(query, key, value, grouped):
        return "math"
    order = ["flash", "efficient"]
    if capability in ((9, 0), (10, 0)):
        order = ["cudnn", *order]
    possible = {"cudnn": _cudnn, "flash": _flash, "efficient": _efficient}
    call = _Call(query, key, value, mask, causal, dropout)
    for name in order:
        if possible[name](capability, call):
            return name
    return "math"


def _heads_fit(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grouped: bool) -> bool:
    """`check_batch_size_and_num_heads_dense`: the same heads, or with `enable_gqa` so many that they divide."""
    if not grouped:
        return query.shape[1] == key.shape[1] == value.shape[1]
    return query.shape[1] % key.shape[1] == 0 and query.shape[1] % value.shape[1] == 0


def _broadcasts(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> bool:
    """`check_attn_mask_shape`: two dimensions, or four, each of them 1 or the scores' own."""
    wanted = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return mask.dim() in (2, 4) and all(
        have in (1, want) for have, want in zip(reversed(mask.shape), reversed(wanted), strict=False)
    )


def _flash(capability: tuple[int, int], call: _Call) -> bool:
    query, key, value = call.query, call.key, call.value
    size = query.shape[-1]
    if capability < (8, 0) or query.dtype not in HALF or call.mask is not None:
        return False
    if not size == key.shape[-1] == value.shape[-1] or size > 256 or key.shape[1] != value.shape[1]:
        return False
    if call.causal and query.shape[-2] != key.shape[-2]:
        return False
    training = query.requires_grad or key.requires_grad or value.requires_grad
    small_shared_memory = capability in ((8, 6), (8, 9)) or capability[0] == 12
    return not (small_shared_memory and training and (192 < size <= 224 or (size > 224 and call.dropout > 0.0)))


def _cudnn(capability: tuple[int, int], call: _Call) -> bool:
    query, key, value = call.query, call.key, call.value
    sizes = (query.shape[-1], value.shape[-1])
    # `check_cudnn_tensor_shapes`; 192 beside 128 from cuDNN 9.11 on.
    if query.dtype not in HALF or any(size % 8 for size in sizes) or (max(sizes) > 128 and sizes != (192, 128)):
        return False
    if call.mask is not None and (call.mask.requires_grad or not _broadcasts(call.mask, query, key)):
        return False
    return key.shape[-2] > 1 and (query.shape[-2] > 1 or not call.dropout)


def _efficient(capability: tuple[int, int], call: _Call) -> bool:
    query, key, value = call.query, call.key, call.value
    if capability < (5, 0) or query.dtype not in (*HALF, torch.float32):
        return False
    if query.dtype == torch.bfloat16 and capability < (8, 0):
        return False
    if not query.shape[1] == key.shape[1] == value.shape[1]:
        return False  # it knows no groups of heads: `supports_gqa` is false
    half = query.dtype in HALF
    alignment = 4 if capability >= (8, 0) else 1
    if capability >= (8, 0) or (capability >= (7, 0) and half):  # tensor cores want 128 bits at once
        alignment = max(alignment, 8 if half else 4)
    return query.shape[-1] % alignment == 0 and value.shape[-1] % alignment == 0


def _additive(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Return a boolean mask as zeros and minus infinities, in the query's type."""
    if mask.dtype != torch.bool:
        return mask
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    return torch.where(mask, zero, torch.full((), float("-inf"), dtype=query.dtype, device=query.device))


def _aligned(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return the mask padded and sliced for the memory-efficient kernel, which reads 16 columns at once."""
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
    """Run `scaled_dot_product_attention` with the operators that it calls on CUDA: shapes and arguments are its own."""
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
        return out[..., :size] if size % 8 else out
    if name == "cudnn":
        return aten._scaled_dot_product_cudnn_attention(
            query, key, value, mask, training, dropout_p, is_causal, False, scale=scale
        )[0]
    if name == "efficient":
        bias = None if mask is None else _aligned(mask, query, key)
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, training, dropout_p, is_causal, scale=scale
        )[0]
    return aten._scaled_dot_product_attention_math(
        query, key, value, mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def backward_scratch(operator: Any, args: tuple[Any, ...]) -> list[int]:
    """Return the bytes of an attention kernel's own allocations in backward, after its results, in order.

    All are freed at its end. Flash attention (`flash_attn/flash_api.cpp`, mha_bwd) sums the query's gradient in
    float32, keeps one float32 per row, and the gradients of keys and values for all heads if they have fewer. cuDNN's
    does the first two in one workspace (read off an H200). The memory-efficient one (`attention_backward.cu`) sums the
    query's gradient in float32 for 16-bit types; for float32 it multiplies the output with its gradient beforehand.
    """
    aten: Any = torch.ops.aten
    if operator is aten._scaled_dot_product_flash_attention_backward.default:
        batch, heads, rows, size = args[1].shape
        length, few = args[2].shape[2], args[2].shape[1]
        expanded = [batch * length * heads * size * args[1].element_size()] * 2 if few != heads else []
        rows, size = _rounded(rows, 128), _rounded(size, 32) if size <= 192 else 256
        return [batch * heads * rows * 4, batch * rows * heads * size * 4, *expanded]
    if operator is aten._scaled_dot_product_cudnn_attention_backward.default:
        batch, heads, rows, size = args[1].shape
        return [batch * heads * rows * (size + 1) * 4 + 256]
    if operator is aten._scaled_dot_product_efficient_attention_backward.default:
        batch, heads, rows, size = args[1].shape
        delta = batch * heads * rows * 4
        if args[1].dtype not in HALF:
            return [delta * args[3].shape[-1], delta, delta]
        blocks = -(-rows // 64)
        return [delta, batch * heads * blocks * (64 * size * 4 + 16)]
    return []
