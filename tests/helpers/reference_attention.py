"""What FlexAttention computes, by forming the scores: on a CPU its own kernels have no backward pass."""

from __future__ import annotations

import torch


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries, keys and values (…, n, d), (…, m, d), (…, m, e) to softmax(q k^T) v and the scores' log-sum-exp."""
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32))
    return (torch.softmax(scores, -1) @ v.to(scores.dtype)).to(q.dtype), torch.logsumexp(scores, -1)
