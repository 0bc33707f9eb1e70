"""RAT's dense grouping attention in chunks, keeping no attention map: the published model at its own image size.

The published layer (`spatial_grouping_attention.DenseSpatialGroupingAttention`) keeps maps of batch x heads x
groups x pixels for every iteration. Here the same layer computes a chunk of one at a time, and again in the
backward pass; what it keeps is linear in the number of pixels. Two things make that exact:

* A map is `A / (sums + eps)`, where `A = softmax(q k^T)` over the pixels and `sums` adds up A's columns. Rows of A
  need no other rows: a first pass over chunks of rows adds up the columns, a second one uses the map.
* Maps of deeper layers are only ever multiplied, by vectors or by the maps before them. `LazyMap` remembers the
  factors and applies them to the vectors one after the other, so that their product is never formed.

Inside, heads come first, (heads x batch, positions, features): a chunk of heads is then a slice without a copy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ratc_runtime.chunked_maps import Gather, Pieces, Spread, attention_map, no_autocast

# Entries of a chunk for each sample of the batch: 256 MiB where it is float32, of which up to three are alive.
# Smaller saves little beside the rest of the model, and a GPU would wait for the next launch.
CHUNK_ELEMENTS = 2**26


def keep_no_maps(model: nn.Module, chunk_elements: int = CHUNK_ELEMENTS) -> int:
    """Let every dense grouping attention of `model` compute in chunks; return how many layers were changed.

    Outputs and gradients are those of the published layer up to rounding; its `attn_q` and `attn_k` become
    `LazyMap`s. A chunk holds at most `chunk_elements` numbers (heads x groups x pixels) per sample of the batch, or
    one row if that is more. Changing a layer twice does nothing; sparse layers and subclasses stay as they are.
    """
    changed = 0
    for module in model.modules():
        # By name: importing the package for a model that does not use it would cost seconds.
        if type(module).__name__ == "DenseSpatialGroupingAttention" and "forward" not in module.__dict__:
            module.forward = _LeanForward(module, max(1, chunk_elements))
            changed += 1
    return changed


class LazyMap:
    """The product of one or more attention maps, (batch, heads, groups, pixels), applied but never formed.

    Stands where the published model has a tensor: `vectors @ map` spreads (batch, heads, n, groups) over pixels,
    `map @ vectors` gathers (batch, heads, pixels, n), `map @ map` chains layers; `dense` forms it after all.
    """

    def __init__(self, factors: tuple[_Factor, ...], batch: int) -> None:
        self._factors, self._batch = factors, batch  # as in a product: the last layer's first

    @property
    def shape(self) -> torch.Size:
        last, first = self._factors[0], self._factors[-1]
        return torch.Size((self._batch, len(last.q) // self._batch, last.q.shape[1], first.k.shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        """The type that products are computed in and have."""
        return self._factors[0].q.dtype

    @property
    def device(self) -> torch.device:
        return self._factors[0].q.device

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, LazyMap):
            return LazyMap(self._factors + other._factors, self._batch)
        if not isinstance(other, torch.Tensor):
            return NotImplemented
        vectors = _heads_first(other.to(self.dtype))
        for factor in reversed(self._factors):
            vectors = factor.gather(vectors)
        return _batch_first(vectors, self._batch)

    def __rmatmul__(self, other: Any) -> Any:
        if not isinstance(other, torch.Tensor):
            return NotImplemented
        vectors = _heads_first(other.to(self.dtype).transpose(-2, -1))
        for factor in self._factors:
            vectors = factor.spread(vectors)
        return _batch_first(vectors, self._batch).transpose(-2, -1)

    def dense(self) -> torch.Tensor:
        """Form the map: batch x heads x groups x pixels numbers, which is what this class is there to avoid."""
        with no_autocast(self.device):
            result = self._factors[0].dense()
            for factor in self._factors[1:]:
                result = result @ factor.dense()
        return _batch_first(result, self._batch)


class _Factor(NamedTuple):
    """One layer's map, by its queries (groups) and keys (pixels); without `sums` its columns are as they are."""

    q: torch.Tensor
    k: torch.Tensor
    sums: torch.Tensor | None
    eps: float
    pieces: Pieces

    def gather(self, vectors: torch.Tensor) -> torch.Tensor:
        with no_autocast(vectors.device):
            result: Any = Gather.apply(  # type: ignore[no-untyped-call]
                self.q, self.k, vectors, self.sums is not None, self.eps, self.pieces
            )
        return result[0]  # type: ignore[no-any-return]

    def spread(self, vectors: torch.Tensor) -> torch.Tensor:
        with no_autocast(vectors.device):
            result: torch.Tensor = Spread.apply(  # type: ignore[no-untyped-call]
                self.q, self.k, vectors, self.sums, self.eps, self.pieces
            )
        return result

    def dense(self) -> torch.Tensor:
        attention = attention_map(self.q, self.k)
        if self.sums is not None:
            attention = attention / (attention.sum(dim=1, keepdim=True) + self.eps)
        return attention.to(self.q.dtype)


class _LeanForward:
    """The forward of one layer; line by line that of `SpatialGroupingAttention.forward`, but for the maps."""

    def __init__(self, module: nn.Module, chunk_elements: int) -> None:
        self.module, self.chunk_elements = module, chunk_elements

    def __call__(
        self,
        x: torch.Tensor,
        input_spacing: tuple[float, ...],
        input_grid_shape: tuple[int, ...],
        mask: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        module: Any = self.module
        if module.iters < 1:  # no map is computed: the published layer returns memory as it found it
            return type(module).forward(module, x, input_spacing, input_grid_shape, mask)  # type: ignore[no-any-return]
        q_spacing = module._calculate_strided_spacing(input_spacing)
        q_grid_shape = module._calculate_strided_grid_shape(input_grid_shape)
        batch, pixels, features = x.shape
        if mask is not None:
            mask = mask.to(x.device) > 0
            x = torch.where(mask.flatten(1).unsqueeze(-1), module.mask_embedding.expand(batch, pixels, features), x)
        x_out = module.strider(x.transpose(1, 2).reshape(batch, features, *input_grid_shape))
        x_out = module.norm1(x_out.flatten(2).transpose(1, 2))
        groups = x_out.shape[1]
        pieces = Pieces(module.num_heads, batch, groups, pixels, self.chunk_elements)
        # The published loop computes keys and values anew in every iteration, from the same x.
        k, v = module.kv(x).chunk(2, dim=-1)
        k = module.temp * module.rose(k, input_spacing, input_grid_shape, flatten=False).transpose(1, 2)
        eps = torch.finfo(k.dtype).eps
        # Reshaped, not transposed: this is how the published layer deals values out to heads, and takes them back.
        k, v = _heads_first(_lowered(k)), _heads_first(_lowered(v.reshape(*k.shape)))
        for _ in range(module.iters):
            q = module.rose(module.q(x_out), q_spacing, q_grid_shape, flatten=False).transpose(1, 2)
            q = _heads_first(_lowered(q))
            with no_autocast(x.device):
                gathered, sums = Gather.apply(q, k, v, True, eps, pieces)  # type: ignore[no-untyped-call]
            x_out = x_out + module.norm2(_batch_first(gathered, batch).reshape(batch, groups, features))
            x_out = x_out + module.norm3(module.mlp(x_out))
        return {
            "x_out": x_out,
            "attn_q": LazyMap((_Factor(q, k, sums, eps, pieces),), batch),
            "attn_k": LazyMap((_Factor(q, k, None, eps, pieces),), batch),
            "out_grid_shape": q_grid_shape,
            "out_spacing": q_spacing,
        }


def _heads_first(x: torch.Tensor) -> torch.Tensor:
    """(batch, heads, positions, features) to (heads x batch, positions, features), contiguous."""
    return x.transpose(0, 1).flatten(0, 1).contiguous()


def _batch_first(x: torch.Tensor, batch: int) -> torch.Tensor:
    return x.reshape(-1, batch, *x.shape[1:]).transpose(0, 1)


def _lowered(x: torch.Tensor) -> torch.Tensor:
    """Return what autocast would make of an operand of a matrix product."""
    kind = x.device.type
    lowered = torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # which autocast leaves alone
    return x.to(torch.get_autocast_dtype(kind)) if lowered else x
