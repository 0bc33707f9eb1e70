"""FlexAttention in a trace: one operator with the GPU kernels' allocations, and no scores."""

from __future__ import annotations

from typing import Any

import torch

from ratc_runtime.trace import work


class FlexAttention(torch.autograd.Function):
    """Outputs and gradients without values.

    Follows `flex_attention` and `flex_attention_backward` of torch/_inductor/kernel/flex (torch 2.13): forward writes
    the output and the log-sum-exp to base 2, which is kept, and makes another of it to base e. Backward sums output
    times gradient per row, in float32, and writes three gradients; an unneeded gradient is zeros.
    """

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = q.new_empty((*q.shape[:3], v.shape[3]))
        kept = q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, kept)
        work.library("flex_attention", q.dtype, 1, 2 * _scores(q, k) * (q.shape[3] + v.shape[3]), q, k, v, out)
        return out, torch.empty_like(kept)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, out: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, _, kept = ctx.saved_tensors
        sums = torch.empty_like(kept)
        found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        del sums
        operations = 2 * _scores(q, k) * (3 * q.shape[3] + 2 * v.shape[3])
        work.library("flex_attention_backward", q.dtype, 2, operations, q, k, v, out, *found)
        return found


def _scores(q: torch.Tensor, k: torch.Tensor) -> int:
    return int(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace FlexAttention's kernels in a trace.

    Queries, keys and values are (N, H, n, d), (N, H, m, d) and (N, H, m, e); returns outputs (N, H, n, e) and the
    log-sum-exp (N, H, n), float32.
    """
    return FlexAttention.apply(q, k, v)
