"""Products with one layer's attention map, (heads x batch, groups, pixels), computed in chunks.

Neither `W @ v` nor `W^T @ x` keeps a map: the backward pass recomputes it from queries and keys. A chunk consists of
whole heads, or of rows of one head. Heads come first, so that either is a slice without a copy. Rows of `A = softmax(q
k^T)` need no other rows: a first pass over chunks of rows sums the columns, a second one uses the map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

# Entries of a chunk for each sample of the batch: 256 MiB if it is float32, of which up to three are alive.
# Smaller saves little beside the rest of the model, and a GPU would wait for the next launch.
CHUNK_ELEMENTS = 2**26
_shortened = False
#: Number of rounds that the current round of a shortened loop stands for.
_rounds = 1


@contextlib.contextmanager
def only_enough_for_memory() -> Iterator[None]:
    """Skip chunks that need the same memory as earlier ones. The results are then wrong.

    For tracing on fake tensors, which have no results: of every loop the first two rounds and the last one remain.
    """
    global _shortened
    before, _shortened = _shortened, True
    try:
        yield
    finally:
        _shortened = before


def rounds() -> int:
    """Return the number of rounds that the current round of the loops stands for: 1, or more in shortened loops."""
    return _rounds


class _Shortened(list[slice]):
    """The first two slices of a loop, and the last one. While the second is used, it stands for those left out, too."""

    skipped = 0

    def __iter__(self) -> Iterator[slice]:
        global _rounds
        for place, one in enumerate(super().__iter__()):
            factor = 1 + self.skipped if place == 1 else 1
            _rounds *= factor
            try:
                yield one
            finally:
                _rounds //= factor


def no_autocast(device: torch.device) -> torch.autocast:
    """Return a context without autocast, which would lower products whose operands already have the right type."""
    return torch.autocast(device.type, enabled=False)


class Pieces(NamedTuple):
    """The split of a map: by heads if whole ones fit into a chunk, else one head at a time and by rows.

    `rows` are groups, `columns` pixels; `elements` is the most numbers in a chunk for each sample of the batch. The
    split does not depend on the batch, so memory is linear in it, and allocations come in the same order.
    """

    heads: int
    batch: int
    rows: int
    columns: int
    elements: int

    def __iter__(self) -> Iterator[Any]:
        """Yield (slice of heads x batch, slices of rows)."""
        parts = -(-self.rows * self.columns // self.elements)
        together = self.elements // (self.rows * self.columns)
        rows = _slices(self.rows, -(-self.rows // min(parts, self.rows)))
        for heads in _slices(self.heads, max(1, -(-self.heads // -(-self.heads // max(1, together))))):
            yield slice(heads.start * self.batch, heads.stop * self.batch), rows


def _slices(length: int, step: int) -> list[slice]:
    slices = [slice(at, min(at + step, length)) for at in range(0, length, step)]
    if not _shortened or len(slices) <= 3:
        return slices
    short = _Shortened(slices[:2] + slices[-1:])
    short.skipped = len(slices) - 3
    return short


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Return the type of softmax and sums: float32, as under CUDA's autocast, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def attention_map(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return softmax(q k^T) over the pixels, (heads x batch, groups, pixels), in float32 or better."""
    return torch.softmax(torch.bmm(q, k.mT), dim=-1, dtype=_exact(q.dtype))


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a^T b to `total`, which has the exact type for any type of a and b."""
    total += torch.bmm(a.mT, b)


def _score_gradient(attention: torch.Tensor, gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the gradient of q k^T from that of its softmax, with the kernel that autograd would use."""
    return torch._softmax_backward_data(gradient, attention, -1, attention.dtype).to(dtype)


class Gather(torch.autograd.Function):
    """`W @ v` with W = A / (sums + eps), or A itself unless `normal`; and the sums of A's columns.

    Forward takes q (heads x batch, groups, d), k (heads x batch, pixels, d) and v (heads x batch, pixels, e), and
    returns (heads x batch, groups, e) and the sums (heads x batch, 1, pixels).

    W_nm = A_nm d_m with d_m = 1 / (sum_n A_nm + eps), so dA_nm = d_m (dW_nm - v_m . dv_m) where dW = dy v^T and
    dv = W^T dy: the backward pass adds up dv first, then goes over the chunks once more.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, normal: bool, eps: float, pieces: Pieces
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sums = k.new_zeros((len(k), 1, k.shape[1]), dtype=_exact(k.dtype))
        y = q.new_empty((*q.shape[:2], v.shape[2]))
        for heads, all_rows in pieces:
            attention = None
            for rows in all_rows if normal else ():
                attention = None  # before the next one is made
                attention = attention_map(q[heads, rows], k[heads])
                sums[heads] += attention.sum(dim=1, keepdim=True)
            scale = 1 / (sums[heads] + eps)
            for rows in all_rows:
                if attention is None or len(all_rows) > 1:
                    attention = None
                    attention = attention_map(q[heads, rows], k[heads])
                if normal:
                    attention.mul_(scale)
                y[heads, rows] = torch.bmm(attention.to(v.dtype), v[heads])
        ctx.save_for_backward(q, k, v, sums)
        ctx.normal, ctx.eps, ctx.pieces = normal, eps, pieces
        # How they depend on q and k is part of this backward, and of Spread's.
        ctx.mark_non_differentiable(sums)
        return y, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, sums = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        with no_autocast(q.device):
            for heads, all_rows in ctx.pieces:
                scale = 1 / (sums[heads] + ctx.eps) if ctx.normal else None
                total = torch.zeros_like(v[heads], dtype=sums.dtype)
                for rows in all_rows:
                    weights = attention_map(q[heads, rows], k[heads])
                    weights = (weights if scale is None else weights.mul_(scale)).to(v.dtype)
                    _add_product(total, weights, dy[heads, rows])
                    del weights
                dv[heads] = total
                shift = (total * v[heads]).sum(-1).unsqueeze(1)
                total = torch.zeros_like(k[heads], dtype=sums.dtype)
                for rows in all_rows:
                    change = torch.bmm(dy[heads, rows], v[heads].mT).to(sums.dtype)
                    if scale is not None:
                        change.sub_(shift).mul_(scale)
                    change = _score_gradient(attention_map(q[heads, rows], k[heads]), change, q.dtype)
                    dq[heads, rows] = torch.bmm(change, k[heads])
                    _add_product(total, change, q[heads, rows])
                    del change
                dk[heads] = total
        return dq, dk, dv, None, None, None


class Spread(torch.autograd.Function):
    """`W^T @ x` for the vectors x of groups, with W as in Gather, or A itself without its `sums`.

    Forward takes q and k as in Gather and x (heads x batch, groups, e), and returns (heads x batch, pixels, e).

    dA_nm = d_m (x_n . do_m - o_m . do_m) for the output o, which is kept; for A itself dA_nm = x_n . do_m.
    """

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, x: torch.Tensor, sums: torch.Tensor | None, eps: float, pieces: Any
    ) -> torch.Tensor:
        output = k.new_empty((*k.shape[:2], x.shape[2]))
        for heads, all_rows in pieces:
            total = torch.zeros_like(output[heads], dtype=_exact(q.dtype))
            for rows in all_rows:
                weights = attention_map(q[heads, rows], k[heads])
                weights = (weights if sums is None else weights.mul_(1 / (sums[heads] + eps))).to(x.dtype)
                _add_product(total, weights, x[heads, rows])
                del weights
            output[heads] = total
        ctx.save_for_backward(q, k, x, sums, output)
        ctx.eps, ctx.pieces = eps, pieces
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, x, sums, output = ctx.saved_tensors
        dq, dk, dx = torch.empty_like(q), torch.empty_like(k), torch.empty_like(x)
        exact = _exact(q.dtype)
        with no_autocast(q.device):
            for heads, all_rows in ctx.pieces:
                scale = None if sums is None else 1 / (sums[heads] + ctx.eps)
                shift = (output[heads].to(exact) * do[heads]).sum(-1).unsqueeze(1)
                total = torch.zeros_like(k[heads], dtype=exact)
                for rows in all_rows:
                    attention = attention_map(q[heads, rows], k[heads])
                    weights = (attention if scale is None else attention * scale).to(x.dtype)
                    dx[heads, rows] = torch.bmm(weights, do[heads])
                    del weights
                    change = torch.bmm(x[heads, rows], do[heads].mT).to(exact)
                    if scale is not None:
                        change.sub_(shift).mul_(scale)
                    change = _score_gradient(attention, change, q.dtype)
                    del attention
                    dq[heads, rows] = torch.bmm(change, k[heads])
                    _add_product(total, change, q[heads, rows])
                    del change
                dk[heads] = total
        return dq, dk, dx, None, None, None


class ChunkedFactor(NamedTuple):
    """One layer's map, by its queries `q` (heads x batch, groups, d) and keys `k` (heads x batch, pixels, d).

    `sums` (heads x batch, 1, pixels) are the sums of its columns, to which `eps` is added; without them the columns are
    not normalised.
    """

    q: torch.Tensor
    k: torch.Tensor
    sums: torch.Tensor | None
    eps: float
    pieces: Pieces

    def gather(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the map times (heads x batch, pixels, n): (heads x batch, groups, n)."""
        with no_autocast(vectors.device):
            result: Any = Gather.apply(self.q, self.k, vectors, self.sums is not None, self.eps, self.pieces)
        return result[0]

    def spread(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the map's transpose times (heads x batch, groups, n): (heads x batch, pixels, n)."""
        with no_autocast(vectors.device):
            result: torch.Tensor = Spread.apply(self.q, self.k, vectors, self.sums, self.eps, self.pieces)
        return result

    def dense(self) -> torch.Tensor:
        """Return the whole map, (heads x batch, groups, pixels)."""
        return formed(self.q, self.k, None if self.sums is None else self.eps)


def formed(q: torch.Tensor, k: torch.Tensor, eps: float | None) -> torch.Tensor:
    """Return A / (sums + eps), (heads x batch, groups, pixels), or A itself without `eps`."""
    attention = attention_map(q, k)
    if eps is not None:
        attention = attention / (attention.sum(dim=1, keepdim=True) + eps)
    return attention.to(q.dtype)


#: Queries (heads x batch, groups, features) to the gathered values and the layer's maps.
Layer = Callable[[torch.Tensor], tuple[torch.Tensor, ChunkedFactor, ChunkedFactor]]


class Chunked(NamedTuple):
    """Products in chunks. A chunk holds at most `elements` numbers (heads x groups x pixels) for each sample of the
    batch, or one row if that is more.
    """

    elements: int = CHUNK_ELEMENTS

    def layer(self, k: torch.Tensor, v: torch.Tensor, heads: int, eps: float) -> Layer:
        """Return a function from queries (heads x batch, groups, d) to the gathered values (heads x batch, groups, e)
        and the layer's maps: A / (sums + eps), and A itself.

        Keys `k` are (heads x batch, pixels, d), values `v` (heads x batch, pixels, e).
        """

        def attended(q: torch.Tensor) -> tuple[torch.Tensor, ChunkedFactor, ChunkedFactor]:
            pieces = Pieces(heads, len(q) // heads, q.shape[1], k.shape[1], max(1, self.elements))
            with no_autocast(q.device):
                gathered, sums = Gather.apply(q, k, v, True, eps, pieces)
            return gathered, ChunkedFactor(q, k, sums, eps, pieces), ChunkedFactor(q, k, None, eps, pieces)

        return attended
